"""Hallucination by situation: how often a thing is wrongly seen or missed, by what else is there and by its size.

Pure functions on records of predictions.jsonl and `Facts` about what was asked. POPE's splits share questions; each
question about a picture counts once. An answer that could not be read is no yes: a miss where the thing is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from agevlm.data.language import presence_conversation
from agevlm.data.pope import POPE_KINDS, Statistics
from agevlm.data.schema import AnnotatedImage
from agevlm.evaluation.run_figures import Record, Share, reference_is_yes
from agevlm.evaluation.statistics import Estimate, Groups, estimate

if TYPE_CHECKING:
    from agevlm.data.scenes import WorldSpec

Rate = Literal["false_yes", "miss"]
Situation = Literal["co_occurrence", "size_ratio", "num_objects"]

EDGES: Mapping[Situation, tuple[float, ...]] = MappingProxyType(
    {
        "co_occurrence": (0.0, 0.2, 0.6, math.inf),  # scenes: strangers near 0.1, group near 0.35, partners near 0.8
        "size_ratio": (0.0, 0.015, 0.03, math.inf),  # scenes: 0.002 to 0.07, a quarter below 0.015, a third above 0.03
        "num_objects": (1.0, 3.0, 5.0, math.inf),
    }
)
"""Where bins begin and end: from an edge, inclusive, to the next."""

TABLES: tuple[tuple[Rate, Situation], ...] = (
    ("false_yes", "co_occurrence"),
    ("false_yes", "num_objects"),
    ("miss", "size_ratio"),
    ("miss", "num_objects"),
)


@dataclass(frozen=True)
class Facts:
    """What is true of a question whether a category is in a picture.

    `co_occurrence`: the largest share, over the other categories that are there, of the counted pictures with that one
    which hold the asked one too; 0 where there is no other. `size_ratio`: visible area of the largest instance over the
    picture's, in (0, 1], None for something absent. `num_objects`: instances in the picture, of any category.
    """

    co_occurrence: float
    size_ratio: float | None
    num_objects: int


@dataclass(frozen=True)
class PopeAnswer:
    """A POPE question and its facts; `said_yes` is what the model made of it."""

    id: str
    image: str
    facts: Facts
    said_yes: bool

    @property
    def present(self) -> bool:
        """Whether the thing is there."""
        return self.facts.size_ratio is not None


@dataclass(frozen=True)
class Cell:
    """Questions from `low` to below `high` (infinite: no end) of a situation, of all seeds, and their rate of errors.

    `rate` is None where no seed asked any.
    """

    low: float
    high: float
    num_questions: int
    rate: Estimate | None

    def record(self) -> dict[str, Any]:
        """As JSON has it: the estimate beside the bin and the count."""
        return {
            "from": self.low,
            "below": self.high if math.isfinite(self.high) else None,
            "num_questions": self.num_questions,
            "rate": self.rate.record() if self.rate else None,
        }


FactsOf = Mapping[tuple[str, str], Facts]
"""Facts by picture and text of the question."""


def facts_of(pictures: Iterable[AnnotatedImage], statistics: Statistics) -> dict[tuple[str, str], Facts]:
    """Facts of POPE's question about every category of the vocabulary in every picture, by picture and question text.

    `statistics` are those that POPE's adversarial split was drawn with.
    """
    text_of = {category: _question(category) for category in statistics.vocabulary}
    return {
        (annotated.image.id, text): _facts(annotated, category, statistics)
        for annotated in pictures
        for category, text in text_of.items()
    }


def scenes_facts(
    spec: WorldSpec,
    seed: int,
    num_images: int = 600,
    *,
    split: str = "test",
    co_occurrence: float | None = None,
    statistics: Sequence[AnnotatedImage] | None = None,
) -> dict[tuple[str, str], Facts]:
    """Facts of the scenes benchmark, drawn again: `spec` is the training world, the rest as `agevlm evaluate` had it.

    `co_occurrence` None is that of the test world; for the predictions in `biased/` it is the training world's own.
    `statistics` None are the benchmark's own, drawn again too.
    """
    from agevlm.data.scenes import CATEGORIES, draw_scene, split_seed
    from agevlm.evaluation.scenes import TEST_CO_OCCURRENCE, training_statistics

    changed = TEST_CO_OCCURRENCE if co_occurrence is None else co_occurrence
    world = spec.model_copy(update={"co_occurrence": changed})
    scene_seed = split_seed(split, seed)
    drawn = (draw_scene(world, scene_seed, index).annotation for index in range(num_images))
    counted = training_statistics(spec, seed) if statistics is None else statistics
    return facts_of(drawn, Statistics.of(counted, CATEGORIES))


def _question(category: str) -> str:
    return presence_conversation("", POPE_KINDS[0], category, ()).messages[0].content


def _facts(annotated: AnnotatedImage, category: str, statistics: Statistics) -> Facts:
    shares = [
        statistics.cooccurrence[other, category] / statistics.frequency[other]
        for other in annotated.categories
        if other != category and statistics.frequency[other]
    ]
    areas = [instance.area for instance in annotated.instances if instance.category == category]
    size_ratio = max(areas) / (annotated.image.height * annotated.image.width) if areas else None
    return Facts(max(shares, default=0.0), size_ratio, len(annotated.instances))


def pope_answers(records: Iterable[Record], facts: FactsOf) -> list[PopeAnswer]:
    """The POPE questions among `records`, each picture and text once, with their facts; others are left out.

    A question without facts, and one whose reference is not what the facts say, are ValueErrors: the facts are then of
    another world.
    """
    found: dict[tuple[str, str], PopeAnswer] = {}
    for record in records:
        key = (record["image"], record["question"])
        if record["kind"] not in POPE_KINDS or key in found:
            continue
        if key not in facts:
            raise ValueError(f"no facts of question {record['id']}, {record['question']!r}: they are of other pictures")
        answer = PopeAnswer(record["id"], record["image"], facts[key], record["parsed"] == "yes")
        if answer.present != reference_is_yes(record):
            raise ValueError(
                f"question {record['id']}, {record['question']!r}, has the reference {record['reference']!r}, and the "
                f"facts say that the thing is {'there' if answer.present else 'not there'}: they are of another world"
            )
        found[key] = answer
    return list(found.values())


def errors(answers: Sequence[PopeAnswer], rate: Rate, situation: Situation, low: float, high: float) -> Share | None:
    """The share of errors among the questions of one run in a bin, for `statistics.estimate`, `difference`, `ratio`.

    False yes answers are counted over things that are not there, misses over things that are. None without a question.
    """
    inside = [a for a in answers if a.present == (rate == "miss") and low <= _value(a.facts, situation) < high]
    if not inside:
        return None
    wrong = [float(a.said_yes != a.present) for a in inside]
    return Share([a.id for a in inside], [a.image for a in inside], wrong, [1.0] * len(inside))


def _value(facts: Facts, situation: Situation) -> float:
    if situation == "size_ratio":
        assert facts.size_ratio is not None, "only what is there has a size"
        return facts.size_ratio
    return facts.co_occurrence if situation == "co_occurrence" else facts.num_objects


def breakdown(
    runs: Mapping[int, Sequence[PopeAnswer]], groups: Groups = None
) -> dict[Rate, dict[Situation, list[Cell]]]:
    """`TABLES` of one arm, seed → its answers: the rate of errors in each bin of `EDGES`, mean over seeds.

    Seeds that asked nothing in a bin are left out of it, see the estimate's `num_seeds`.
    """
    tables: dict[Rate, dict[Situation, list[Cell]]] = {}
    for rate, situation in TABLES:
        cells = [_cell(runs, groups, rate, situation, low, high) for low, high in pairwise(EDGES[situation])]
        tables.setdefault(rate, {})[situation] = cells
    return tables


def _cell(
    runs: Mapping[int, Sequence[PopeAnswer]], groups: Groups, rate: Rate, situation: Situation, low: float, high: float
) -> Cell:
    found = {seed: errors(answers, rate, situation, low, high) for seed, answers in runs.items()}
    shares = {seed: share for seed, share in found.items() if share is not None}
    count = sum(len(share.ids) for share in shares.values())
    return Cell(low, high, count, estimate(shares, bounds=(0.0, 1.0), groups=groups) if shares else None)
