"""Norms by one call of torch are the same norms."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from agevlm.serve.norms import fuse_norms


def test_a_models_norms_are_fused_and_its_logits_stay(tiny: tuple[str, Any, Any]) -> None:
    model = copy.deepcopy(tiny[1])
    for module in model.modules():
        vars(module).pop("forward", None)  # the server of other tests may have had it
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        assert fuse_norms(model) == 2 * model.config.text_config.num_hidden_layers + 1
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


def test_other_norms_and_other_numbers_are_left_alone() -> None:
    gemma, llama = GemmaRMSNorm(8), LlamaRMSNorm(8)
    gemma.variance_epsilon = gemma.eps
    torch.nn.init.ones_(gemma.weight)
    assert fuse_norms(torch.nn.ModuleList([gemma, LlamaRMSNorm(8).to(torch.bfloat16)])) == 0
    assert fuse_norms(llama) == 1
    assert "forward" not in vars(gemma)
