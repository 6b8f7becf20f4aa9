"""Text and pictures to the tensors of an AGE-VLM: chat template, placeholders, left padding, pixels, whose is whose.

One `<image>` in the text stands for one picture. Pictures are squeezed whole into the model's square: nothing is cut
off, so a share of the picture's width is the same share of the grid's width, and so with the height.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature, ViTImageProcessorPil
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from .chat_template import adds_bos, without_system_prompt
from .language import is_gguf, load_tokenizer
from .loading import reading
from .timm_models import is_timm, timm_pixels

IMAGE_TOKEN = "<image>"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ':' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def default_chat_template(tokenizer: Any) -> str:
    """The template that stands in for a missing one: turns by role, behind the beginning of text where that is usual.

    Chats are tokenised as they are, so what a tokenizer adds to a text by itself has to be in the template.
    """
    return "{{ bos_token }}" * adds_bos(tokenizer) + DEFAULT_CHAT_TEMPLATE


class AgeVlmProcessor(ProcessorMixin):
    """A tokenizer and an image processor as one.

    `<image>` is added to the tokenizer as a special token where it is missing, and the end of text stands in for a
    missing padding token. Without a chat template of its own or of its tokenizer, turns read `user: …` and
    `assistant: …`, an answer ending with the end of text, and the beginning of text stands in front of all where the
    tokenizer adds it by itself. A tokenizer without an end of text is a ValueError.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        image_token: str = IMAGE_TOKEN,
        **kwargs: Any,
    ):
        if tokenizer.eos_token is None:
            name = tokenizer.name_or_path or type(tokenizer).__name__
            where = "take a GGUF file with one" if is_gguf(name) else "name one in its tokenizer_config.json"
            raise ValueError(
                f"the tokenizer {name} has no token for the end of text (eos_token), with which an answer ends: {where}"
            )
        if image_token not in tokenizer.get_vocab():
            tokenizer.add_special_tokens(
                {"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        template = chat_template or getattr(tokenizer, "chat_template", None) or default_chat_template(tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=template)
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    @classmethod
    def from_backbones(
        cls,
        tokenizer: str | PathLike[str] | Any,
        image_processor: str | PathLike[str] | int | Any,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        default_system_prompt: bool = True,
        **kwargs: Any,
    ) -> Self:
        """A processor for any pair of backbones.

        `tokenizer` is a directory, a hub id, a GGUF file or an object, which is copied. `image_processor` is the side
        of the square in pixels (then mean and standard deviation are CLIP's unless given), or a directory, hub id,
        `timm/NAME` or object whose size, mean and standard deviation are taken over; cropping is not.
        `default_system_prompt` says whether the chat template may begin a conversation with a system prompt of its own.
        """
        tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | PathLike) else copy.deepcopy(tokenizer)
        processor = cls(squeezing_processor(image_processor, image_mean, image_std), tokenizer, **kwargs)
        if not default_system_prompt:
            template = without_system_prompt(tokenizer, processor.chat_template)
            processor.chat_template = tokenizer.chat_template = template
        return processor

    @property
    def model_input_names(self) -> list[str]:
        """The tensors that a call gives; the last two only where there are images."""
        return ["input_ids", "attention_mask", "pixel_values", "image_index"]

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, *, chat_images: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Rows of text and their pictures as tensors, padded on the left.

        Args:
            images: pictures (PIL, array, path or URL): one, a flat list in the order of the rows, or one list a row.
            text: one row or several, each with one `<image>` for each of its pictures. A beginning of text that all
                rows have, as from a chat template, is not added once more.
            kwargs: for the tokenizer and the image processor, as for any processor of transformers.

        Returns:
            `input_ids` and `attention_mask` (R, T), and where there are pictures `pixel_values` (I, 3, S, S) in the
            order of the rows and `image_index` (R, M), the indices of each row's pictures, -1 for none.

        Raises:
            ValueError: empty text, or pictures and placeholders that differ in number.
        """
        images = images if chat_images is None else chat_images  # those of `apply_chat_template`
        rows = [text] if isinstance(text, str) else list(text or [])
        if not rows or any(not isinstance(row, str) or not row.strip() for row in rows):
            raise ValueError(f"text is empty: every row needs text besides its images, got {text!r}")
        num_images = [row.count(self.image_token) for row in rows]
        pictures = [_as_picture(image) for image in self._in_row_order(images, num_images)]
        options = {"return_tensors": "pt", "padding": True, "padding_side": "left", **kwargs}
        merged = self._merge_kwargs(self.valid_processor_kwargs, self.tokenizer.init_kwargs, **options)
        if "add_special_tokens" not in merged["text_kwargs"] and self._begin_with_bos(rows):
            merged["text_kwargs"]["add_special_tokens"] = False
        data = dict(self.tokenizer(rows, **merged["text_kwargs"]))
        self._check_tokens(data["input_ids"], num_images)
        if pictures:
            data["pixel_values"] = self.image_processor(pictures, **merged["images_kwargs"])["pixel_values"]
            data["image_index"] = _image_index(num_images)
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        chat_template: str | None = None,
        tokenize: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As for any processor of transformers, whatever the template: contents become plain text before it.

        A content is a string, or a list of `{"type": "image", "image" | "url" | "path": …}` and
        `{"type": "text", "text": …}`; an image becomes `<image>`. With `tokenize` and `return_dict` the pictures in it
        are processed too.
        """
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        conversations = conversation if batched else [conversation]
        flat = [[self._flatten(message) for message in messages] for messages in conversations]
        processor_kwargs = dict(processor_kwargs or {})
        images = [[image for message in messages for image in _pictures(message)] for messages in conversations]
        if tokenize and any(images):
            processor_kwargs["chat_images"] = images if batched else images[0]  # transformers passes `images` itself
        return super().apply_chat_template(
            flat if batched else flat[0],
            chat_template=chat_template,
            tokenize=tokenize,
            processor_kwargs=processor_kwargs,
            **kwargs,
        )

    def _begin_with_bos(self, rows: Sequence[str]) -> bool:
        """Whether all rows begin with what the tokenizer would put in front of them."""
        bos = self.tokenizer.bos_token
        return bool(bos) and all(row.startswith(bos) for row in rows) and adds_bos(self.tokenizer)

    def _flatten(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, list | tuple):
            content = "".join(
                self.image_token if item["type"] in ("image", "image_url") else item["text"] for item in content
            )
        return {**message, "content": content}

    def _in_row_order(self, images: Any, num_images: list[int]) -> list[Any]:
        """The pictures one after another, after checking them against the placeholders of each row."""
        given = _as_list(images)
        if given and isinstance(given[0], list | tuple):
            got = [len(row) for row in given]
            if got != num_images:
                raise ValueError(
                    f"the rows of text have {num_images} {self.image_token} placeholders and {got} images: "
                    "give each image one placeholder in its row"
                )
            return [image for row in given for image in row]
        if len(given) != sum(num_images):
            raise ValueError(
                f"the rows of text have {num_images} {self.image_token} placeholders, {sum(num_images)} in all, "
                f"but {len(given)} images are given: give each image one placeholder"
            )
        return given

    def _check_tokens(self, input_ids: Any, num_images: list[int]) -> None:
        rows = input_ids.tolist() if isinstance(input_ids, Tensor) else [list(row) for row in input_ids]
        got = [row.count(self.image_token_id) for row in rows]
        if got != num_images:
            raise ValueError(
                f"the rows of text have {num_images} {self.image_token} placeholders, but {got} were left as tokens: "
                "raise max_length, or shorten the text"
            )


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _as_picture(image: Any) -> Any:
    """A picture in RGB, upright; arrays and tensors are left to the image processor."""
    return image if hasattr(image, "shape") else load_image(image)


def _pictures(message: dict[str, Any]) -> list[Any]:
    """The pictures that a message's content carries."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return []
    found = []
    for item in content:
        if item["type"] == "image_url":
            url = item["image_url"]
            found.append(url["url"] if isinstance(url, dict) else url)
        elif item["type"] == "image":
            found.extend(item[key] for key in ("image", "url", "path", "base64") if key in item)
    return found


def _image_index(num_images: list[int]) -> Tensor:
    index = torch.full((len(num_images), max(num_images)), -1)
    start = 0
    for row, number in enumerate(num_images):
        index[row, :number] = torch.arange(start, start + number)
        start += number
    return index


def squeezing_processor(
    image_processor: str | PathLike[str] | int | Any,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> Any:
    """An image processor that squeezes whole pictures into the square of another one, or of a side in pixels.

    See `AgeVlmProcessor.from_backbones`.
    """
    if isinstance(image_processor, str | PathLike) and is_timm(image_processor):
        side, mean, std = timm_pixels(image_processor)
        return squeezing_processor(side, image_mean or mean, image_std or std)
    if isinstance(image_processor, str | PathLike):
        with reading(image_processor, "image processor"):
            image_processor = AutoImageProcessor.from_pretrained(image_processor, trust_remote_code=False)
    return ViTImageProcessorPil(
        size=_square(image_processor),
        image_mean=list(image_mean or getattr(image_processor, "image_mean", None) or CLIP_MEAN),
        image_std=list(image_std or getattr(image_processor, "image_std", None) or CLIP_STD),
        resample=3,  # bicubic
    )


def _square(image_processor: Any) -> dict[str, int]:
    """The square that an image processor makes, whatever it calls it."""
    if isinstance(image_processor, int):
        return {"height": image_processor, "width": image_processor}
    size = image_processor.size
    if getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None):
        size = image_processor.crop_size  # what the network sees, of a picture resized to a little more
    side = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    if side is None:
        raise ValueError(f"the image processor's size {size} names no side: pass the side of the square in pixels")
    return {"height": side, "width": size.get("width") or side}


__all__ = ["DEFAULT_CHAT_TEMPLATE", "IMAGE_TOKEN", "AgeVlmProcessor"]
