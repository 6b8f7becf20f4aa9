"""Adapters of a stage: DoRA as LoRA, folded into the decoder's weights, and kept in files that peft reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import make_text_config
from tiny_runs import STAGES, make_recipe, run
from torch import nn
from transformers import AutoModelForCausalLM

from agevlm.checkpoints import load_model
from agevlm.training.recipe import StageRecipe
from agevlm.training.stages import adapted_layers, freeze_for_stage


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # what peft asks transformers
@pytest.mark.parametrize("dora", [False, True])
def test_kept_adapters_on_the_decoder_before_are_the_decoder_after(
    dora: bool, foundation: Path, tmp_path: Path
) -> None:
    lora = {"rank": 2, "dora": dora, "keep": True}
    stage = {"name": "lora", **STAGES["instruct"], "trainable": ["projector"], "lora": lora, "learning_rate": 0.05}
    run(make_recipe(foundation, "align", stage), tmp_path)
    before, after = (load_model(tmp_path / name)[0].language_model for name in ("1-align", "2-lora"))
    ids = torch.arange(12)[None]
    plain, wanted = before(ids).logits, after(ids).logits
    assert (plain - wanted).abs().max() > 1e-3
    adapted = peft.PeftModel.from_pretrained(before, tmp_path / "2-lora" / "adapters").eval()
    torch.testing.assert_close(adapted(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert adapted.peft_config["default"].use_dora is dora


LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_decoder(kind: str, tied: bool = False) -> Any:
    """A network of which there is but its language model."""
    model = nn.Module()
    model.language_model = AutoModelForCausalLM.from_config(make_text_config(kind, tie_word_embeddings=tied))
    return model


def adapters(*target_modules: str) -> StageRecipe:
    lora = {"rank": 2, **({"target_modules": target_modules} if target_modules else {})}
    return StageRecipe(name="lora", trainable=(), steps=1, lora=lora)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", LLAMA),
        ("qwen3", LLAMA),
        ("gemma3_text", LLAMA),
        ("phi3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    ],
)
def test_all_linear_layers_of_the_decoder_s_layers_are_adapted(kind: str, expected: tuple[str, ...]) -> None:
    model = make_decoder(kind)
    names = adapted_layers(model, adapters())
    assert len(names) == 4 * len(expected) and all(".layers." in name for name in names)
    assert {name.rsplit(".", 1)[-1] for name in names} == set(expected)
    assert adapted_layers(model, adapters(*expected)) == names  # what older recipes name
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names), model.language_model)
    adapted = [name for name, module in model.language_model.named_modules() if hasattr(module, "base_layer")]
    assert adapted == names


def test_layers_that_a_recipe_names_are_adapted_and_no_others() -> None:
    model = make_decoder("llama")
    names = adapted_layers(model, adapters("self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"))
    queries = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(4)]
    assert sorted(names) == sorted([*queries, "model.layers.1.mlp.up_proj", "lm_head"])


@pytest.mark.parametrize("name", ["q_proj", "proj", "embed_tokens", "self_attn"])
def test_a_layer_that_the_decoder_does_not_have_is_refused_with_those_that_it_has(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^stage 'lora': lora.target_modules: '{name}' is no linear layer of the decoder; choose among "
        "o_proj, qkv_proj, gate_up_proj, down_proj, lm_head$",
    ):
        freeze_for_stage(make_decoder("phi3"), adapters("o_proj", name))


def test_a_head_that_is_tied_to_the_embeddings_is_refused_before_anything_trains(
    foundation: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the weight of lm_head is that of model\.embed_tokens too"):
        freeze_for_stage(make_decoder("llama", tied=True), adapters("q_proj", "lm_head"))
    stage = {"name": "lora", "trainable": ["projector"], "lora": {"target_modules": ["q_proj", "lm_head"]}}
    for options in ({"dry_run": True}, {}):
        with pytest.raises(ValueError, match=r"stage 'lora': .* leave it out"):
            run(make_recipe(foundation, "align", stage), tmp_path, **options)
    assert not (tmp_path / "log.jsonl").exists()
