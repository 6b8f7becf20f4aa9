"""Does a model hold a picture and its text for alike? Matching against mismatched pairs, the figure 2 of the paper.

Three kinds of measure, each one number a pair, higher for what fits better: hidden states of image tokens and text
tokens, and queries and keys at object words, in each layer (`similarity_states.py` says which tensors,
`similarity_measures.py` what is done with them); and the likelihood of the caption, which means the same in every
architecture. A measure's headline is that of the last layer that looks at images, settled before any was measured.
"""

# Shapes: P captions, as many as pictures; I pictures of a block, E = 2 captions read with each, T text tokens, R rows.

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agevlm.analysis.similarity_measures import (
    CAPTION_GAIN,
    CAPTION_LIKELIHOOD,
    DECIMALS,
    MEASURES,
    Scores,
    hidden_similarity,
    mean_over,
    query_key_similarity,
)
from agevlm.analysis.similarity_pairs import Pairs, object_words, pair_captions
from agevlm.analysis.similarity_states import read_states
from agevlm.checkpoints import load_model
from agevlm.data.chat import tokenise_conversation
from agevlm.data.collate import Collator
from agevlm.data.schema import Conversation, Sample
from agevlm.evaluation.benchmarks import Settings, caption_samples
from agevlm.evaluation.results import provenance
from agevlm.files import write_beside

DEFAULT_NUM_IMAGES = 200
DEFAULT_BATCH_SIZE = 16

Progress = Callable[[int, int], None]  # pictures done, pictures in all
_Place = tuple[str, int | None]  # a measure and its layer


@dataclass(frozen=True)
class Similarity:
    """The pairs, and for each measure its scores, one for each layer that has it, first to last.

    `headline_layer` is the last layer that looks at images.
    """

    pairs: Pairs
    scores: Mapping[str, tuple[Scores, ...]]
    headline_layer: int

    def headline(self, measure: str) -> Scores:
        """The scores of a measure in the headline layer, or its only ones."""
        of_layer = [scores for scores in self.scores[measure] if scores.layer in (self.headline_layer, None)]
        return of_layer[0]

    def record(self) -> dict[str, Any]:
        """As JSON has it: `measures.MEASURE` is the headline's figures and `values`, and under `layers` all layers'."""
        return {
            "num_pairs": len(self.pairs),
            "num_maybe_true": self.pairs.num_maybe_true,
            "num_left_out": self.pairs.num_left_out,
            "headline_layer": self.headline_layer,
            "measures": {name: self._measure(name) for name in self.scores},
        }

    def _measure(self, name: str) -> dict[str, Any]:
        headline = self.headline(name)
        layers = [scores.record() for scores in self.scores[name] if scores.layer is not None]
        return {**headline.record(), "values": headline.values(), "layers": layers}


def similarity(
    model: Any,
    processor: Any,
    samples: Iterable[Sample],
    *,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Progress | None = None,
) -> Similarity:
    """Compare the pictures of `samples` with their own captions, and with those of others (`pair_captions`, `seed`).

    Captions are read as answers to their own request, behind the model's chat template; a caption's tokens are those
    that the model is trained to say, the end of the turn among them. Each picture is encoded once, for its own caption
    and the other. `batch_size` counts pictures in a forward pass and changes no figure. The model is left in the mode
    in which it came. ValueErrors: see `pair_captions`; and a decoder whose queries cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is the number of pictures read at once, got {batch_size}")
    pairs = pair_captions(samples, seed)
    reader = _Reader(model, processor, pairs)
    with _evaluating(model), torch.no_grad():
        for start in range(0, len(pairs), batch_size):
            numbers = range(start, min(start + batch_size, len(pairs)))
            reader.read(numbers)
            if progress:
                progress(numbers.stop, len(pairs))
    return reader.similarity()


class _Reader:
    """Reads blocks of pictures, and keeps what every measure says of every pair."""

    def __init__(self, model: Any, processor: Any, pairs: Pairs) -> None:
        self.model, self.processor, self.pairs = model, processor, pairs
        self.collate = Collator(processor, grid=(1, 1))
        self.captions = [sample.conversations[0] for sample in pairs.samples]
        self.read_at = np.argsort(pairs.others)  # the mismatched caption of each picture
        self.found: dict[_Place, NDArray[np.float64]] = {}  # (P, 2): caption i with its own picture, with another
        self.alone_P = np.full(len(pairs), np.nan)  # likelihood of captions without a picture
        self.looking: set[int] = set()

    def read(self, numbers: Sequence[int]) -> None:
        """Read the pictures with these numbers, each with its own caption and the other, and the captions alone."""
        texts_IE = [(number, int(self.read_at[number])) for number in numbers]
        samples = [
            replace(self.pairs.samples[texts[0]], conversations=tuple(self.captions[text] for text in texts))
            for texts in texts_IE
        ]
        batch = self._batch(samples)
        said_RT, words_RT = batch.pop("said"), batch.pop("words")
        log_probs_RT, states = read_states(self.model, batch)
        shape = (len(texts_IE), 2)
        said_IET, words_IET = said_RT.unflatten(0, shape), words_RT.unflatten(0, shape)
        likelihood = mean_over(log_probs_RT, said_RT).unflatten(0, shape)
        self._keep((CAPTION_LIKELIHOOD, None), texts_IE, likelihood)
        for layer in states:
            measured = hidden_similarity(layer, said_IET)
            if layer.looks:
                self.looking.add(layer.layer)
                measured |= query_key_similarity(layer, words_IET)
            for name, scores in measured.items():
                self._keep((name, layer.layer), texts_IE, scores)
        self.alone_P[list(numbers)] = self._read_alone(numbers).tolist()

    def similarity(self) -> Similarity:
        """What was found, once every picture has been read."""
        gain_P2 = self.found[CAPTION_LIKELIHOOD, None] - self.alone_P[:, None]
        scores: dict[str, tuple[Scores, ...]] = dict.fromkeys(MEASURES, ())
        for (name, layer), values_P2 in (*self.found.items(), ((CAPTION_GAIN, None), gain_P2)):
            matching, mismatched = values_P2.round(DECIMALS).T
            scores[name] += (Scores(matching, mismatched, layer),)
        return Similarity(self.pairs, scores, max(self.looking))

    def _keep(self, place: _Place, texts_IE: Sequence[tuple[int, int]], scores_IE: Tensor) -> None:
        kept = self.found.setdefault(place, np.full((len(self.pairs), 2), np.nan))
        for texts, scores in zip(texts_IE, scores_IE.tolist(), strict=True):
            for column, (text, score) in enumerate(zip(texts, scores, strict=True)):
                kept[text, column] = score

    def _read_alone(self, numbers: Sequence[int]) -> Tensor:
        """Mean log-probability of captions without any picture."""
        captions = [self.captions[number] for number in numbers]
        unseen = [replace(c, messages=tuple(replace(m, num_images=0) for m in c.messages)) for c in captions]
        batch = self._batch([Sample(c.id, (), (c,)) for c in unseen])
        said_RT = batch.pop("said")
        batch.pop("words")
        return mean_over(self.model(**batch, use_cache=False, logits_to_keep=1).label_log_probs, said_RT)

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The inputs of the model for samples, and in `said` and `words` (R, T) the caption's and its words' tokens."""
        collated = self.collate([(sample, None) for sample in samples])
        mask_RT = collated["attention_mask"]
        batch: dict[str, Any] = {"input_ids": collated["input_ids"], "attention_mask": mask_RT}
        batch["position_ids"] = (mask_RT.cumsum(-1) - 1).clamp(min=0)
        batch["labels"], batch["said"] = collated["labels"], collated["labels"] >= 0
        batch["words"] = self._words([c for sample in samples for c in sample.conversations], mask_RT)
        if "pixel_values" in collated:
            batch["pixel_values"] = collated["pixel_values"].to(self.model.dtype)
            batch |= {name: collated[name] for name in ("images_seen", "rows_per_image")}
        device = self.model.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def _words(self, captions: Sequence[Conversation], mask_RT: Tensor) -> Tensor:
        """True (R, T) at the tokens of object words, of rows padded on the left."""
        words_RT = torch.zeros_like(mask_RT, dtype=torch.bool)
        for row, caption in enumerate(captions):
            spoken = replace(caption, groundings=tuple(object_words(caption)))
            chat = tokenise_conversation(self.processor, spoken, self.collate.max_length)
            padding = mask_RT.shape[1] - len(chat.input_ids)
            words_RT[row, [padding + token for tokens in chat.phrase_tokens for token in tokens]] = True
        return words_RT


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def similarity_of_benchmark(
    model: str | Path, benchmark: str | Path, settings: Settings, *, progress: Progress | None = None
) -> dict[str, Any]:
    """The record of `similarity` for the model and the benchmark of these names, and under `provenance` what made it.

    "scenes" are drawn as `evaluate` draws them, with captions in place of questions; a stored dataset must have some.
    """
    settings = replace(settings, num_images=settings.num_images or DEFAULT_NUM_IMAGES)
    samples = caption_samples(model, benchmark, settings)
    network, processor = load_model(model, settings.device, settings.dtype)
    found = similarity(
        network, processor, samples, seed=settings.seed, batch_size=settings.batch_size, progress=progress
    )
    facts = {"model": str(model), "benchmark": str(benchmark), "seed": settings.seed, "split": settings.split}
    return {**found.record(), "provenance": provenance(**facts, architecture=type(network).__name__)}


def write_similarity(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a record as JSON."""
    with write_beside(path) as beside:
        beside.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
