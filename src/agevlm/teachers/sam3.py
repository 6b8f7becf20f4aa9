"""SAM 3 (Carion et al. 2025, arXiv 2511.16719) of transformers: a phrase → the masks of all its instances.

A picture is encoded once, whatever the number of phrases. SAM 3's image processor needs torchvision, so its resizing
and normalisation, which its documentation states, are done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from agevlm.modeling.loading import reading
from agevlm.teachers.base import Request, Thresholds, Verdict, ground_readable, judge
from agevlm.teachers.loading import load_model
from agevlm.teachers.segmenters import masks_of_picture, normalised_pixels
from agevlm.teachers.stopwatch import Stopwatch

_PHRASES_AT_ONCE = 16
_MEAN = _STD = (0.5, 0.5, 0.5)


class Sam3:
    """SAM 3 as a teacher; a score is that of the instance times that of the phrase's presence in the picture."""

    MODEL_TYPES = ("sam3", "sam3_video")  # the published weights are those of the video model
    THRESHOLDS = Thresholds(present=0.5, absent=0.1)

    def __init__(
        self,
        weights: str | Path,
        thresholds: Thresholds | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.model = load_model(weights, "Sam3Model", self.MODEL_TYPES, dtype, device)
        with reading(weights, "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
        self.thresholds = thresholds or self.THRESHOLDS
        self.stopwatch = stopwatch or Stopwatch()

    @torch.inference_mode()
    def ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        """As `Teacher` says."""
        return ground_readable(requests, self.reads, self._ground)

    def reads(self, phrase: str) -> bool:
        """Whether it can read the whole of a phrase."""
        return len(self.tokenizer(phrase).input_ids) <= self.model.config.text_config.max_position_embeddings

    def _ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        side = self.model.config.vision_config.image_size
        pixels = normalised_pixels([request.image for request in requests], side, _MEAN, _STD)
        with self.stopwatch("segment", sum(len(request.phrases) for request in requests)):
            embeddings = self.model.get_vision_features(pixels.to(self.model.device, self.model.dtype))
            return [self._answer(request, _picture(embeddings, number)) for number, request in enumerate(requests)]

    def _answer(self, request: Request, embeddings: Any) -> list[Verdict]:
        verdicts = []
        for start in range(0, len(request.phrases), _PHRASES_AT_ONCE):
            names = list(request.phrases[start : start + _PHRASES_AT_ONCE])
            length = self.model.config.text_config.max_position_embeddings
            text = self.tokenizer(names, return_tensors="pt", padding="max_length", max_length=length)
            text = text.to(self.model.device)
            outputs = self.model(
                vision_embeds=_repeated(embeddings, len(names)),
                input_ids=text.input_ids,
                attention_mask=text.attention_mask,
            )
            scores = outputs.pred_logits.float().sigmoid()
            if outputs.presence_logits is not None:
                scores = scores * outputs.presence_logits.float().sigmoid()
            for number in range(len(names)):
                likely = scores[number] >= self.thresholds.present
                masks, best = outputs.pred_masks[number][likely].float().sigmoid(), float(scores[number].max())
                own = scores[number][likely].cpu().numpy()
                verdicts.append(judge(masks_of_picture(masks, request.image, 0.5), own, best, self.thresholds))
        return verdicts


def _picture(embeddings: Any, number: int) -> Any:
    """What the vision encoder gives, of one picture of the batch."""
    return _mapped(embeddings, lambda tensor: tensor[number : number + 1])


def _repeated(embeddings: Any, times: int) -> Any:
    return _mapped(embeddings, lambda tensor: tensor.expand(times, *tensor.shape[1:]))


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):  # transformers' outputs are dictionaries
        return type(value)(**{key: _mapped(part, change) for key, part in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change) for part in value)
    return value
