"""Language models in GGUF files: the same logits, plain weights saved as safetensors, faults that are named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_gguf import CHAT_TEMPLATE, make_llama, write_gguf
from tiny_models import make_model, make_picture, make_tokenizer

from agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from agevlm.checkpoints import resolve_language_model, resolve_model
from agevlm.evaluation.perplexity import directory_perplexity
from agevlm.modeling.language import load_gguf_config, load_language_model, load_tokenizer

pytest.importorskip("gguf", reason="the extra gguf is not installed")


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_llama()


@pytest.fixture(scope="module")
def file(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


@torch.no_grad()
def test_logits_are_the_models(llama: Any, file: Path, tmp_path: Path) -> None:
    ids = torch.randint(0, llama.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_language_model(file)(ids).logits, llama(ids).logits)


@torch.no_grad()
def test_quantised_weights_become_plain_ones_that_are_nearly_the_same(llama: Any, tmp_path: Path) -> None:
    model = make_llama(hidden_size=64, intermediate_size=96)  # rows in blocks of 32
    quantised = load_language_model(write_gguf(tmp_path / "q8.gguf", model, quantise=True))
    for name, weight in model.state_dict().items():
        ours = quantised.state_dict()[name]
        assert ours.dtype == torch.float32
        steps = weight.unflatten(-1, (-1, 32)).abs().amax(-1) / 127  # of each block
        bound = (0.51 * steps).repeat_interleave(32, -1) + 1e-3 * weight.abs()  # the step itself is a float16
        assert ((ours - weight).abs() <= (bound if weight.ndim == 2 else 0)).all(), name
    ids = torch.arange(12)[None]
    assert not torch.equal(quantised(ids).logits, model(ids).logits)


def test_the_tokenizer_and_its_chat_template_come_along(file: Path) -> None:
    tokenizer = load_tokenizer(file)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.eos_token == "</s>"
    ids = tokenizer("this is</s>").input_ids
    assert len(ids) == 6 and ids[-1] == 1  # t h is, a space, is
    assert tokenizer.decode(ids) == "this is</s>"


def test_joined_it_sees_and_is_saved_as_safetensors(file: Path, tmp_path: Path) -> None:
    processor = AgeVlmProcessor.from_backbones(file, 32)
    vision = make_model().vision_model
    model = AgeVlmForConditionalGeneration.from_backbones(
        file, vision, image_token_id=processor.image_token_id, attn_gate_init=0.5
    )
    inputs = processor(text="<image> is it", images=make_picture(), return_tensors="pt")
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert "gguf" not in (tmp_path / "config.json").read_text()
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_its_perplexity_is_that_of_the_model(llama: Any, file: Path, tmp_path: Path) -> None:
    """What a trained network is compared with may still be in a GGUF file."""
    llama.save_pretrained(tmp_path)
    load_tokenizer(file).save_pretrained(tmp_path)
    texts = ["this is a fish", "is it red"]
    expected = directory_perplexity(tmp_path, texts)
    assert expected > 1
    assert directory_perplexity(file, texts) == pytest.approx(expected)


def test_a_missing_tensor_is_named(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "part.gguf", llama, without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"part.gguf lacks the weights model.layers.1.mlp.up_proj.weight: name a"):
        load_language_model(path)


@pytest.mark.parametrize("damage", ["another kind", "half a file", "no GGUF"])
def test_files_of_another_kind_and_halves_are_one_line(damage: str, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    path = tmp_path / "bad.gguf"
    path.write_bytes(
        {
            "another kind": data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0horse", 1),
            "half a file": data[: len(data) // 2],
            "no GGUF": b"{}" + data,
        }[damage]
    )
    with pytest.raises(ValueError, match=r"bad.gguf cannot be read .*: name a whole GGUF file") as caught:
        load_language_model(path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "endless.gguf", llama, eos=False)
    with pytest.raises(ValueError, match="has no token for the end of text"):
        AgeVlmProcessor.from_backbones(path, 32)


def test_names_of_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no GGUF file 'nothing.gguf': expected one that exists"):
        resolve_language_model("nothing.gguf")
    with pytest.raises(ValueError, match="no GGUF file"):
        resolve_language_model(tmp_path / "nothing.gguf")
    assert resolve_language_model("org/name/q8.gguf") == "org/name/q8.gguf"


def test_a_file_is_no_model_by_itself(file: Path) -> None:
    assert resolve_language_model(file) == str(file)
    with pytest.raises(ValueError, match="a GGUF file, a language model alone"):
        resolve_model(file)


def test_without_the_package_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.modeling.language.is_gguf_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'agevlm\[gguf\]'"):
        load_language_model(file)


def test_a_directory_that_holds_the_file_alone_is_told_to_name_it(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "q8.gguf")
    (tmp_path / "README.md").write_text("a model")
    for load in (load_tokenizer, load_language_model):
        with pytest.raises(ValueError, match=r"holds the GGUF file q8\.gguf: name the file, such as .*q8\.gguf$"):
            load(tmp_path)
    shutil.copy(file, tmp_path / "f16.gguf")
    with pytest.raises(ValueError, match=r"holds the GGUF file f16\.gguf and 1 more: name"):
        load_tokenizer(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == make_tokenizer().get_vocab()
    with pytest.raises(ValueError, match="holds the GGUF file"):
        load_language_model(tmp_path)


def test_what_lies_beside_a_file_is_not_read(llama: Any, file: Path, tmp_path: Path) -> None:
    """Another model's tokenizer, configuration and weights, stored as integers, are not the file's."""
    path = Path(shutil.copy(file, tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "num_hidden_layers": 1000}')
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": "many"}')
    make_tokenizer().save_pretrained(tmp_path)
    save_file({"model.norm.weight": torch.zeros(4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    tokenizer = load_tokenizer(path)
    assert tokenizer.get_vocab() == load_tokenizer(file).get_vocab()
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.name_or_path == str(path)
    model = load_language_model(path)
    assert torch.equal(model.lm_head.weight, llama.lm_head.weight)
    assert model.config._name_or_path == str(path)
    assert load_gguf_config(path).vocab_size == llama.config.vocab_size


def test_a_file_without_an_end_is_named_beside_a_tokenizer_with_one(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "endless.gguf", llama, eos=False)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer .*endless.gguf has no token .*: take a GGUF file with one$"):
        AgeVlmProcessor.from_backbones(path, 32)


def test_a_file_is_copied_where_there_are_no_links(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    for name in ("symlink", "link"):
        monkeypatch.setattr(f"agevlm.modeling.language.os.{name}", refuse)
    assert load_tokenizer(file).eos_token == "</s>"


def test_a_file_of_the_hub_is_read_as_one_that_is_here(llama: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*names: str) -> str:
        asked.append(names)
        return str(file)

    monkeypatch.setattr("agevlm.modeling.language.hf_hub_download", download)
    name = "organisation/name/small/tiny.gguf"
    assert load_tokenizer(name).name_or_path == name
    assert torch.equal(load_language_model(name).lm_head.weight, llama.lm_head.weight)
    assert set(asked) == {("organisation/name", "small/tiny.gguf")}
