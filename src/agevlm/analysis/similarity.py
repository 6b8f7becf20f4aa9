"""Does a model hold a picture and its text for alike? Matching against mismatched pairs, the figure 2 of the paper.

Three kinds of measure, each one number a pair, higher for what fits better: hidden states of image tokens and text
tokens, and queries and keys at object words, in each layer (`similarity_states.py` says which tensors,
`similarity_measures.py` what is done with them); and the likelihood of the caption, which means the same in every
architecture. A measure's headline is that of the last layer that looks at images, settled before any was measured.
"""

# Shapes: P captions, as many as pictures; I pictures of a block, E = 2 captions read with each, T text tokens, R rows,
# L positions of logits, V vocabulary.

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
    query_key_similarity,
)
from agevlm.analysis.similarity_pairs import Pairs, object_words, pair_captions
from agevlm.analysis.similarity_states import read_pass, states_of
from agevlm.checkpoints import load_vlm
from agevlm.data.chat import tokens_of_span
from agevlm.data.images import open_image
from agevlm.data.schema import Conversation, Sample
from agevlm.evaluation.benchmarks import Settings, caption_samples
from agevlm.evaluation.results import provenance
from agevlm.files import write_beside
from agevlm.vlms import Vlm

DEFAULT_NUM_IMAGES = 200
DEFAULT_BATCH_SIZE = 16

Progress = Callable[[int, int], None]  # pictures done, pictures in all
_Place = tuple[str, int | None]  # a measure and its layer


@dataclass(frozen=True)
class Similarity:
    """The pairs, and for each measure its scores, one for each layer that has it, first to last.

    `headline_layer` is the last layer that looks at images; `left_out` says of a missing measure why.
    """

    pairs: Pairs
    scores: Mapping[str, tuple[Scores, ...]]
    headline_layer: int
    left_out: Mapping[str, str] = field(default_factory=dict)

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
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
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

    `model` is any vision-language model of transformers. Captions are read as answers to their own request, behind the
    model's chat template; a caption's tokens are its own and the end token. Where a model can encode a picture once for
    its own caption and the other, it does. `batch_size` counts pictures in a forward pass and changes no figure. The
    model is left in the mode in which it came. Measures of queries and keys are missing where a decoder's cannot be
    read, the gain where a processor takes no text without a picture. ValueErrors: see `pair_captions`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is the number of pictures read at once, got {batch_size}")
    pairs = pair_captions(samples, seed)
    with _evaluating(model), torch.no_grad():
        reader = _Reader(Vlm(model, processor), pairs)
        for start in range(0, len(pairs), batch_size):
            numbers = range(start, min(start + batch_size, len(pairs)))
            reader.read(numbers)
            if progress:
                progress(numbers.stop, len(pairs))
        return reader.similarity()


class _Reader:
    """Reads blocks of pictures, and keeps what every measure says of every pair."""

    def __init__(self, vlm: Vlm, pairs: Pairs) -> None:
        self.vlm, self.pairs = vlm, pairs
        self.captions = [_Caption(vlm, sample.conversations[0]) for sample in pairs.samples]
        self.read_at = np.argsort(pairs.others)  # the mismatched caption of each picture
        self.found: dict[_Place, NDArray[np.float64]] = {}  # (P, 2): caption i with its own picture, with another
        self.alone_P = np.full(len(pairs), np.nan)  # likelihood of captions without a picture
        self.left_out = _no_gain(vlm, self.captions[0])
        self.looking: set[int] = set()

    def read(self, numbers: Sequence[int]) -> None:
        """Read the pictures with these numbers, each with its own caption and the other, and the captions alone."""
        kept = self.vlm.keep([open_image(self.pairs.samples[number].images[0]) for number in numbers])
        texts_IE = [(number, int(self.read_at[number])) for number in numbers]
        captions = [self.captions[text] for texts in texts_IE for text in texts]
        longest = max(len(caption.ids) for caption in captions)
        inputs = self.vlm.encode([c.text for c in captions], [[kept[row // 2]] for row in range(len(captions))])
        answered = inputs.answered([c.ids for c in captions], self.vlm.family)
        reading = read_pass(self.vlm, answered, num_logits=longest + 1)
        likely_R = [_mean_log_prob(logits, c.ids) for logits, c in zip(reading.logits, captions, strict=True)]
        said_RT, words_RT = (
            _marked(inputs.text_len, longest, tokens)
            for tokens in ([range(len(c.ids)) for c in captions], [c.words for c in captions])
        )
        for place, texts in enumerate(texts_IE):
            rows = slice(2 * place, 2 * place + 2)
            self._keep((CAPTION_LIKELIHOOD, None), texts, likely_R[rows])
            own = states_of(self.vlm, answered, reading, range(2 * place, 2 * place + 2), kept[place].states)
            for layer in own:
                device = layer.text.device
                measured = hidden_similarity(layer, said_RT[None, rows].to(device))
                if layer.looks:
                    self.looking.add(layer.layer)
                    measured |= query_key_similarity(layer, words_RT[None, rows].to(device))
                for name, scores in measured.items():
                    self._keep((name, layer.layer), texts, scores[0].tolist())
        if not self.left_out:
            self.alone_P[list(numbers)] = self._read_alone(numbers)

    def similarity(self) -> Similarity:
        """What was found, once every picture has been read."""
        found = dict(self.found)
        if not self.left_out:
            found[CAPTION_GAIN, None] = found[CAPTION_LIKELIHOOD, None] - self.alone_P[:, None]
        measured = {name for name, _ in found}
        scores: dict[str, tuple[Scores, ...]] = {name: () for name in MEASURES if name in measured}
        for (name, layer), values_P2 in found.items():
            matching, mismatched = values_P2.round(DECIMALS).T
            scores[name] += (Scores(matching, mismatched, layer),)
        looking = self.looking or set(self.vlm.looking)
        return Similarity(self.pairs, scores, max(looking), self.left_out)

    def _keep(self, place: _Place, texts: tuple[int, int], scores: Sequence[float]) -> None:
        kept = self.found.setdefault(place, np.full((len(self.pairs), 2), np.nan))
        for column, (text, score) in enumerate(zip(texts, scores, strict=True)):
            kept[text, column] = score

    def _read_alone(self, numbers: Sequence[int]) -> list[float]:
        """Mean log-probability of captions without any picture."""
        captions = [self.captions[number] for number in numbers]
        inputs = self.vlm.encode([c.text_alone for c in captions], [[] for _ in captions])
        return [float(row.mean()) for row in self.vlm.log_probs(inputs, [c.ids for c in captions])]


class _Caption:
    """A caption as an answer: the prompt with and without a picture, its tokens and those of its object words."""

    def __init__(self, vlm: Vlm, caption: Conversation) -> None:
        *before, said = caption.messages
        self.text = vlm.chat(before).text
        self.text_alone = vlm.chat([replace(message, num_images=0) for message in before]).text
        ids, offsets = vlm.answer_tokens(self.text, said.content)
        end = vlm.processor.tokenizer.eos_token_id
        self.ids = ids if end is None else [*ids, end]
        spans = [tokens_of_span(offsets, word.start, word.end) for word in object_words(caption)]
        self.words = sorted({token for tokens in spans for token in tokens})


def _no_gain(vlm: Vlm, caption: _Caption) -> dict[str, str]:
    """Why the gain cannot be measured; nothing where it can."""
    try:
        vlm.encode([caption.text_alone], [[]])
    except ValueError:
        processor = type(vlm.processor).__name__
        return {CAPTION_GAIN: f"{processor} takes no text without a picture, so a caption cannot be read without one"}
    return {}


def _mean_log_prob(logits_LV: Tensor, ids: Sequence[int]) -> float:
    """Mean log P of an answer's tokens; the first of `logits` predict its first."""
    said = torch.as_tensor(ids, device=logits_LV.device)
    return float(logits_LV[: len(ids)].float().log_softmax(-1).gather(1, said[:, None]).mean())


def _marked(start: int, longest: int, tokens: Sequence[Sequence[int]]) -> Tensor:
    """True (R, T) at some tokens of the caption of each row, which begins at `start`."""
    marked_RT = torch.zeros(len(tokens), start + longest, dtype=torch.bool)
    for row, chosen in enumerate(tokens):
        marked_RT[row, [start + token for token in chosen]] = True
    return marked_RT


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
    network, processor = load_vlm(model, settings.device, settings.dtype)
    found = similarity(
        network,
        processor,
        samples,
        seed=settings.seed,
        batch_size=settings.batch_size or DEFAULT_BATCH_SIZE,
        progress=progress,
    )
    facts = {"model": str(model), "benchmark": str(benchmark), "seed": settings.seed, "split": settings.split}
    return {**found.record(), "provenance": provenance(**facts, architecture=type(network).__name__)}


def write_similarity(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a record as JSON."""
    with write_beside(path) as beside:
        beside.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
