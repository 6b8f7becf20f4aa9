"""Situations of scenes drawn again and of answers written by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from agevlm.data.pope import Statistics
from agevlm.data.scenes import WorldSpec, draw_scene, split_seed
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance
from agevlm.evaluation.breakdown import (
    EDGES,
    TABLES,
    Facts,
    PopeAnswer,
    breakdown,
    errors,
    facts_of,
    pope_answers,
    scenes_facts,
)
from agevlm.evaluation.scenes import scenes_benchmark, training_statistics
from agevlm.evaluation.statistics import difference

SPEC = WorldSpec(image_size=96)
NUM_IMAGES = 12


def _annotated(identity: str, *things: tuple[str, float]) -> AnnotatedImage:
    instances = tuple(
        Instance(category, {"size": [10, 20], "counts": ""}, (0, 0, 1, 1), area) for category, area in things
    )
    return AnnotatedImage(ImageSource(identity, 10, 20), instances)


@cache
def _counted(seed: int) -> list[AnnotatedImage]:
    return training_statistics(SPEC, seed, 40)


@cache
def _scene_facts(seed: int, co_occurrence: float | None = None) -> dict[tuple[str, str], Facts]:
    return scenes_facts(SPEC, seed, NUM_IMAGES, co_occurrence=co_occurrence, statistics=_counted(seed))


@cache
def _asked(seed: int) -> list[Any]:
    world = SPEC.model_copy(update={"co_occurrence": 0.4})
    samples = scenes_benchmark(world, seed, NUM_IMAGES, statistics=_counted(seed))
    return [(sample.id, conversation) for sample in samples for conversation in sample.conversations]


def _scene_records(seed: int, says: str | None = None) -> list[dict[str, Any]]:
    """Records of the benchmark, as a model that always `says` this, or the truth, would leave them."""
    return [
        {
            "id": c.id,
            "image": image,
            "kind": c.kind,
            "question": c.messages[0].content,
            "reference": c.messages[1].content,
            "parsed": says or c.messages[1].content,
        }
        for image, c in _asked(seed)
    ]


def test_facts_by_hand() -> None:
    counted = [
        _annotated("a", ("cup", 1), ("table", 1)),
        _annotated("b", ("cup", 1), ("fish", 1)),
        _annotated("c", ("cup", 1)),
        _annotated("d", ("table", 1), ("fish", 1)),
    ]
    facts = facts_of([_annotated("x", ("cup", 20), ("cup", 50), ("table", 4))], Statistics.of(counted))
    assert facts["x", "is there a fish in the picture?"] == Facts(1 / 2, None, 3)  # of 2 tables 1, of 3 cups 1
    assert facts["x", "is there a cup in the picture?"] == Facts(1 / 2, 50 / 200, 3)  # of 2 tables 1; the larger cup
    assert facts["x", "is there a table in the picture?"] == Facts(1 / 3, 4 / 200, 3)


def test_nothing_else_there_means_no_co_occurrence() -> None:
    facts = facts_of([_annotated("x", ("cup", 20))], Statistics.of([_annotated("a", ("cup", 1), ("fish", 1))]))
    assert facts["x", "is there a cup in the picture?"].co_occurrence == 0.0
    assert facts["x", "is there a fish in the picture?"].co_occurrence == 1.0


def test_scenes_drawn_again_fit_the_benchmark() -> None:
    records, facts = _scene_records(3), _scene_facts(3)
    answers = pope_answers(records, facts)
    pope = [record for record in records if record["kind"].startswith("pope")]
    assert len({(record["image"], record["question"]) for record in pope}) == len(answers) < len(pope)
    assert [answer.said_yes for answer in answers] == [answer.present for answer in answers]
    scene = draw_scene(SPEC.model_copy(update={"co_occurrence": 0.4}), split_seed("test", 3), 0).annotation
    ours = [answer for answer in answers if answer.image == scene.image.id]
    assert {answer.facts.num_objects for answer in ours} == {len(scene.instances)}
    largest = max(instance.area for instance in scene.instances) / 96**2
    assert max(answer.facts.size_ratio or 0 for answer in ours) <= largest


def test_adversarial_questions_co_occur_more_than_random_ones() -> None:
    records, facts = _scene_records(0), _scene_facts(0)
    mean = {}
    for kind in ("pope.random", "pope.adversarial"):
        asked = [r for r in records if r["kind"] == kind and r["reference"] == "no"]
        mean[kind] = sum(facts[r["image"], r["question"]].co_occurrence for r in asked) / len(asked)
    assert mean["pope.adversarial"] > 2 * mean["pope.random"]


def test_facts_of_another_world_are_an_error() -> None:
    records = _scene_records(3)
    with pytest.raises(ValueError, match="other pictures"):
        pope_answers(records, _scene_facts(4))
    with pytest.raises(ValueError, match="another world"):
        pope_answers(records, _scene_facts(3, 0.8))


def test_bins_sum_to_the_total_and_extremes_are_what_they_are() -> None:
    facts = _scene_facts(3)
    yes_sayer, knower = (pope_answers(_scene_records(3, says), facts) for says in ("yes", None))
    for answers, rates in ((yes_sayer, {"false_yes": 1.0, "miss": 0.0}), (knower, {"false_yes": 0.0, "miss": 0.0})):
        tables = breakdown({3: answers})
        for rate, situation in TABLES:
            cells = tables[rate][situation]
            assert sum(cell.num_questions for cell in cells) == sum(a.present == (rate == "miss") for a in answers)
            assert {cell.rate.mean for cell in cells if cell.rate} == {rates[rate]}
        json.dumps([cell.record() for cells in tables["miss"].values() for cell in cells], allow_nan=False)


def _answer(number: int, said_yes: bool, facts: Facts) -> PopeAnswer:
    return PopeAnswer(str(number), f"image-{number}", facts, said_yes)


def test_a_value_on_an_edge_belongs_to_the_bin_above() -> None:
    edge = EDGES["co_occurrence"][1]
    tables = breakdown({0: [_answer(0, True, Facts(edge, None, 2)), _answer(1, False, Facts(1.0, None, 9))]})
    assert [cell.num_questions for cell in tables["false_yes"]["co_occurrence"]] == [0, 1, 1]
    assert [cell.num_questions for cell in tables["false_yes"]["num_objects"]] == [1, 0, 1]
    empty = tables["false_yes"]["co_occurrence"][0]
    assert empty.record() == {"from": 0.0, "below": edge, "num_questions": 0, "rate": None}
    assert tables["miss"]["size_ratio"][-1].high == math.inf
    assert tables["miss"]["size_ratio"][-1].record()["below"] is None


def test_seeds_without_such_questions_are_left_out() -> None:
    often, never = Facts(0.9, None, 2), Facts(0.0, None, 2)
    runs = {
        0: [_answer(0, True, often), _answer(1, False, often), _answer(2, True, never)],
        1: [_answer(0, False, never)],
    }
    cells = breakdown(runs)["false_yes"]["co_occurrence"]
    assert cells[0].rate is not None and cells[2].rate is not None
    assert (cells[0].rate.mean, cells[0].rate.num_seeds) == (0.5, 2)
    assert (cells[2].rate.mean, cells[2].rate.num_seeds, cells[2].num_questions) == (0.5, 1, 2)
    assert errors(runs[1], "false_yes", "co_occurrence", 0.6, math.inf) is None


def test_an_unread_answer_is_a_miss_and_no_false_yes() -> None:
    facts = _scene_facts(3)
    tables = breakdown({3: pope_answers(_scene_records(3, "maybe"), facts)})
    assert all(cell.rate.mean == 1.0 for cell in tables["miss"]["num_objects"] if cell.rate)
    assert all(cell.rate.mean == 0.0 for cell in tables["false_yes"]["num_objects"] if cell.rate)


def test_arms_are_compared_within_a_bin() -> None:
    facts = Facts(0.9, None, 2)
    worse = [_answer(number, number % 2 == 0, facts) for number in range(40)]
    better = [replace(answer, said_yes=False) for answer in worse]
    first, second = ({0: errors(a, "false_yes", "co_occurrence", 0.6, math.inf)} for a in (worse, better))
    found = difference(first, second)  # type: ignore[arg-type]
    assert found.mean == 0.5
    assert found.low > 0.3


def test_statistics_are_those_of_the_benchmark_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.evaluation.scenes.training_statistics", lambda spec, seed: _counted(seed))
    drawn = scenes_facts(SPEC, 3, 2)
    assert drawn == scenes_facts(SPEC, 3, 2, statistics=_counted(3))
    assert drawn != scenes_facts(SPEC, 3, 2, statistics=_counted(4))
