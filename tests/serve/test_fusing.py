"""Layers in fewer calls of torch are the same layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaConfig, GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM, LlamaRMSNorm

from agevlm.modeling.versions import CACHE
from agevlm.serve.fusing import fuse

SMALL = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def unfused(model: Any) -> Any:
    """A copy, for the server of other tests may have fused it."""
    model = copy.deepcopy(model)
    for module in model.modules():
        vars(module).pop("forward", None)
    return model


def fused_modules(model: torch.nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


def test_a_models_layers_are_fused_and_its_logits_stay(tiny: tuple[str, Any, Any]) -> None:
    model = unfused(tiny[1])
    memory = model.encode_images(torch.rand(1, 3, 96, 96))
    given = {"input_ids": torch.tensor([[model.config.image_token_id, 5, 6, 7]]), "image_memory": memory}
    names = set(model.state_dict())
    with torch.inference_mode():
        before = model(**given).logits
        layers, looking = model.config.text_config.num_hidden_layers, len(model.cross_attention)
        assert fuse(model) == 4 * layers + 2 + 5 * looking
        torch.testing.assert_close(model(**given).logits, before, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_that_follow_with_and_without_padding(padded: bool, bias: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, **HEADS, attention_bias=bias, mlp_bias=bias)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    ids, mask = torch.tensor([[5, 6, 7], [0, 8, 9]]), torch.tensor([[1, 1, 1], [int(not padded), 1, 1]])

    def read(cache: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {"position_ids": places, "attention_mask": mask if padded else None, "use_cache": True, CACHE: cache}
        logits: torch.Tensor = model(inputs_embeds=model.get_input_embeddings()(ids), **given).logits
        return logits

    def logits() -> list[torch.Tensor]:
        cache, found = DynamicCache(), [ids, ids[:, :1], ids[:, :2]]
        ends = [sum(part.shape[1] for part in found[: number + 1]) for number in range(3)]
        whole = torch.cat([mask, mask.new_ones(2, 3)], dim=1)
        return [read(cache, part, whole[:, :end]) for part, end in zip(found, ends, strict=True)]

    with torch.inference_mode():
        before = logits()
        assert fuse(model) == 10
        torch.testing.assert_close(logits(), before, rtol=1e-4, atol=1e-5)


def test_weights_that_lie_together_are_still_the_models_own() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS)).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fuse(model)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    attention = model.model.layers[0].self_attn
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        first = model(input_ids=ids).logits
        attention.k_proj.weight.zero_()
        assert not torch.allclose(model(input_ids=ids).logits, first)


def test_what_is_computed_otherwise_is_left_alone() -> None:
    gemma, llama = GemmaRMSNorm(8), LlamaRMSNorm(8)
    gemma.variance_epsilon = gemma.eps
    torch.nn.init.ones_(gemma.weight)
    mlp = GemmaMLP(GemmaConfig(**SMALL))
    assert fuse(torch.nn.ModuleList([gemma, mlp, LlamaRMSNorm(8).to(torch.bfloat16)])) == 0
    assert fuse(llama) == 1
    assert "forward" not in vars(gemma)


def test_of_another_decoder_what_is_written_alike_is_fused() -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS)).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        fuse(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
    assert fused_modules(model) == {"Qwen3MLP", "Qwen3RMSNorm"}
