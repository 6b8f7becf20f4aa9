"""The images of one call, in any of the forms that a caller may give them, made into a memory and a visibility.

Letters: R rows of text, T text tokens, I images, M images of a row at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .cross_attention import ImageMemory
from .interleaving import Visibility, count_images_seen, index_images


class ImageEncoder(Protocol):
    """Whatever makes an image memory: the model."""

    def encode_images(self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None) -> ImageMemory:
        """As `AgeVlmModel.encode_images`."""


@dataclass(frozen=True)
class ImageInputs:
    """The image arguments of `forward` and `generate`, which explain them."""

    pixel_values: Tensor | None = None
    image_features: Tensor | None = None
    image_memory: ImageMemory | None = None
    image_index: Tensor | None = None
    images_seen: Tensor | None = None
    rows_per_image: int | None = None

    def encoded_by(self, model: ImageEncoder) -> ImageInputs:
        """The same images as a memory; without images, the same. ValueError where they are given in two forms."""
        given = [name for name in ("pixel_values", "image_features", "image_memory") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"images are given twice, as {' and '.join(given)}: pass one of them")
        if not given or self.image_memory is not None:
            return self
        memory = model.encode_images(self.pixel_values, image_features=self.image_features)
        return replace(self, pixel_values=None, image_features=None, image_memory=memory)

    def visibility(
        self, text_shape: torch.Size, input_ids: Tensor | None, image_token_id: int, cache: Any = None
    ) -> Visibility | None:
        """Which text sees which image of the memory, or None where there is no image; checks all counts.

        `text_shape` is (R, T). Where `images_seen` is not given, the placeholders in `input_ids` tell.
        """
        num_images = 0 if self.image_memory is None else len(self.image_memory)
        if self.rows_per_image is not None and text_shape[0] != num_images * self.rows_per_image:
            raise ValueError(
                f"rows_per_image={self.rows_per_image} of {num_images} images make "
                f"{num_images * self.rows_per_image} rows, got {text_shape[0]}"
            )
        if self.images_seen is not None:
            return self._as_told(num_images, text_shape)
        if input_ids is None:
            if num_images:
                raise ValueError("with inputs_embeds the placeholders are not known: pass images_seen")
            return None
        return self._by_placeholders(num_images, input_ids, image_token_id, cache)

    def _as_told(self, num_images: int, text_shape: torch.Size) -> Visibility | None:
        assert self.images_seen is not None
        if self.images_seen.shape != text_shape:
            raise ValueError(
                f"images_seen has the shape {tuple(self.images_seen.shape)}, the text has {tuple(text_shape)}"
            )
        if not num_images:
            return None
        index = self.image_index
        if index is None and self.rows_per_image is None:
            wanted = self.images_seen.amax(dim=1)
            _check_total(int(wanted.sum()), num_images)
            index = index_images(wanted)
        return Visibility(self.images_seen, index, self.rows_per_image)

    def _by_placeholders(
        self, num_images: int, input_ids: Tensor, image_token_id: int, cache: Any
    ) -> Visibility | None:
        seen_RT = count_images_seen(input_ids, image_token_id)
        here_R = seen_RT[:, -1]
        if not num_images:
            _check_total(int(here_R.sum()), 0)
            return None
        continues = cache is not None and int(cache.get_seq_length()) > 0
        of_row_R = self._images_of_rows(num_images, here_R, continues)
        if bool((here_R > of_row_R).any() if continues else (here_R != of_row_R).any()):
            raise ValueError(
                f"the rows of text have {here_R.tolist()} image placeholders and {of_row_R.tolist()} images: "
                f"give each image one placeholder, token {image_token_id}, in its row"
            )
        index = self.image_index
        if index is None and self.rows_per_image is None:
            index = index_images(of_row_R)
        return Visibility(seen_RT + (of_row_R - here_R)[:, None], index, self.rows_per_image)

    def _images_of_rows(self, num_images: int, placeholders_R: Tensor, continues: bool) -> Tensor:
        """How many images each row has."""
        if self.rows_per_image is not None:
            return torch.ones_like(placeholders_R)
        if self.image_index is not None:
            if int(self.image_index.max()) >= num_images:
                raise ValueError(f"image_index asks for image {int(self.image_index.max())} of {num_images}")
            return (self.image_index >= 0).sum(dim=1)
        if not continues:
            _check_total(int(placeholders_R.sum()), num_images)
            return placeholders_R
        rows = placeholders_R.shape[0]
        if rows == 1 or num_images == rows:
            return torch.full_like(placeholders_R, num_images // rows)
        raise ValueError(
            f"{num_images} images and {rows} rows with a filled cache: pass image_index to say whose is whose"
        )


def _check_total(num_placeholders: int, num_images: int) -> None:
    if num_placeholders != num_images:
        raise ValueError(
            f"the text has {num_placeholders} image placeholders, but {num_images} images are given: "
            "give each image one placeholder"
        )
