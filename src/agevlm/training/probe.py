"""How well a linear probe on a frozen vision model answers POPE's questions and points, before anything is trained.

One row of weights for each category, read at the cell where it is highest; learned from which categories a picture
holds, not from where. No language model, no attention, minutes on one core. A rough guide: its figures are
no ceiling, for trained models beat them on adversarial questions and in pointing, and lost to them on random ones.
"""

# Shapes: P pictures, K categories, C channels, N cells of the grid (h, w), Q questions.

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import compress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agevlm.checkpoints import choose_device, resolve_model
from agevlm.data.masks import mask_to_grid, union_mask
from agevlm.data.parquet import ParquetDataset, read_parquet
from agevlm.data.pope import POPE_KINDS, Statistics, ask_pope, masks_of, picture_rng
from agevlm.data.schema import AnnotatedImage
from agevlm.evaluation.localisation import TOLERANCE_RATIO, points_inside
from agevlm.evaluation.scores import auroc, interval_of_mean
from agevlm.modeling.configuration_agevlm import VisionGrid
from agevlm.modeling.processing_agevlm import squeezing_processor
from agevlm.modeling.vision import fit_pictures, joined_features, load_backbone
from agevlm.training.arithmetic import choose_arithmetic
from agevlm.training.features import FeatureCache, cached_features
from agevlm.training.sources import ParquetSource

ROUNDS, STEPS = 8, 20  # how often the highest cells are looked up, and the steps of descent in between
LEARNING_RATE, DECAY = 2e-3, 1e-3
NUM_FOLDS = 3
HELD_OUT_RATIO = 0.25  # of the pictures, where no test data are given
SPLITS = tuple(kind.removeprefix("pope.") for kind in POPE_KINDS)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ProbeSettings:
    """What the features are, and how many pictures are learned from at most (`num_images`, spread over the data)."""

    vision_model: str
    stages: tuple[str, ...] | None = None
    grid: VisionGrid = "coarse"
    image_size: int | None = None
    num_images: int = 1000
    seed: int = 0


def probe(
    data: Sequence[Path],
    settings: ProbeSettings,
    *,
    test: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Learn a probe from annotated datasets, and measure it on another one, or on a quarter of their own pictures.

    Scores are read as they are or less the log odds of each category, and answer yes from a threshold on; which and
    where is what answers the questions of the training pictures best, scored by probes that have not seen them.
    The record has `pope.<split>` with `accuracy`, its interval over pictures, `auroc`, `prior_accuracy` and
    `prior_auroc` of the category's frequency alone; `pointing` with `accuracy` and the `ceiling` of the grid; `notes`.
    ValueErrors: data without annotated pictures, no category that tells pictures apart, an unknown feature map.
    """
    with _directory(cache_dir) as root:
        eyes, processor = _open_vision(settings)
        read = _Reader(eyes, processor, root, progress)
        train = _joined([read(path) for path in data])
        if test is None:
            train, tested = _split(train, settings.seed)
        else:
            tested = read(test)
        train = train.spread(settings.num_images)
        return _measure(train, tested, settings, progress) | {
            "data": [str(path) for path in data],
            "test": str(test) if test is not None else f"{HELD_OUT_RATIO:.0%} of the same pictures",
            "settings": asdict(settings),
        }


@dataclass(frozen=True)
class _Pictures:
    """Annotated pictures and the features (C, h, w) of each; `vocabularies` is what was annotated in each."""

    annotated: tuple[AnnotatedImage, ...]
    features: tuple[tuple[FeatureCache, int], ...]
    vocabularies: tuple[tuple[str, ...], ...]

    def selected(self, keep: Callable[[int], bool]) -> _Pictures:
        chosen = [number for number in range(len(self.annotated)) if keep(number)]
        return _Pictures(
            tuple(self.annotated[number] for number in chosen),
            tuple(self.features[number] for number in chosen),
            tuple(self.vocabularies[number] for number in chosen),
        )

    def spread(self, most: int) -> _Pictures:
        num = min(most, len(self.annotated))
        chosen = {number * len(self.annotated) // num for number in range(num)}
        return self.selected(chosen.__contains__)

    def matrix(self) -> Tensor:
        """The features (P, C, N) in float32."""
        return torch.from_numpy(np.concatenate([cache[n] for cache, n in self.features])).float().flatten(2)

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.features[0][0].features.shape[-2:]
        return int(height), int(width)


class _Vision(nn.Module):
    """A backbone that gives joined feature maps, as the networks of this project see them."""

    def __init__(self, backbone: Any, grid: VisionGrid) -> None:
        super().__init__()
        self.vision_model, self.config = backbone, SimpleNamespace(vision_grid=grid)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        return joined_features(self.vision_model, pixel_values, self.config.vision_grid)


def _open_vision(settings: ProbeSettings) -> tuple[_Vision, Any]:
    name = resolve_model(settings.vision_model)
    backbone = load_backbone(name, settings.stages).float().to(choose_device()).eval().requires_grad_(False)
    squeezing = squeezing_processor(name)
    fit_pictures(backbone, squeezing, settings.image_size)
    return _Vision(backbone, settings.grid), SimpleNamespace(image_processor=squeezing)


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@dataclass(frozen=True)
class _Reader:
    """Reads datasets with the features of their pictures."""

    vision: _Vision
    processor: Any
    root: Path
    progress: Progress

    def __call__(self, directory: Path) -> _Pictures:
        source = ParquetSource(read_parquet(directory))
        source.categories()  # all are annotated, or that is said
        features = cached_features(
            source,
            self.root,
            self.vision,
            self.processor,
            dtype=choose_arithmetic("auto"),
            num_workers=0,
            progress=lambda done, total: self.progress(f"features of {directory.name}", done, total),
        )
        assert features is not None, directory
        annotated = tuple(_annotated(source.dataset, number) for number in range(len(source)))
        places = tuple((features, number) for number in range(len(source)))
        return _Pictures(annotated, places, (source.vocabulary,) * len(source))


def _annotated(dataset: ParquetDataset, number: int) -> AnnotatedImage:
    annotated = dataset[number].annotated
    assert annotated is not None, number
    image = annotated.image
    return AnnotatedImage(type(image)(image.id, image.height, image.width), annotated.instances)


def _joined(parts: Sequence[_Pictures]) -> _Pictures:
    return _Pictures(
        tuple(picture for part in parts for picture in part.annotated),
        tuple(place for part in parts for place in part.features),
        tuple(vocabulary for part in parts for vocabulary in part.vocabularies),
    )


def _split(pictures: _Pictures, seed: int) -> tuple[_Pictures, _Pictures]:
    held_out = [picture_rng(p.image.id, seed).random() < HELD_OUT_RATIO for p in pictures.annotated]
    if all(held_out) or not any(held_out):
        raise ValueError(f"{len(held_out)} pictures are too few to learn from some and test on others; give --test")
    return pictures.selected(lambda n: not held_out[n]), pictures.selected(held_out.__getitem__)


# ----------------------------------------------------------------------------------------------------------- rows


@dataclass
class _Rows:
    """One row for each category, on features that are standardised.

    `mean` and `scale` (C,) of the features, `weight` (K, C), `bias` (K,), and `odds` (K,): the log odds of each
    category in training.
    """

    categories: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    odds: Tensor

    def maps(self, features_PCN: Tensor) -> Tensor:
        """Scores (P, K, N) of every category in every cell."""
        weight_KC = self.weight / self.scale
        bias_K = self.bias - weight_KC @ self.mean
        return weight_KC @ features_PCN + bias_K[:, None]

    def scores(self, features_PCN: Tensor) -> NDArray[np.float32]:
        """The highest score (P, K) of each category in each picture."""
        batches = [self.maps(batch_PCN).amax(dim=-1) for batch_PCN in features_PCN.split(64)]
        return torch.cat(batches).numpy()


def _learn(features_PCN: Tensor, held_PK: Tensor, known_PK: Tensor, categories: tuple[str, ...]) -> _Rows:
    """Logistic regression for each category at the cells where it scores highest; first on the means of the pictures.

    A category of which few examples are known stays near its log odds.
    """
    std_C, mean_C = torch.std_mean(features_PCN, dim=(0, 2))
    odds_K = (((held_PK & known_PK).sum(0) + 0.5) / ((~held_PK & known_PK).sum(0) + 0.5)).log()
    zero_KC = torch.zeros(len(odds_K), len(mean_C))
    rows = _Rows(categories, mean_C, std_C.clamp(min=1e-4), zero_KC, odds_K.clone(), odds_K)
    weight_PK = known_PK / known_PK.sum(0)
    optimizer = torch.optim.Adam([rows.weight.requires_grad_(), rows.bias.requires_grad_()], lr=LEARNING_RATE)
    for number in range(ROUNDS):
        if number == 0:
            picture_PC = (features_PCN.mean(-1) - rows.mean) / rows.scale
            highest_PKC = picture_PC[:, None].expand(-1, len(odds_K), -1)
        else:
            highest_PKC = _at_highest(rows, features_PCN)
        for _ in range(STEPS):
            optimizer.zero_grad()
            scores_PK = torch.einsum("pkc,kc->pk", highest_PKC, rows.weight) + rows.bias
            losses_PK = F.binary_cross_entropy_with_logits(scores_PK, held_PK.float(), reduction="none")
            ((losses_PK * weight_PK).sum() + DECAY * rows.weight.square().sum()).backward()
            optimizer.step()
    rows.weight, rows.bias = rows.weight.detach(), rows.bias.detach()
    return rows


@torch.no_grad()
def _at_highest(rows: _Rows, features_PCN: Tensor) -> Tensor:
    """The standardised features (P, K, C) of the cells where each category scores highest."""
    taken = []
    for batch_PCN in features_PCN.split(64):
        cells_PK = rows.maps(batch_PCN).argmax(dim=-1)
        index_PCK = cells_PK[:, None].expand(-1, batch_PCN.shape[1], -1)
        taken.append(batch_PCN.gather(2, index_PCK).transpose(1, 2))
    return (torch.cat(taken) - rows.mean) / rows.scale


# -------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class _Questions:
    """POPE's questions of one split: the picture and the category of each, and whether yes is right."""

    pictures: NDArray[np.int64]
    categories: tuple[str, ...]
    yes: NDArray[np.bool_]


def _ask(pictures: _Pictures, seed: int) -> dict[str, _Questions]:
    """POPE's questions of each split, with the frequencies of these pictures; see `data/pope.py`."""
    counted: dict[tuple[str, ...], Statistics] = {}
    for vocabulary in set(pictures.vocabularies):
        mine = (p for p, v in zip(pictures.annotated, pictures.vocabularies, strict=True) if v == vocabulary)
        counted[vocabulary] = Statistics.of(mine, vocabulary)
    asked: dict[str, list[tuple[int, str, bool]]] = {split: [] for split in SPLITS}
    for number, (picture, vocabulary) in enumerate(zip(pictures.annotated, pictures.vocabularies, strict=True)):
        for conversation in ask_pope(picture, counted[vocabulary], seed=seed):
            (grounding,) = conversation.groundings
            split = conversation.kind.removeprefix("pope.")
            asked[split].append((number, grounding.phrase, bool(grounding.present)))
    return {
        split: _Questions(
            np.array([n for n, _, _ in some]), tuple(c for _, c, _ in some), np.array([y for *_, y in some])
        )
        for split, some in asked.items()
    }


@dataclass
class _Scorer:
    """Scores (P, K) of pictures, to be read by question.

    `always` are the categories in every training picture, which have no row, and `certain` their log odds.
    """

    rows: _Rows
    scores: NDArray[np.float32]
    always: frozenset[str]
    certain: float
    place: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.place = {category: number for number, category in enumerate(self.rows.categories)}

    def read(self, questions: _Questions, reading: str) -> NDArray[np.float64]:
        """A score (Q,) for each question. A category without a row has its odds, however scores are read.

        These are the highest where every training picture holds it, and the lowest where none does.
        """
        odds_K = self.rows.odds.numpy()
        found = []
        for picture, category in zip(questions.pictures, questions.categories, strict=True):
            column = self.place.get(category)
            if column is None:
                found.append(self.certain if category in self.always else float(odds_K.min()))
                continue
            odds, score = float(odds_K[column]), float(self.scores[picture, column])
            found.append({"score": score, "less_odds": score - odds, "prior": odds}[reading])
        return np.array(found)


def _measure(train: _Pictures, test: _Pictures, settings: ProbeSettings, progress: Progress) -> dict[str, Any]:
    categories, always, held_PK, known_PK = _targets(train)
    features_PCN = train.matrix()
    fold_P = np.random.default_rng(settings.seed).permutation(len(held_PK)) % NUM_FOLDS
    unseen_PK = np.zeros(held_PK.shape, dtype=np.float32)
    for number in range(NUM_FOLDS):
        mine = torch.from_numpy(fold_P == number)
        rows = _learn(features_PCN[~mine], held_PK[~mine], known_PK[~mine], categories)
        unseen_PK[mine.numpy()] = rows.scores(features_PCN[mine])
        progress("probe", number + 1, NUM_FOLDS + 1)
    rows = _learn(features_PCN, held_PK, known_PK, categories)
    progress("probe", NUM_FOLDS + 1, NUM_FOLDS + 1)
    del features_PCN
    certain = float(np.log(2 * len(held_PK) + 1))  # of all pictures and no other, counted as in `_learn`
    chosen = _Scorer(rows, unseen_PK, always, certain)
    seen = _Scorer(rows, rows.scores(test.matrix()), always, certain)
    training, testing = _ask(train, settings.seed), _ask(test, settings.seed)
    _check_questions(training, testing)
    strange = {c for questions in testing.values() for c in questions.categories} - set(categories)
    return {
        "pope": {split: _figures(chosen, training[split], seen, testing[split]) for split in SPLITS},
        "pointing": _pointing(rows, test),
        "num_pictures": {"train": len(train.annotated), "test": len(test.annotated)},
        "grid": list(test.grid),
        "notes": [
            f"{len(some)} categories asked are in {where} training picture: {', '.join(sorted(some))}"
            for where, some in (("no", strange - always), ("every", strange & always))
            if some
        ],
    }


def _targets(pictures: _Pictures) -> tuple[tuple[str, ...], frozenset[str], Tensor, Tensor]:
    """The categories that some pictures hold and some do not, and those that all do, as far as that is known.

    Of the former also which pictures hold them, and of which that is known.
    """
    vocabulary = tuple(dict.fromkeys(category for known in pictures.vocabularies for category in known))
    held_PK = torch.tensor([[c in p.categories for c in vocabulary] for p in pictures.annotated])
    known_PK = torch.tensor([[c in known for c in vocabulary] for known in pictures.vocabularies])
    somewhere_K, missing_K = (held_PK & known_PK).any(0), (~held_PK & known_PK).any(0)
    tells, everywhere = (somewhere_K & missing_K).tolist(), (somewhere_K & ~missing_K).tolist()
    if not any(tells):
        raise ValueError(
            f"none of {len(vocabulary)} categories tells the {len(pictures.annotated)} training pictures apart: each "
            "is in all of them or in none; give pictures that differ in what they show"
        )
    categories, always = tuple(compress(vocabulary, tells)), frozenset(compress(vocabulary, everywhere))
    return categories, always, held_PK[:, tells], known_PK[:, tells]


def _check_questions(*asked: dict[str, _Questions]) -> None:
    for questions in asked:
        if not len(questions["random"].yes):
            raise ValueError(
                "no picture has both a category that is there and one that is not: POPE has nothing to ask"
            )


def _figures(chosen: _Scorer, training: _Questions, seen: _Scorer, testing: _Questions) -> dict[str, Any]:
    """The reading and threshold that answer the training questions best, and how they answer those of the test."""
    best = max(
        (_best_threshold(chosen.read(training, reading), training.yes), reading) for reading in ("score", "less_odds")
    )
    (trained_accuracy, threshold), reading = best
    scores_Q, prior_Q = seen.read(testing, reading), seen.read(testing, "prior")
    right_Q = (scores_Q >= threshold) == testing.yes
    _, prior_threshold = _best_threshold(chosen.read(training, "prior"), training.yes)
    by_picture: dict[int, list[float]] = {}
    for picture, right in zip(testing.pictures.tolist(), right_Q.tolist(), strict=True):
        by_picture.setdefault(picture, []).append(float(right))
    return {
        "accuracy": float(right_Q.mean()),
        "accuracy_interval": list(interval_of_mean(list(by_picture.values()))),
        "auroc": auroc(scores_Q[testing.yes].tolist(), scores_Q[~testing.yes].tolist()),
        "prior_accuracy": float(((prior_Q >= prior_threshold) == testing.yes).mean()),
        "prior_auroc": auroc(prior_Q[testing.yes].tolist(), prior_Q[~testing.yes].tolist()),
        "yes_ratio": float((scores_Q >= threshold).mean()),
        "reading": reading,
        "threshold": threshold,
        "accuracy_in_training": trained_accuracy,
        "num_questions": len(right_Q),
    }


def _best_threshold(scores_Q: NDArray[np.float64], yes_Q: NDArray[np.bool_]) -> tuple[float, float]:
    """The best accuracy of yes from a threshold on, and the threshold in the middle of its gap."""
    order_Q = np.argsort(scores_Q, kind="stable")
    scores_Q, yes_Q = scores_Q[order_Q], yes_Q[order_Q]
    right = np.concatenate([[yes_Q.sum()], yes_Q.sum() + np.cumsum(~yes_Q) - np.cumsum(yes_Q)])  # the first n are no
    ends = np.concatenate([[scores_Q[0] - 1], scores_Q, [scores_Q[-1] + 1]])
    right = np.where(np.diff(ends) > 0, right, -1)  # equal scores get one answer
    first = int(right.argmax())
    return float(right[first] / len(yes_Q)), float((ends[first] + ends[first + 1]) / 2)


def _pointing(rows: _Rows, test: _Pictures) -> dict[str, Any]:
    """Whether the highest cell of a category that is there lies on it, and how often the grid allows that."""
    place = {category: number for number, category in enumerate(rows.categories)}
    hits, ceilings = [], []
    for picture, (cache, number) in zip(test.annotated, test.features, strict=True):
        features_PCN = torch.from_numpy(cache[number]).float().flatten(2)
        maps_Khw = rows.maps(features_PCN)[0].unflatten(-1, test.grid).numpy()
        for category in picture.categories:
            mask_YX = union_mask(masks_of(picture, category))
            if category in place and mask_YX.any():
                map_hw = maps_Khw[place[category]]
                hits.append(points_inside(map_hw - map_hw.min(), mask_YX, TOLERANCE_RATIO))
                ceilings.append(points_inside(mask_to_grid(mask_YX, test.grid), mask_YX, TOLERANCE_RATIO))
    if not hits:
        return {"num_words": 0}
    return {"accuracy": float(np.mean(hits)), "ceiling": float(np.mean(ceilings)), "num_words": len(hits)}
