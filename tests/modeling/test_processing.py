"""The processor: whose image is whose, left padding, chat templates, disk, the pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import IMAGE_SIZE, add_bos, make_model, make_picture, make_processor, make_tokenizer
from transformers import AutoProcessor, ConvNextImageProcessorPil, pipeline

from agevlm import AgeVlmProcessor
from agevlm.data.chat import tokenise_conversation
from agevlm.data.schema import Conversation, Message
from agevlm.modeling.processing_agevlm import CLIP_MEAN, CLIP_STD, DEFAULT_CHAT_TEMPLATE

CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a fish ?"}]},
    {"role": "assistant", "content": "yes ."},
    {"role": "user", "content": "how many ?"},
]
TEXT_ONLY_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} {% endfor %}"


def test_rows_with_no_one_and_several_images_are_padded_on_the_left() -> None:
    processor = make_processor()
    pictures = [make_picture(seed) for seed in range(3)]
    texts = ["<image> is there a fish ?", "yes", "<image> a <image> boat"]
    batch = processor(images=[pictures[:1], [], pictures[1:]], text=texts)
    assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert batch["image_index"].tolist() == [[0, -1], [-1, -1], [1, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [0] * 5 + [1], [0, 0, 1, 1, 1, 1]]
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [1, 0, 2]
    flat = processor(images=pictures, text=texts)
    assert all(torch.equal(flat[key], batch[key]) for key in batch)
    alone = processor(images=pictures[0], text=texts[0])
    assert torch.equal(alone["pixel_values"][0], batch["pixel_values"][0])
    assert "pixel_values" not in processor(text="is there a fish ?")


def test_the_batch_goes_into_the_model_and_equals_its_members() -> None:
    processor, model = make_processor(), make_model()
    assert processor.image_token_id == model.config.image_token_id
    assert processor.image_token_id == model.config.text_config.vocab_size  # outside the decoder's table
    pictures = [make_picture(seed) for seed in range(3)]
    texts = ["<image> is there a fish ?", "how many ?", "<image> a <image> boat"]
    images: list[list[Any]] = [pictures[:1], [], pictures[1:]]
    together = model.generate(**processor(images=images, text=texts), min_new_tokens=4, max_new_tokens=4)
    for row, text in enumerate(texts):
        alone = model.generate(**processor(images=images[row], text=text), min_new_tokens=4, max_new_tokens=4)
        assert torch.equal(together[row, -4:], alone[0, -4:])
    words = processor.batch_decode(together, skip_special_tokens=True)
    assert words[1].startswith("how many ?")


def test_the_whole_picture_is_squeezed_into_the_square() -> None:
    processor = make_processor()
    picture = np.zeros((20, 60, 3), dtype=np.uint8)
    picture[:, :6] = 255  # the leftmost tenth, which a central crop would lose
    pixels = processor(images=picture, text="<image> a")["pixel_values"][0]
    white, black = [(value - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD) for value in (1.0, 0.0)]
    torch.testing.assert_close(pixels[:, IMAGE_SIZE // 2, 0], white.float(), atol=0.1, rtol=0)
    torch.testing.assert_close(pixels[:, IMAGE_SIZE // 2, 10], black.float(), atol=0.1, rtol=0)
    assert pixels.shape == (3, IMAGE_SIZE, IMAGE_SIZE)


def test_pictures_come_as_files_arrays_grey_or_transparent(tmp_path: Any) -> None:
    processor = make_processor()
    picture = make_picture()
    picture.save(tmp_path / "p.png")
    expected = processor(images=picture, text="<image> a")["pixel_values"]
    for same in (str(tmp_path / "p.png"), np.asarray(picture), picture.convert("RGBA")):
        torch.testing.assert_close(processor(images=same, text="<image> a")["pixel_values"], expected)
    for mode in ("L", "P", "1"):
        assert processor(images=picture.convert(mode), text="<image> a")["pixel_values"].shape == expected.shape


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (None, "", "text is empty"),
        (None, None, "text is empty"),
        (None, ["a", "  "], "text is empty"),
        (None, "<image> a", r"\[1\] <image> placeholders, 1 in all, but 0 images"),
        (make_picture(), "a", r"\[0\] <image> placeholders, 0 in all, but 1 images"),
        ([make_picture()] * 3, ["<image> a", "<image> b"], r"2 in all, but 3 images"),
        ([[make_picture()] * 2, []], ["<image> a", "<image> b"], r"\[1, 1\] <image> placeholders and \[2, 0\] images"),
    ],
)
def test_text_and_images_that_do_not_fit_are_named(images: Any, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_processor()(images=images, text=text)


def test_a_placeholder_that_was_cut_off_is_named() -> None:
    with pytest.raises(ValueError, match=r"but \[0\] were left as tokens: raise max_length"):
        make_processor()(images=make_picture(), text="a a a <image>", truncation=True, max_length=2)


def test_chat_without_a_template_reads_by_turns() -> None:
    text = make_processor().apply_chat_template(CHAT, add_generation_prompt=True)
    assert text == "user: <image>is there a fish ?\nassistant: yes .<eos>\nuser: how many ?\nassistant:"


def test_chat_with_a_template_made_for_text() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEXT_ONLY_TEMPLATE
    processor = AgeVlmProcessor.from_backbones(tokenizer, IMAGE_SIZE)
    assert processor.apply_chat_template(CHAT[:1]) == "[user] <image>is there a fish ? "
    assert CHAT[0]["content"][0] == {"type": "image"}  # the conversation stays as it was
    assert "<image>" not in tokenizer.get_vocab()  # so does the tokenizer


def test_a_beginning_that_the_tokenizer_adds_stands_in_front_of_a_chat_and_once() -> None:
    processor = AgeVlmProcessor.from_backbones(add_bos(make_tokenizer()), IMAGE_SIZE)
    chat = [{"role": "user", "content": [{"type": "image", "image": make_picture()}, {"type": "text", "text": "a ?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<bos>user: <image>a ?\nassistant:"
    shown = [Message("user", "a ?", 1), Message("assistant", "yes .")]
    ids = tokenise_conversation(processor, Conversation("c", "test", tuple(shown))).input_ids
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True}
    for given in (
        processor.apply_chat_template(chat, **options)["input_ids"],
        processor.apply_chat_template([chat], **options)["input_ids"],
        processor(images=make_picture(), text=text)["input_ids"],
    ):
        assert given[0].tolist() == ids[: len(given[0])]
    assert processor(text=[text.replace("<image>", ""), "a"])["input_ids"][1, -2:].tolist() == [1, 5]


def test_a_beginning_of_text_is_taken_from_the_tokenizer_alone() -> None:
    plain, begun = make_tokenizer(), add_bos(make_tokenizer())
    plain_processor = AgeVlmProcessor.from_backbones(plain, IMAGE_SIZE)
    assert plain_processor.chat_template == DEFAULT_CHAT_TEMPLATE
    assert plain_processor(text="<bos>a")["input_ids"].tolist() == [[1, 5]]
    begun.chat_template = TEXT_ONLY_TEMPLATE
    processor = AgeVlmProcessor.from_backbones(begun, IMAGE_SIZE)
    assert processor.chat_template == TEXT_ONLY_TEMPLATE
    assert processor(text="a")["input_ids"].tolist() == [[1, 5]]
    assert processor(text="<bos>a", add_special_tokens=True)["input_ids"].tolist() == [[1, 1, 5]]


def test_chat_to_tensors_with_images_and_the_answers_marked(tmp_path: Any) -> None:
    make_picture(1).save(tmp_path / "p.png")
    processor = make_processor()
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": make_picture()}, {"type": "text", "text": "a"}]}],
        [{"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "two"}],
        [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "p.png")}]}],
    ]
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert batch["image_index"].tolist() == [[0], [-1], [1]]
    assert batch["pixel_values"].shape[0] == 2
    masks = torch.tensor(batch["assistant_masks"])
    assert masks.sum(1).tolist() == [0, 2, 0]
    assert processor.decode(batch["input_ids"][1][masks[1] == 1]).split() == ["two", "<eos>"]
    single = processor.apply_chat_template(chats[0], tokenize=True, return_dict=True)
    assert single["image_index"].tolist() == [[0]]


def test_a_processor_takes_over_an_image_processor_but_not_its_cropping(tmp_path: Any) -> None:
    theirs = ConvNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_pct=0.5, image_mean=[0.1] * 3, image_std=[2] * 3
    )
    theirs.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for given in (theirs, tmp_path, str(tmp_path)):
        processor = AgeVlmProcessor.from_backbones(tmp_path, given)
        batch = processor(images=make_picture(size=(90, 30)), text="<image> a")
        assert batch["pixel_values"].shape == (1, 3, 48, 48)
        assert list(processor.image_processor.image_mean) == [0.1] * 3
    ours = AgeVlmProcessor.from_backbones(tmp_path, theirs, image_mean=[0.5] * 3)
    assert list(ours.image_processor.image_mean) == [0.5] * 3


def test_a_missing_padding_token_is_the_end_of_text() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    processor = AgeVlmProcessor.from_backbones(tokenizer, IMAGE_SIZE)
    assert processor.tokenizer.pad_token == "<eos>"
    assert processor(text=["a", "a boat"])["input_ids"].tolist() == [[2, 5], [5, 9]]


def test_a_processor_survives_the_disk(tmp_path: Any) -> None:
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    make_model().config.save_pretrained(tmp_path)
    for again in (AgeVlmProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is AgeVlmProcessor
        assert again.image_token_id == processor.image_token_id
        assert again.chat_template == processor.chat_template
        expected = processor(images=make_picture(), text="<image> a")
        got = again(images=make_picture(), text="<image> a")
        assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_the_pipeline_answers(tmp_path: Any) -> None:
    model, processor = make_model(), make_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("image-text-to-text", model=str(tmp_path))
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": make_picture()}, {"type": "text", "text": "is there a fish ?"}],
        }
    ]
    answer = pipe(text=chat, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    expected = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    assert answer.split() == processor.decode(expected[0], skip_special_tokens=True).split()
    plain = pipe(images=make_picture(), text="<image> is there a fish ?", max_new_tokens=3)
    assert plain[0]["generated_text"].startswith("<image> is there a fish ?")
