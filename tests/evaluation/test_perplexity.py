"""Perplexity against counts by hand and against transformers' own loss."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agevlm.evaluation.perplexity import text_perplexity

TEXTS = ["a cup", "is there a fish in the picture?", "two red boats", "x"]


class ByteTokenizer:
    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + list(text.encode())}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).train()


def test_a_model_that_knows_nothing(llama: LlamaForCausalLM) -> None:
    head = llama.lm_head.weight.detach().clone()
    with torch.no_grad():
        llama.lm_head.weight.zero_()
    assert text_perplexity(llama, ByteTokenizer(), TEXTS) == pytest.approx(256, rel=1e-5)
    with torch.no_grad():
        llama.lm_head.weight.copy_(head)


def test_equals_the_loss_of_transformers_at_any_batch_size(llama: LlamaForCausalLM) -> None:
    total, num_tokens = 0.0, 0
    for text in TEXTS[:3]:
        ids = torch.tensor([list(text.encode())])
        total += float(llama(input_ids=ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    for batch_size in (1, 2, 8):
        found = text_perplexity(llama, ByteTokenizer(), TEXTS, batch_size=batch_size)
        assert found == pytest.approx(math.exp(total / num_tokens), rel=1e-5)
    assert llama.training  # left as it was


def test_nothing_to_predict_is_an_error(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="at least two tokens, got 1 texts"):
        text_perplexity(llama, ByteTokenizer(), ["x"])
