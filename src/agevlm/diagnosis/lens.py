"""The logit lens on image tokens: how surely some token of the picture says a word before anybody asked.

The hidden states of the image tokens, in some layers, go through the final norm and the head of the decoder; the
confidence of a word is the highest probability of the first token of its name, over image tokens and layers. After
Jiang et al., 2024 (arXiv 2410.02762), who use it to tell which words of a caption are made up. One pass serves all
words of a picture: its prompt names none, since the image tokens of some families (PaliGemma) see the question too.
"""

# Shapes: n image tokens of a picture, W model width, V vocabulary.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agevlm.data.images import open_image
from agevlm.data.schema import Sample
from agevlm.diagnosis.asking import REQUEST, Progress
from agevlm.evaluation.questions import Prompt, questions_of
from agevlm.vlms import Vlm

MAX_LAYERS = 6  # spread evenly over the upper half; each costs image tokens × vocabulary
_NORMS = ("norm", "embedding_norm")  # what decoders call their final norm; the second is LFM2's


@dataclass(frozen=True)
class Lens:
    """The final norm and the head of a decoder, to read hidden states through."""

    norm: Any
    head: Any

    @torch.inference_mode()
    def confidence(self, vlm: Vlm, picture: Any, phrases: Sequence[str]) -> dict[str, float]:
        """How surely some image token of a picture says each word, before anything is asked about one."""
        inputs = vlm.encode([vlm.prompt(REQUEST)], [[picture]])
        top = len(vlm.layers)
        layers = sorted({int(number) for number in np.linspace(max(1, top // 2), top, MAX_LAYERS).round()})
        states = vlm.read(inputs, states=layers).states
        columns = inputs.pictures[0][0].columns
        wanted = {phrase: _first_ids(vlm, phrase) for phrase in phrases}
        best = dict.fromkeys(phrases, 0.0)
        for layer in layers:
            shares_nV = self.head(self.norm(states[layer][:1, columns]))[0].float().softmax(-1)
            for phrase, ids in wanted.items():
                best[phrase] = max(best[phrase], float(shares_nV[:, ids].max()))
        return best


def lens_of(vlm: Vlm) -> Lens | str:
    """The lens of a model; a sentence where it has none says why."""
    if vlm.note is not None:
        return vlm.note
    if vlm.family is not None and vlm.family.cross:
        return "its image tokens do not pass the decoder, so there is nothing to read through its head"
    decoder, head = vlm.model.get_decoder(), vlm.model.get_output_embeddings()
    norm = next((getattr(decoder, name) for name in _NORMS if hasattr(decoder, name)), None)
    if norm is None or head is None:
        return f"{type(vlm.model).__name__} has no final norm and head that are found here"
    return Lens(norm, head)


def read_lens(vlm: Vlm, samples: Sequence[Sample], progress: Progress | None) -> dict[tuple[str, str], float] | str:
    """The confidence of each word by picture and phrase; a sentence where that cannot be done says why."""
    lens = lens_of(vlm)
    if isinstance(lens, str):
        return lens
    by_sample: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in questions_of(vlm, samples)[1]:
        if len(prompt.words) == 1:
            by_sample[prompt.sample].append(prompt)
    found: dict[tuple[str, str], float] = {}
    for done, (number, prompts) in enumerate(by_sample.items()):
        picture = open_image(samples[number].images[0])
        phrases = list(dict.fromkeys(prompt.words[0].phrase for prompt in prompts))
        said = lens.confidence(vlm, picture, phrases)
        found |= {(samples[number].id, phrase): value for phrase, value in said.items()}
        if progress:
            progress("lens", done + 1, len(by_sample))
    return found


def _first_ids(vlm: Vlm, phrase: str) -> list[int]:
    """The tokens that a word may begin with: after a space and without one."""
    coded = (vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (phrase, f" {phrase}"))
    return sorted({ids[0] for ids in coded if ids})
