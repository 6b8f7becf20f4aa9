"""Where each head of each layer looks while the model reads an object word, against the mask of what it names.

Attention is a row's share of all that it gives to the picture (and the null token, where there is one). Some positions
take attention whatever is asked: sinks. What the other words asked about the same picture give to a position is
subtracted, and what remains is scaled to sum 1; so a head that looks at one place for every word has nothing left.
"""

# Shapes: W words, L layers that look, H heads, P words of one picture, n image tokens, h, w the grid of a picture.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agevlm.data.images import open_image
from agevlm.data.masks import union_to_grid
from agevlm.data.schema import Sample
from agevlm.diagnosis.asking import Progress
from agevlm.evaluation.questions import Prompt, questions_of
from agevlm.vlms import AttentionUnreadableError, Inputs, Kept, Reading, Vlm

PICTURES_AT_ONCE = 8
ROWS_AT_ONCE = 64
MEASURES = ("mass", "pointing", "corrected_mass", "corrected_pointing")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HeadReading:
    """Measures of words for things that are there, by head: `heads[measure]` is (W, L, H), `mean[measure]` (W,).

    `mass` is the share of a head's attention to the picture that lies in the mask, a partly covered cell counting by
    its covered share; `pointing` whether its strongest cell touches the mask. `corrected_…` are the same without sinks.
    `mean` measures the mean map of all layers and heads. `on_picture` (W, L, H) is the share of the whole row that lies
    on the picture, `sunk` (W, L, H) the share of that which lies where other words look as well. `area` and `touched`
    (W,) are what looking nowhere in particular would have in mass and in pointing. `layers` number the L layers.
    """

    layers: tuple[int, ...]
    ids: tuple[str, ...]
    images: tuple[str, ...]
    phrases: tuple[str, ...]
    heads: dict[str, Floats]
    mean: dict[str, Floats]
    on_picture: Floats
    sunk: Floats
    area: Floats
    touched: Floats

    @property
    def is_ranking(self) -> NDArray[np.bool_]:
        """(W,) the words of every second picture: heads are ranked on these and reported on the others."""
        order = {image: number for number, image in enumerate(dict.fromkeys(self.images))}
        return np.array([order[image] % 2 == 0 for image in self.images])

    def ranked(self) -> list[tuple[int, int]]:
        """(place of the layer, head), best first: by corrected mass in the mask on the pictures kept for ranking."""
        scores_LH = self.heads["corrected_mass"][self.is_ranking].mean(0)
        order = np.argsort(-scores_LH, axis=None, kind="stable")
        return [(int(place), int(head)) for place, head in zip(*np.unravel_index(order, scores_LH.shape), strict=True)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All numbers, as the .npz file has them."""
        named = {f"heads_{name}": values for name, values in self.heads.items()}
        named |= {f"mean_{name}": values for name, values in self.mean.items()}
        rest = {name: getattr(self, name) for name in ("on_picture", "sunk", "area", "touched")}
        texts = {name: np.array(getattr(self, name), dtype=np.str_) for name in ("ids", "images", "phrases")}
        return {"layers": np.array(self.layers), **texts, **named, **rest}


def read_heads(
    vlm: Vlm, samples: Sequence[Sample], batch_size: int | None, progress: Progress | None
) -> HeadReading | str:
    """Read the heads at the object words of `samples`; a sentence where that cannot be done says why."""
    if vlm.note is not None:
        return vlm.note
    _, prompts = questions_of(vlm, samples)
    by_sample: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if len(prompt.words) == 1:
            by_sample[prompt.sample].append(prompt)
    if not any(prompt.words[0].present for asked in by_sample.values() for prompt in asked):
        return "the dataset has no mask for what its questions name, so it is not known where a model should look"
    words: list[dict[str, Any]] = []
    layers: tuple[int, ...] = ()
    numbers = sorted(by_sample)
    for start in range(0, len(numbers), PICTURES_AT_ONCE):
        block = numbers[start : start + PICTURES_AT_ONCE]
        try:
            found = list(_maps(vlm, samples, by_sample, block, batch_size))
        except AttentionUnreadableError as error:
            return str(error)
        for asked, maps_PLHhw, on_picture_PLH, read in found:
            layers = read
            words += _measured(asked, maps_PLHhw, on_picture_PLH)
        if progress:
            progress("heads", min(start + PICTURES_AT_ONCE, len(numbers)), len(numbers))
    return _collected(layers, words)


def _maps(
    vlm: Vlm,
    samples: Sequence[Sample],
    by_sample: dict[int, list[Prompt]],
    block: Sequence[int],
    batch_size: int | None,
) -> Iterator[tuple[list[Prompt], Floats, Floats, tuple[int, ...]]]:
    """For each picture of a block its prompts, their words' maps (P, L, H, h, w), shares on the picture, the layers."""
    kept = dict(zip(block, vlm.keep([open_image(samples[number].images[0]) for number in block]), strict=True))
    rows = [prompt for number in block for prompt in by_sample[number]]
    size = min(batch_size or (ROWS_AT_ONCE if vlm.encodes_once else 8), ROWS_AT_ONCE)
    found: dict[int, list[tuple[Prompt, Floats, Floats]]] = defaultdict(list)
    layers: tuple[int, ...] = ()
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        inputs, reading, positions = read_words(vlm, batch, [kept[p.sample] for p in batch])
        if reading is None:
            continue
        layers = tuple(sorted(reading.rows))
        for row, prompt in enumerate(batch):
            if positions[row]:
                found[prompt.sample].append((prompt, *_row_maps(inputs, reading, row, len(positions[row]))))
    for seen in found.values():
        prompts, maps, on_picture = zip(*seen, strict=True)
        yield list(prompts), np.stack(maps), np.stack(on_picture), layers


def read_words(
    vlm: Vlm, prompts: Sequence[Prompt], kept: Sequence[Kept]
) -> tuple[Inputs, Reading | None, list[list[int]]]:
    """One pass with the attention rows of the only word of each prompt, and where its tokens are.

    A word that is not found again in what the processor makes of its prompt has no tokens; where none is found there
    is no pass.
    """
    inputs = vlm.encode([prompt.text for prompt in prompts], [[picture] for picture in kept])
    tokenizer = vlm.processor.tokenizer
    positions = [
        inputs.tokens_of(tokenizer, row, prompt.words[0].start, prompt.words[0].end)
        for row, prompt in enumerate(prompts)
    ]
    return inputs, vlm.read(inputs, positions=positions) if any(positions) else None, positions


def _row_maps(inputs: Inputs, reading: Reading, row: int, num_tokens: int) -> tuple[Floats, Floats]:
    """The maps of a row's word (L, H, h, w), and of its whole attention the share on the picture (L, H)."""
    weights_LHN = np.stack(
        [reading.rows[layer][row, :, :num_tokens].mean(1).cpu().numpy() for layer in sorted(reading.rows)]
    )
    picture = inputs.pictures[row][0]
    on_picture_LHn = weights_LHN[..., picture.columns]
    total_LH = on_picture_LHn.sum(-1) + weights_LHN[..., list(inputs.null_columns)].sum(-1)
    maps = picture.map(on_picture_LHn / np.maximum(total_LH, 1e-9)[..., None])
    return maps, on_picture_LHn.sum(-1)


def without_sinks(maps_PLHhw: Floats, phrases: Sequence[str]) -> Floats:
    """Maps minus the mean of those of the other phrases, cut at 0 and scaled to sum 1; zeros where nothing is left.

    A picture about which one thing is asked stays as it is.
    """
    left = np.clip(maps_PLHhw - _of_others(maps_PLHhw, phrases), 0, None)
    return np.asarray(left / np.maximum(left.sum((-2, -1), keepdims=True), 1e-9), dtype=np.float32)


def _of_others(maps_PLHhw: Floats, phrases: Sequence[str]) -> Floats:
    """For each word the mean map of the other phrases; zeros where there is no other."""
    means = np.zeros_like(maps_PLHhw)
    for place, phrase in enumerate(phrases):
        others = [number for number, other in enumerate(phrases) if other != phrase]
        if others:
            means[place] = maps_PLHhw[others].mean(0)
    return means


def _measured(prompts: Sequence[Prompt], maps_PLHhw: Floats, on_picture_PLH: Floats) -> Iterator[dict[str, Any]]:
    """What there is to say of each word of one picture that is there."""
    phrases = [prompt.words[0].phrase for prompt in prompts]
    mean_P11hw = maps_PLHhw.mean((1, 2), keepdims=True)
    pairs = ((maps_PLHhw, without_sinks(maps_PLHhw, phrases)), (mean_P11hw, without_sinks(mean_P11hw, phrases)))
    sunk_PLH = np.minimum(maps_PLHhw, _of_others(maps_PLHhw, phrases)).sum((-2, -1))
    sunk_PLH /= np.maximum(maps_PLHhw.sum((-2, -1)), 1e-9)
    for place, prompt in enumerate(prompts):
        word = prompt.words[0]
        if not word.present:
            continue
        covered_hw = union_to_grid(word.masks, maps_PLHhw.shape[-2:])
        heads, mean = (
            {
                name: measure(maps[place], covered_hw)
                for maps, prefix in zip(both, ("", "corrected_"), strict=True)
                for name, measure in ((f"{prefix}mass", _mass), (f"{prefix}pointing", _pointing))
            }
            for both in pairs
        )
        yield {
            "prompt": prompt,
            "heads": heads,
            "mean": {name: values[0, 0] for name, values in mean.items()},
            "on_picture": on_picture_PLH[place],
            "sunk": sunk_PLH[place],
            "area": covered_hw.mean(),
            "touched": (covered_hw > 0).mean(),
        }


def _mass(maps_LHhw: Floats, covered_hw: Floats) -> Floats:
    inside = (maps_LHhw * covered_hw).sum((-2, -1))
    return np.asarray(inside / np.maximum(maps_LHhw.sum((-2, -1)), 1e-9), dtype=np.float32)


def _pointing(maps_LHhw: Floats, covered_hw: Floats) -> Floats:
    """1 where the strongest cell touches the mask; 0 where a map has nothing."""
    flat = maps_LHhw.reshape(*maps_LHhw.shape[:2], -1)
    hit = covered_hw.ravel()[flat.argmax(-1)] > 0
    return np.asarray(hit & (flat.max(-1) > 0), dtype=np.float32)


def _collected(layers: tuple[int, ...], words: Sequence[dict[str, Any]]) -> HeadReading | str:
    if not words:
        return "no word for a thing that is there was found again in what the processor makes of the prompts"
    prompts = [word["prompt"] for word in words]
    if len({prompt.sample_id for prompt in prompts}) < 2:
        return (
            "things that are there have masks in one picture only, and two are needed: heads are ranked on one half "
            "of the pictures and measured on the other"
        )
    ids: list[str] = []
    for prompt in prompts:
        named = f"{prompt.sample_id}/{prompt.words[0].phrase}"
        ids.append(f"{named}/{sum(known.startswith(named + '/') for known in ids)}")
    return HeadReading(
        layers=layers,
        ids=tuple(ids),
        images=tuple(prompt.sample_id for prompt in prompts),
        phrases=tuple(prompt.words[0].phrase for prompt in prompts),
        heads={name: np.stack([word["heads"][name] for word in words]) for name in MEASURES},
        mean={name: np.array([word["mean"][name] for word in words], dtype=np.float32) for name in MEASURES},
        on_picture=np.stack([word["on_picture"] for word in words]).astype(np.float32),
        sunk=np.stack([word["sunk"] for word in words]).astype(np.float32),
        area=np.array([word["area"] for word in words], dtype=np.float32),
        touched=np.array([word["touched"] for word in words], dtype=np.float32),
    )
