"""What transformers names differently from version to version: both names of the cache, as the running one does it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY_SIZE, make_model, make_pixels
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from agevlm import AgeVlmModel, ConcatVlmForConditionalGeneration
from agevlm.modeling.versions import CACHE, OLD_CACHE

IDS = torch.tensor([[7, VOCABULARY_SIZE, 8, 9, 10, 11]])


@contextmanager
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A failure where transformers warns or logs a warning."""
    logging.enable_propagation()
    caplog.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logging.disable_propagation()
    assert [record.message for record in caplog.records] == []


def make_models() -> list[Any]:
    """The AGE-VLM and the concatenation baseline, tiny."""
    model = make_model()
    parts = make_model()
    joined = ConcatVlmForConditionalGeneration.from_backbones(parts.language_model, parts.vision_model)
    return [model, joined]


@pytest.mark.parametrize("name", ["cache", OLD_CACHE])
@pytest.mark.parametrize("number", [0, 1])
def test_a_pass_takes_the_cache_under_both_names(number: int, name: str) -> None:
    model = make_models()[number]
    memory = model.encode_images(make_pixels(1))
    full = model(IDS, image_memory=memory).logits
    start = model(IDS[:, :4], image_memory=memory, use_cache=True)
    left_behind = name == OLD_CACHE != CACHE
    with pytest.warns(FutureWarning, match="Use `cache` instead") if left_behind else nullcontext():
        rest = model(IDS[:, 4:], image_memory=memory, **{name: start.cache})
    torch.testing.assert_close(rest.logits, full[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["cache", OLD_CACHE])
def test_generate_takes_it_too(name: str) -> None:
    model = make_model()
    told = {"pixel_values": make_pixels(1), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, **told)
    start = model(IDS[:, :4], pixel_values=told["pixel_values"], use_cache=True)
    left_behind = name == OLD_CACHE != CACHE
    with pytest.warns(FutureWarning, match="Use `cache` instead") if left_behind else nullcontext():
        assert torch.equal(model.generate(IDS, **told, **{name: start.cache}), expected)


def test_outputs_name_it_as_those_of_transformers_do() -> None:
    output = make_model()(IDS, pixel_values=make_pixels(1), use_cache=True)
    assert isinstance(output, CausalLMOutputWithPast)
    assert CACHE in output
    assert output[CACHE] is output.cache is getattr(output, CACHE)
    assert output.cache.get_seq_length() == IDS.shape[1]
    plain = AgeVlmModel(make_model().config)(IDS, pixel_values=make_pixels(1), use_cache=True)
    assert plain.cache.get_seq_length() == IDS.shape[1]


def test_a_cache_given_twice_is_refused_or_warned_of() -> None:
    model = make_model()
    cache = model(IDS[:, :1], use_cache=True).cache
    twice = {"cache": cache, OLD_CACHE: cache}
    expected = (
        pytest.warns(FutureWarning, match="Both") if CACHE != OLD_CACHE else pytest.raises(ValueError, match="twice")
    )
    with expected:
        model(IDS[:, :1], **twice)


@pytest.mark.parametrize("number", [0, 1])
def test_our_own_calls_say_nothing(number: int, caplog: pytest.LogCaptureFixture) -> None:
    model = make_models()[number]
    with quiet(caplog):
        memory = model.encode_images(make_pixels(1))
        start = model(IDS[:, :4], image_memory=memory, use_cache=True)
        rest = model(IDS[:, 4:], image_memory=memory, cache=start.cache, labels=IDS[:, 4:])
        rest.loss.backward()
        told: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        answers: list[Tensor] = [model.generate(IDS, image_memory=memory, **told, num_beams=beams) for beams in (1, 2)]
    assert all(answer.shape == (1, 9) for answer in answers)
