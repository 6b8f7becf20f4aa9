"""Answers in one compiled graph: the same as without, no graph for each token or layer, and a model left as it was."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY_SIZE, make_model, make_pixels
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from agevlm import ConcatVlmForConditionalGeneration
from agevlm.modeling import decoding

IDS = torch.tensor([[VOCABULARY_SIZE, 7, 8, 9]])
FIXED = {"pixel_values": make_pixels(1), "do_sample": False}


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A compiler that needs no C++ and counts the graphs it is given."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")
    monkeypatch.setattr(decoding, "check_compiler", lambda: None)
    monkeypatch.setattr(decoding, "_compiled", cache(lambda code: torch.compile(code, backend=backend, dynamic=False)))
    return backend


def answer(model: Any, num_tokens: int, **options: Any) -> Any:
    return model.generate(IDS, **FIXED, **options, min_new_tokens=num_tokens, max_new_tokens=num_tokens)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_answers_are_the_same_with_a_graph_for_a_length_of_the_cache(
    counter: Any, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    monkeypatch.setattr(decoding, "LENGTH_STEP", 16)
    model = make_model(null_token=True)
    model.set_attn_implementation(kernel)
    for num_tokens, num_graphs in ((5, 1), (9, 1), (12, 1), (24, 2), (7, 2)):
        assert torch.equal(answer(model, num_tokens, compiled=True), answer(model, num_tokens))
        assert counter.frame_count == num_graphs
    assert model.language_model.config._attn_implementation == model.config._attn_implementation == kernel
    sampled = [
        (torch.manual_seed(0), model.generate(IDS, pixel_values=FIXED["pixel_values"], do_sample=True, **options))[1]
        for options in ({"max_new_tokens": 6}, {"max_new_tokens": 6, "compiled": True})
    ]
    assert torch.equal(*sampled)


def test_rows_beams_and_padding_are_answered_too(counter: Any) -> None:
    model = make_model()
    padded = torch.tensor([[0, 0, VOCABULARY_SIZE, 7], [VOCABULARY_SIZE, 7, 8, 9]])
    rows = {"input_ids": padded, "pixel_values": make_pixels(2), "min_new_tokens": 6, "max_new_tokens": 6}
    for options in ({}, {"num_beams": 2}, {"attention_mask": (padded > 0).long()}):
        plain = model.generate(**rows, do_sample=False, **options)
        assert torch.equal(model.generate(**rows, do_sample=False, **options, compiled=True), plain)
    assert counter.frame_count <= 3  # two rows, four, and two with padding


def test_weights_that_change_between_answers_count(counter: Any) -> None:
    model = make_model()
    answer(model, 6, compiled=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.randn(()).abs() + 0.5)
    assert torch.equal(answer(model, 6, compiled=True), answer(model, 6))
    other = make_model(null_token=True)
    assert torch.equal(answer(other, 6, compiled=True), answer(other, 6))


def test_the_model_is_left_as_it_was(counter: Any) -> None:
    model = make_model()
    answer(model, 3, compiled=True)
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not isinstance(module, decoding._SingleRowLinear)
    assert any(type(module) is nn.Linear for module in model.modules())


def test_what_cannot_be_compiled_is_an_error(counter: Any) -> None:
    with pytest.raises(ValueError, match=r"full attention.*compiled=True"):
        answer(make_model("gemma3_text"), 3, compiled=True)
    model = make_model()
    filled = model(IDS[:, :2], pixel_values=FIXED["pixel_values"], use_cache=True).cache
    with pytest.raises(ValueError, match="pass no cache"):
        answer(model, 3, compiled=True, cache=filled)
    concat = ConcatVlmForConditionalGeneration(_concat_config(model))
    with pytest.raises(ValueError, match="cross-attention"):
        answer(concat, 3, compiled=True)


def _concat_config(model: Any) -> Any:
    from agevlm import ConcatVlmConfig

    return ConcatVlmConfig(text_config=model.config.text_config, vision_config=model.config.vision_config)
