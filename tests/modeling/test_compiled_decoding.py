"""Answers with compiled layers: the same as without, one graph for all layers of a kind, and a model left as it was."""

from __future__ import annotations

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
    monkeypatch.setattr(decoding, "_compiled", lambda forward: torch.compile(forward, backend=backend, dynamic=True))
    return backend


def answer(model: Any, num_tokens: int, **options: Any) -> Any:
    return model.generate(IDS, **FIXED, **options, min_new_tokens=num_tokens, max_new_tokens=num_tokens)


def test_answers_are_the_same_with_one_graph_for_all_layers_of_a_kind(counter: Any) -> None:
    model = make_model(null_token=True)
    for num_tokens in (5, 9, 12):  # caches of three lengths
        assert torch.equal(answer(model, num_tokens, compiled=True), answer(model, num_tokens))
    assert counter.frame_count <= 3  # decoder and cross-attention, not one for each layer or length
    sampled = [
        (torch.manual_seed(0), model.generate(IDS, pixel_values=FIXED["pixel_values"], do_sample=True, **options))[1]
        for options in ({"max_new_tokens": 6}, {"max_new_tokens": 6, "compiled": True})
    ]
    assert torch.equal(*sampled)


def test_rows_and_beams_are_answered_too(counter: Any) -> None:
    model = make_model()
    rows = {"input_ids": IDS.expand(2, -1), "pixel_values": make_pixels(2), "min_new_tokens": 6, "max_new_tokens": 6}
    for options in ({}, {"num_beams": 2}):
        plain = model.generate(**rows, do_sample=False, **options)
        assert torch.equal(model.generate(**rows, do_sample=False, **options, compiled=True), plain)
    assert counter.frame_count <= 4


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
    cache = model(IDS[:, :2], pixel_values=FIXED["pixel_values"], use_cache=True).cache
    with pytest.raises(ValueError, match="pass no cache"):
        answer(model, 3, compiled=True, cache=cache)
    concat = ConcatVlmForConditionalGeneration(_concat_config(model))
    with pytest.raises(ValueError, match="cross-attention"):
        answer(concat, 3, compiled=True)


def _concat_config(model: Any) -> Any:
    from agevlm import ConcatVlmConfig

    return ConcatVlmConfig(text_config=model.config.text_config, vision_config=model.config.vision_config)
