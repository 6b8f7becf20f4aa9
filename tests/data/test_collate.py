"""Batches: shapes, padding, which text sees which picture, and guidance on the right tokens and cells."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from chats import ground, make_chat_processor, make_conversation
from PIL import Image

from agevlm.data.collate import Collator
from agevlm.data.masks import encode_mask
from agevlm.data.schema import RLE, Conversation, ImageSource, Message, Sample

GRID = (2, 4)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_chat_processor()


def make_image(name: str, shade: int = 0, size: tuple[int, int] = (16, 32)) -> ImageSource:
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1], (shade, shade, shade)).save(buffer, "PNG")
    return ImageSource(name, *size, data=buffer.getvalue())


def mask(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (16, 32)) -> RLE:
    whole = np.zeros(size, dtype=bool)
    whole[top:bottom, left:right] = True
    return encode_mask(whole)


def make_sample(name: str, num_images: int, *conversations: Conversation) -> Sample:
    images = tuple(make_image(f"{name}-{i}", shade=40 * i) for i in range(num_images))
    return Sample(name, images, tuple(replace(c, id=f"{name}/{i}") for i, c in enumerate(conversations)))


def collate(processor: Any, *samples: Sample, **settings: Any) -> dict[str, Any]:
    return Collator(processor, GRID, **settings)([(sample, None) for sample in samples])


SHORT = make_conversation("is there a fish?", "yes")
LONG = make_conversation("describe the picture.", "a red fish and an orange boat.")
BLIND = make_conversation("is there a fish?", "yes", images=0)


def test_rows_are_padded_on_the_left_and_labels_follow(processor: Any) -> None:
    batch = collate(processor, make_sample("a", 1, SHORT, LONG))
    ids, mask_, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    pad = processor.tokenizer.pad_token_id
    assert ids.shape == mask_.shape == labels.shape
    num_padded = int((mask_[0] == 0).sum())
    assert num_padded > 0 and mask_[0].tolist() == [0] * num_padded + [1] * (ids.shape[1] - num_padded)
    assert (ids[0, :num_padded] == pad).all() and bool((mask_[1] == 1).all())
    said = [processor.tokenizer.decode(ids[row][labels[row] != -100]) for row in range(2)]
    assert [text.strip() for text in said] == ["yes<|end|>", "a red fish and an orange boat.<|end|>"]
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    assert batch["sample_ids"] == ["a/0", "a/1"]
    assert "attention_rows" not in batch


@pytest.mark.parametrize(
    ("samples", "index", "per_image"),
    [
        ([(1, SHORT, LONG), (1, SHORT, SHORT)], [[0], [0], [1], [1]], 2),
        ([(1, SHORT, LONG), (1, SHORT)], [[0], [0], [1]], None),
        ([(1, SHORT, BLIND), (1, SHORT, SHORT)], [[0], [-1], [1], [1]], 2),
        ([(0, BLIND), (1, SHORT)], [[-1], [0]], None),
        ([(0, BLIND, BLIND)], [[-1], [-1]], None),
        ([(2, make_conversation("a", "b", images=2)), (1, SHORT)], [[0, 1], [2, -1]], None),
        ([(2, make_conversation("a", "b", images=2), SHORT, BLIND)], [[0, 1], [0, -1], [-1, -1]], None),
        ([(2, SHORT), (3, make_conversation("a", "b", images=3))], [[0, -1, -1], [2, 3, 4]], None),
    ],
    ids=["equal", "uneven", "one blind", "one without", "none", "several and one", "fewer shown", "two and three"],
)
def test_rows_know_their_pictures(
    samples: list[tuple[Any, ...]], index: list[list[int]], per_image: int | None, processor: Any
) -> None:
    made = [make_sample(str(i), num, *conversations) for i, (num, *conversations) in enumerate(samples)]
    batch = collate(processor, *made)
    assert batch["image_index"].tolist() == index
    assert batch.get("rows_per_image") == per_image
    num_images = sum(num for num, *_ in samples)
    assert len(batch.get("pixel_values", ())) == num_images
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert torch.equal(placeholders, (batch["image_index"] >= 0).sum(dim=1))


def test_pictures_come_in_the_order_of_the_samples(processor: Any) -> None:
    batch = collate(processor, make_sample("a", 3, SHORT), make_sample("b", 2, SHORT))
    shades = batch["pixel_values"].mean(dim=(1, 2, 3))
    assert batch["pixel_values"].shape == (5, 3, 32, 32)
    torch.testing.assert_close(shades[:2], shades[3:])
    assert shades[0] < shades[1] < shades[2]


def test_cached_features_stand_in_for_pictures(processor: Any) -> None:
    features = [np.full((num, 5, *GRID), num, dtype=np.float16) for num in (1, 2)]
    samples = [make_sample("a", 1, SHORT), make_sample("b", 2, SHORT), make_sample("c", 0, BLIND)]
    items = list(zip(samples, [*features, None], strict=True))
    batch = Collator(processor, GRID)(items)
    assert "pixel_values" not in batch
    assert batch["image_features"].dtype == torch.float32
    assert batch["image_features"][:, 0, 0, 0].tolist() == [1, 2, 2]
    mixed = Collator(processor, GRID)([(samples[0], features[0]), (samples[1], None)])
    assert len(mixed["pixel_values"]) == 3 and "image_features" not in mixed


# ---------------------------------------------------------------------------------------------------------- guidance


def guided_words(processor: Any, batch: dict[str, Any], row: int) -> list[tuple[str, int]]:
    """Guided tokens of a row, decoded, with their presence."""
    pairs = zip(batch["attention_rows"][row].tolist(), batch["guidance_present"][row].tolist(), strict=True)
    ids = batch["input_ids"][row]
    return [(processor.tokenizer.decode(ids[place]).strip(), present) for place, present in pairs if present >= 0]


def test_guidance_lies_on_the_words_and_on_the_position_before_the_answer(processor: Any) -> None:
    asked = ground(SHORT, 0, "fish", (mask(0, 0, 8, 8),))
    told = ground(ground(LONG, 1, "fish", (mask(0, 0, 8, 8),)), 1, "boat", (mask(8, 8, 16, 32),))
    absent = ground(SHORT, 0, "fish")
    batch = collate(processor, make_sample("a", 1, asked, told, absent, SHORT), guided=True)
    assert guided_words(processor, batch, 0) == [("fish", 1), ("<|assistant|>", 1)]
    assert guided_words(processor, batch, 1) == [("fish", 1), ("boat", 1)]
    assert guided_words(processor, batch, 2) == [("fish", 0), ("<|assistant|>", 0)]
    assert guided_words(processor, batch, 3) == []
    assert batch["guidance_shares"].shape == (4, 2, 8)
    assert batch["guidance_shares"][0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert batch["guidance_shares"][1, 1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch["guidance_shares"][2:].sum() == 0
    bare = collate(processor, make_sample("a", 1, asked), guided=True, answer_position=False)
    assert guided_words(processor, bare, 0) == [("fish", 1)]
    free = collate(processor, make_sample("a", 1, asked), guided=True, free_answers=(asked.kind,))
    assert guided_words(processor, free, 0) == [("fish", 1)]
    other = collate(processor, make_sample("a", 1, asked), guided=True, free_answers=("another kind",))
    assert guided_words(processor, other, 0) == [("fish", 1), ("<|assistant|>", 1)]


def test_the_answer_looks_at_all_that_was_asked_about(processor: Any) -> None:
    question = make_conversation("is there a fish and a boat in the picture?", "yes")
    both = ground(ground(question, 0, "fish", (mask(0, 0, 8, 8),)), 0, "boat", (mask(0, 4, 8, 16),))
    mixed = ground(ground(question, 0, "fish"), 0, "boat", (mask(0, 4, 8, 16),))
    batch = collate(processor, make_sample("a", 1, both, mixed), guided=True)
    assert guided_words(processor, batch, 0)[-1] == guided_words(processor, batch, 1)[-1] == ("<|assistant|>", 1)
    assert batch["guidance_shares"][0, 2].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert batch["guidance_shares"][1, 2].tolist() == [0.5, 1, 0, 0, 0, 0, 0, 0]


def test_several_instances_are_one_region(processor: Any) -> None:
    asked = ground(SHORT, 0, "fish", (mask(0, 0, 8, 8), mask(8, 24, 16, 32)))
    batch = collate(processor, make_sample("a", 1, asked), guided=True)
    assert batch["guidance_shares"][0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


def test_with_several_pictures_shares_lie_in_the_right_one(processor: Any) -> None:
    question = make_conversation("is there a fish in the picture?", "yes", images=2)
    asked = ground(question, 0, "fish", (mask(0, 0, 8, 8),), image=1)
    batch = collate(processor, make_sample("a", 2, asked), make_sample("b", 1, ground(SHORT, 0, "fish")), guided=True)
    assert batch["guidance_shares"].shape == (2, 2, 16)
    assert batch["guidance_shares"][0, 0].tolist() == [0] * 8 + [1] + [0] * 7
    assert guided_words(processor, batch, 1) == [("fish", 0), ("<|assistant|>", 0)]


def test_masks_of_any_size_scale_with_their_picture(processor: Any) -> None:
    large = make_image("large", size=(64, 64))
    asked = ground(SHORT, 0, "fish", (mask(0, 0, 32, 16, size=(64, 64)),))
    batch = collate(processor, Sample("a", (large,), (asked,)), guided=True)
    assert batch["guidance_shares"][0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_blind_rows_are_not_guided(processor: Any) -> None:
    asked = ground(BLIND, 0, "fish", (mask(0, 0, 8, 8),))
    batch = collate(processor, make_sample("a", 1, asked, SHORT), guided=True)
    assert (batch["guidance_present"] == -1).all()
    assert batch["attention_rows"].shape == (2, 1)
    assert batch["left_out"] == {"phrases about a picture that they do not see": 1}


def test_words_before_their_picture_are_not_guided(processor: Any) -> None:
    """A picture that comes in the second turn cannot be seen by the words of the first."""
    messages = (Message("user", "a fish", 1), Message("assistant", "yes"), Message("user", "a boat", 1))
    conversation = Conversation("x", "test", (*messages, Message("assistant", "no")))
    early = ground(conversation, 0, "fish", (mask(0, 0, 8, 8),), image=1)
    late = ground(conversation, 2, "boat", (mask(0, 0, 8, 8),), image=0)
    batch = collate(processor, make_sample("a", 2, early, late), guided=True)
    assert guided_words(processor, batch, 0) == []
    assert guided_words(processor, batch, 1) == [("boat", 1), ("<|assistant|>", 1)]


def test_what_is_not_guided_is_counted_by_reason(processor: Any) -> None:
    unknown = ground(SHORT, 0, "fish", present=None)
    far = ground(make_conversation("is there?", "yes", "is there a fish?", "no"), 2, "fish")
    batch = collate(processor, make_sample("a", 1, unknown, far), guided=True, max_length=11)
    assert batch["left_out"] == {
        "conversations cut at max_length": 1,
        "phrases that may be there or not": 1,
        "phrases cut at max_length": 1,
    }
    assert collate(processor, make_sample("a", 1, unknown), guided=True)["left_out"] != {}
    assert collate(processor, make_sample("a", 1, SHORT), guided=True)["left_out"] == {}


def test_a_row_cut_before_its_answer_stays_without_labels_and_guidance(processor: Any) -> None:
    far = ground(make_conversation("is there a fish? " * 8, "yes"), 0, "fish", (mask(0, 0, 8, 8),))
    batch = collate(processor, make_sample("a", 1, far, SHORT), guided=True, max_length=16)
    assert (batch["labels"] != -100).any(dim=1).tolist() == [False, True]
    assert (batch["guidance_present"] == -1).all()
    assert batch["sample_ids"] == ["a/0", "a/1"]
    assert batch["left_out"] == {
        "conversations cut at max_length": 1,
        "conversations cut before all that was to be learned": 1,
        "phrases cut at max_length": 1,
    }


def test_a_placeholder_that_was_cut_shows_no_picture(processor: Any) -> None:
    messages = (Message("user", "is there a fish?", 1), Message("assistant", "yes"), Message("user", "and here?", 1))
    conversation = Conversation("x", "test", (*messages, Message("assistant", "no")))
    sample = make_sample("a", 2, conversation)
    assert collate(processor, sample)["image_index"].tolist() == [[0, 1]]
    assert collate(processor, sample, max_length=11)["image_index"].tolist() == [[0, -1]]


# ------------------------------------------------------------------------------------------------------------ errors


def test_more_pictures_than_the_sample_has_are_an_error(processor: Any) -> None:
    with pytest.raises(ValueError, match="conversation a/0 shows 2 pictures, and its sample has 1"):
        collate(processor, make_sample("a", 1, make_conversation("a", "b", images=2)))


def test_samples_without_a_conversation_are_an_error(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"samples \['a', 'b'\] have no conversation"):
        collate(processor, make_sample("a", 1), make_sample("b", 1))


def test_a_batch_fits_the_model(processor: Any) -> None:
    """Rows with no, one and two pictures, guided, through a tiny network."""
    from tiny_models import make_text_config, make_vision_config

    from agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration

    config = AgeVlmConfig(
        text_config=make_text_config(vocab_size=len(processor.tokenizer)),
        vision_config=make_vision_config(),
        image_token_id=processor.image_token_id,
        null_token=True,
    )
    model = AgeVlmForConditionalGeneration(config)
    two = ground(make_conversation("is there a fish?", "yes", images=2), 0, "fish", (mask(0, 0, 8, 8),), image=1)
    samples = make_sample("a", 2, two), make_sample("b", 1, SHORT), make_sample("c", 0, BLIND)
    batch = Collator(processor, (4, 4), guided=True)([(sample, None) for sample in samples])
    shares = batch.pop("guidance_shares")
    outputs = model(**{k: v for k, v in batch.items() if k not in ("guidance_present", "sample_ids", "left_out")})
    assert torch.isfinite(outputs.loss)
    shape = (*batch["attention_rows"].shape, shares.shape[-1] + 1)
    assert all((len(w), *w.shape[2:]) == shape for w in outputs.row_weights)
