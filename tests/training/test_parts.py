"""Recipes with parts as people have them: a GGUF file, vision transformers, stages joined, shards, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import make_llama, write_gguf
from tiny_runs import make_recipe, read_losses, read_weights, run
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPImageProcessorPil

from agevlm.checkpoints import load_model
from agevlm.training.recipe import parse_recipe
from agevlm.training.run import build_model


def save_clip(directory: Path) -> Path:
    """A tiny CLIP with its image processor, as the hub has it: pictures of 96 pixels are 12 × 12 tokens."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = shape | {"vocab_size": 20}
    config = AutoConfig.for_model("clip", vision_config=shape | {"image_size": 32, "patch_size": 8}, text_config=text)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=96).save_pretrained(directory)
    return directory


def with_parts(foundation: Path, *stages: Any, **parts: Any) -> dict[str, Any]:
    content = make_recipe(foundation, *stages)
    content["model"] |= {name: str(value) if isinstance(value, Path) else value for name, value in parts.items()}
    return content


def test_a_gguf_file_trains_and_is_saved_as_safetensors(foundation: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    llama = make_llama(max_position_embeddings=512)
    file = write_gguf(tmp_path / "llama.gguf", llama)
    stage = {"name": "all", "trainable": ["projector", "cross_attention", "language_model"], "steps": 2}
    run(with_parts(foundation, stage, language_model=file), tmp_path / "run")
    assert len(read_losses(tmp_path / "run")) == 2
    model, processor = load_model(tmp_path / "run" / "model")
    assert model.config.text_config.model_type == "llama"
    assert processor.tokenizer.eos_token == "</s>"
    before = llama.model.layers[0].mlp.up_proj.weight
    after = read_weights(tmp_path / "run" / "model")["language_model.model.layers.0.mlp.up_proj.weight"]
    assert 0 < (after - before).abs().max() < 0.1


def test_stages_of_a_vision_transformer_are_joined_and_trained(foundation: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    stage = {"name": "see", "trainable": ["projector", "cross_attention", "vision_model"], "steps": 2}
    content = with_parts(foundation, stage, vision_model=clip, vision_stages=["stage3", "stage1"])
    run(content, tmp_path / "run")
    model, processor = load_model(tmp_path / "run" / "model")
    assert processor.image_processor.size == {"height": 96, "width": 96}
    assert processor.image_processor.image_mean[0] == pytest.approx(0.48145466)
    assert model.vision_model.out_features == ["stage1", "stage3"]
    assert model.vision_features(torch.zeros(1, 3, 96, 96)).shape == (1, 32, 12, 12)
    before = build_model(parse_recipe(content, "recipe"))[0].vision_model.state_dict()
    after = model.vision_model.state_dict()
    assert not torch.equal(
        before["tower.embeddings.patch_embedding.weight"], after["tower.embeddings.patch_embedding.weight"]
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"vision_stages": ["stage7"]},
            r"feature maps stem, stage1, stage2, stage3, and 'stage7' was asked for",
        ),
        (
            {"image_size": 100},
            "100 pixels are not cut whole into patches of 8: set image_size to 96 or 104",
        ),
        ({"language_model": "nothing.gguf"}, r"no GGUF file 'nothing.gguf'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_trains(
    parts: dict[str, Any], message: str, foundation: Path, tmp_path: Path
) -> None:
    content = with_parts(foundation, "align", vision_model=save_clip(tmp_path / "clip"), **parts)
    with pytest.raises(ValueError, match=message) as caught:
        build_model(parse_recipe(content, "recipe"))
    assert "\n" not in str(caught.value)


@pytest.fixture
def sharded(foundation: Path, tmp_path: Path) -> Path:
    """The tiny Llama in several files."""
    language = AutoModelForCausalLM.from_pretrained(foundation / "llama", dtype=torch.float16)
    language.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for path in (foundation / "llama").glob("tokenizer*"):
        (tmp_path / "sharded" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "sharded"


def test_shards_of_any_type_are_read(foundation: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    model, _ = build_model(parse_recipe(with_parts(foundation, "align", language_model=sharded), "recipe"))
    whole = AutoModelForCausalLM.from_pretrained(foundation / "llama")
    for name, weight in whole.state_dict().items():
        assert torch.equal(model.language_model.state_dict()[name], weight.half().float()), name


def test_a_missing_shard_is_named_in_one_line(foundation: Path, sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"the weights in .*sharded cannot be read .*{lost.name}") as caught:
        build_model(parse_recipe(with_parts(foundation, "align", language_model=sharded), "recipe"))
    assert "\n" not in str(caught.value)


def with_more_tokens(foundation: Path, directory: Path, tokens: list[str], special: bool, template: str) -> Path:
    """The tiny Llama, whose tokenizer knows more tokens than it."""
    from transformers import AutoTokenizer

    AutoModelForCausalLM.from_pretrained(foundation / "llama").save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(foundation / "llama")
    tokenizer.add_tokens(tokens, special_tokens=special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
MARKED = "{% for m in messages %}{{ '<!' + m['role'] + '!>' + m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("tokens", "special", "template", "refused"),
    [
        (["zebra", "yak"], False, PLAIN, "'zebra'"),
        (["<!user!>", "<!assistant!>"], True, MARKED, "'<!user!>'"),
        (["<picture>"], True, PLAIN, None),  # of Gemma 3 with 1B
    ],
)
def test_tokens_without_an_embedding_are_refused_where_they_can_come_up(
    tokens: list[str], special: bool, template: str, refused: str | None, foundation: Path, tmp_path: Path
) -> None:
    rows = AutoConfig.from_pretrained(foundation / "llama").vocab_size
    language = with_more_tokens(foundation, tmp_path / "more", tokens, special, template)
    content = with_parts(foundation, "align", language_model=language)
    if refused is None:
        run(content, tmp_path / "run")
        return
    for options in ({"dry_run": True}, {}):
        with pytest.raises(ValueError, match=r"the tokenizer of .*more has") as caught:
            run(content, tmp_path / "run", **options)
        message = str(caught.value)
        assert f"has {rows + len(tokens)} tokens, its embedding {rows} rows, none for {refused}: " in message
        assert "\n" not in message and not list((tmp_path / "run").glob("*-align"))


TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ 'system: help the man\n' }}{% endif %}"
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
)


@pytest.mark.parametrize("kept", [True, False])
def test_the_templates_system_prompt_is_kept_or_dropped(kept: bool, foundation: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoModelForCausalLM.from_pretrained(foundation / "llama").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(foundation / "llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    content = with_parts(foundation, "align", language_model=tmp_path, default_system_prompt=kept)
    _, processor = build_model(parse_recipe(content, "recipe"))
    text = processor.apply_chat_template([{"role": "user", "content": "where is the fish ?"}])
    assert text == ("system: help the man\n" if kept else "") + "user: where is the fish ?\n"
