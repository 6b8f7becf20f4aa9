"""The concatenation baseline: what it sees, packing, cache, generation, weights, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    VOCABULARY_SIZE,
    make_model,
    make_picture,
    make_pixels,
    make_processor,
    make_text_config,
    make_vision_config,
)
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from agevlm import AgeVlmForConditionalGeneration, ConcatVlmConfig, ConcatVlmForConditionalGeneration
from agevlm.analysis.attention import look
from agevlm.modeling.versions import checkpoint_activations

IMAGE = VOCABULARY_SIZE
DECODERS = ("llama", "qwen3")


def make_concat(decoder: str = "llama", **fields: Any) -> Any:
    torch.manual_seed(0)
    config = ConcatVlmConfig(text_config=make_text_config(decoder), vision_config=make_vision_config(), **fields)
    model = ConcatVlmForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    return model


def make_ids(*places: tuple[int, ...], length: int = 9, seed: int = 0) -> Tensor:
    ids = torch.randint(5, VOCABULARY_SIZE, (len(places), length), generator=torch.Generator().manual_seed(seed))
    for row, columns in enumerate(places):
        ids[row, list(columns)] = IMAGE
    return ids


@pytest.mark.parametrize("decoder", DECODERS)
def test_text_alone_is_the_decoder_exactly(decoder: str) -> None:
    model, ids = make_concat(decoder), make_ids((), ())
    assert torch.equal(model(ids).logits, model.language_model(ids).logits)


@pytest.mark.parametrize("decoder", DECODERS)
def test_image_tokens_stand_in_front_of_the_text(decoder: str) -> None:
    model, ids = make_concat(decoder), make_ids((0,), (0,))
    pixels = make_pixels(2)
    tokens = model.encode_images(pixels).tokens
    embeds = torch.cat([tokens, model.embed_text(ids)], dim=1)
    whole = model.language_model(inputs_embeds=embeds).logits[:, tokens.shape[1] :]
    assert torch.allclose(model(ids, pixel_values=pixels).logits, whole, atol=1e-5)


def test_rows_that_see_no_image_do_not_move_and_the_others_do() -> None:
    model, ids = make_concat(), make_ids((1,), ())
    before = model(ids, pixel_values=make_pixels(1, seed=0)).logits
    after = model(ids, pixel_values=make_pixels(1, seed=1)).logits
    assert torch.equal(before[1], after[1])
    assert torch.allclose(before[1], model.language_model(ids[1:]).logits[0], atol=1e-5)
    assert torch.equal(before[0, :1], after[0, :1])  # in front of the placeholder
    assert not torch.allclose(before[0, 1:], after[0, 1:], atol=1e-3)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_packed_rows_are_the_rows_alone(kernel: str) -> None:
    model = make_concat()
    model.set_attn_implementation(kernel)
    ids = make_ids((3,), (0,), (2,), (), (2,), (4,))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[4, :1] = 0
    pixels = make_pixels(2)
    seen = (ids == IMAGE).cumsum(-1)
    packed = model(ids, mask, pixel_values=pixels, rows_per_image=3, images_seen=seen)
    for row in range(6):
        start = int((mask[row] == 0).sum())
        shown = {"pixel_values": pixels[row // 3 : row // 3 + 1]} if seen[row, -1] else {}
        alone = model(ids[row : row + 1, start:], **shown).logits[0]
        assert torch.allclose(packed.logits[row, start:], alone, atol=1e-5)


def test_several_images_are_seen_from_their_placeholders_on() -> None:
    model, ids = make_concat(), make_ids((0, 4), (2,))
    pixels = make_pixels(3)
    changed = pixels.clone()
    changed[1] += 1
    before, after = model(ids, pixel_values=pixels).logits, model(ids, pixel_values=changed).logits
    assert torch.equal(before[0, :4], after[0, :4])
    assert not torch.allclose(before[0, 4:], after[0, 4:], atol=1e-3)
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("decoder", DECODERS)
def test_cached_decoding_equals_the_full_forward(decoder: str) -> None:
    model, ids = make_concat(decoder), make_ids((3,), (0,))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    memory = model.encode_images(make_pixels(2))
    full = model(ids, mask, image_memory=memory, rows_per_image=1).logits
    first = model(ids[:, :6], mask[:, :6], image_memory=memory, rows_per_image=1, use_cache=True, logits_to_keep=1)
    assert first.logits.shape[1] == 1
    assert torch.allclose(first.logits[:, -1], full[:, 5], atol=1e-5)
    rest = model(ids[:, 6:], mask, image_memory=memory, rows_per_image=1, cache=first.cache, use_cache=True)
    assert torch.allclose(rest.logits, full[:, 6:], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_generation_equals_the_forward_spelt_out(options: dict[str, Any]) -> None:
    model, ids = make_concat(), make_ids((3,), (0,))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, **options}
    pixels = make_pixels(2)
    cached = model.generate(ids, attention_mask=mask, pixel_values=pixels, **settings)
    uncached = model.generate(ids, attention_mask=mask, pixel_values=pixels, use_cache=False, **settings)
    assert torch.equal(cached, uncached)
    if not options:
        spelt = ids
        for _ in range(4):
            now = torch.cat([mask, mask.new_ones(2, spelt.shape[1] - ids.shape[1])], dim=1)
            spelt = torch.cat([spelt, model(spelt, now, pixel_values=pixels).logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(cached, spelt)


@pytest.mark.parametrize("decoder", DECODERS)
def test_images_put_in_front_once_serve_every_question(decoder: str) -> None:
    model, ids = make_concat(decoder), make_ids((0,), (2,), (1,))
    memory, shown, rows = model.encode_images(make_pixels(2)), [1, 0, 1], torch.tensor([[3], [4], [5]])
    told = {"image_memory": memory.select(shown), "rows_per_image": 1, "attention_rows": rows, "use_cache": True}
    mask = torch.tensor([[1] * 9, [1] * 9, [0] + [1] * 8])
    alone = model(ids, attention_mask=mask, **told)
    front = model.prefill_images(memory)
    told["image_memory"] = front.select(shown)
    behind = model(ids, attention_mask=mask, cache=DynamicCache(), **told)
    assert torch.allclose(behind.logits, alone.logits, atol=1e-5)
    for one, other in zip(behind.row_weights, alone.row_weights, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert behind.cache.get_seq_length() == memory.tokens.shape[1] + ids.shape[1]
    assert front.prefilled.get_seq_length() == memory.tokens.shape[1]  # as it was: for the next questions


def test_asked_weights_are_the_image_part_of_self_attention() -> None:
    model, ids = make_concat(), make_ids((3,), (0,), (), (1,))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    rows = torch.tensor([[4, 8], [2, 5], [1, 2], [0, 3]])
    pixels, seen = make_pixels(2), (ids == IMAGE).cumsum(-1)
    output = model(
        ids,
        mask,
        pixel_values=pixels,
        rows_per_image=2,
        images_seen=seen,
        attention_rows=rows,
        output_attention_maps=True,
    )
    assert len(output.row_weights) == len(output.attention_maps) == model.config.num_guided_layers == 4
    for weights, maps in zip(output.row_weights, output.attention_maps, strict=True):
        assert weights.shape == (4, 4, 2, 16)
        assert maps.shape == (4, 4, 9, 1, 4, 4)
        sums = weights.sum(-1)
        assert torch.allclose(sums[[0, 1]], torch.ones(2, 4, 2))
        assert (sums[2] == 0).all()
        assert (sums[3, :, 0] == 0).all()
        assert torch.allclose(weights[0, :, 1], maps[0, :, 8].flatten(1))
    alone = model(ids[1:2], pixel_values=pixels[:1], output_attentions=True)
    expected = alone.attentions[2][0, :, 16 + 5, :16]
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(output.row_weights[2][1, :, 1], expected, atol=1e-5)


def test_weights_are_the_same_whatever_the_kernel_which_stays() -> None:
    model, ids = make_concat(), make_ids((0,))
    asked = {"pixel_values": make_pixels(1), "attention_rows": torch.tensor([[1, 5]])}
    eager = model(ids, **asked)
    model.set_attn_implementation("sdpa")
    other = model(ids, **asked)
    assert torch.equal(other.row_weights[3], eager.row_weights[3])
    assert model.language_model.config._attn_implementation == "sdpa"


def test_decoders_that_lose_sight_of_the_front_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gemma3_text.*sliding attention"):
        make_concat("gemma3_text")


def test_pooling_averages_squares_of_cells() -> None:
    whole, pooled = make_concat(image_positions=False), make_concat(image_positions=False, pool_size=2)
    pixels = make_pixels(1)
    tokens = whole.encode_images(pixels).tokens.unflatten(1, (4, 4))
    memory = pooled.encode_images(pixels)
    assert memory.grid == (2, 2)
    assert torch.allclose(memory.tokens[0, 1], tokens[0, :2, 2:].mean((0, 1)), atol=1e-5)
    with pytest.raises(ValueError, match="pool_size=0"):
        make_concat(pool_size=0)


def test_it_is_joined_saved_and_loaded_as_the_other(tmp_path: Path) -> None:
    parts = make_model()
    joined = ConcatVlmForConditionalGeneration.from_backbones(parts.language_model, parts.vision_model, pool_size=2)
    ids, pixels = make_ids((0,)), make_pixels(1)
    before = joined(ids, pixel_values=pixels).logits
    joined.save_pretrained(tmp_path / "concat")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "concat")
    assert isinstance(again, ConcatVlmForConditionalGeneration)
    assert torch.equal(again(ids, pixel_values=pixels).logits, before)
    with pytest.raises(ValueError, match="agevlm_concat"):
        AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "concat")


def test_look_shows_where_it_looked() -> None:
    processor = make_processor()
    seen = look(make_concat(), processor, make_picture(), "is there a fish ?", vocabulary=["fish"], max_new_tokens=3)
    assert seen.words[0].map.shape == (4, 4)
    assert seen.words[0].map.sum() == pytest.approx(1, abs=1e-4)
    assert seen.words[0].null_mass is None


def test_gradient_checkpointing_changes_nothing() -> None:
    model, ids = make_concat(), make_ids((0,), (0,))
    pixels, rows = make_pixels(2), torch.tensor([[2], [3]])

    def gradients() -> list[Tensor]:
        model.zero_grad()
        output = model(ids, pixel_values=pixels, labels=ids.clamp(max=VOCABULARY_SIZE - 1), attention_rows=rows)
        (output.loss + output.row_weights[-1].square().sum()).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    model.train()
    plain = gradients()
    checkpoint_activations(model, True)
    for one, other in zip(plain, gradients(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
