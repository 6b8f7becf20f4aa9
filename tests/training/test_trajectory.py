"""Along a run: the points that it kept, and that they are the models of those steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_runs import assert_same_weights, make_recipe, run

from agevlm.training.trajectory import trajectory


@pytest.fixture(scope="module")
def done(foundation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trajectory") / "run"
    evaluation = {"num_images": 8, "batch_size": 64}
    run(make_recipe(foundation, "align", "instruct", evaluation=evaluation, snapshot_steps=1), out)
    return out


def test_points_stand_at_snapshots_and_at_the_ends_of_stages(done: Path) -> None:
    points = trajectory(done, num_images=8)
    assert [point["step"] for point in points] == [1, 2, 3, 4, 5, 6]
    assert [point["stage"] for point in points] == ["align"] * 3 + ["instruct"] * 3
    assert [point["ends_stage"] for point in points] == [False, False, True] * 2
    assert json.loads((done / "trajectory.json").read_text()) == points
    metrics = json.loads((done / "metrics.json").read_text())
    last = points[-1]["metrics"]
    for figure in ("accuracy", "auroc"):
        assert last["pope"]["adversarial"][figure] == pytest.approx(metrics["pope"]["adversarial"][figure])
    assert last["text_perplexity"] == pytest.approx(metrics["text_perplexity"]["after"])
    perplexities = [point["metrics"]["text_perplexity"] for point in points]
    assert len(set(perplexities[3:])) == 3 and perplexities[0] == pytest.approx(metrics["text_perplexity"]["before"])


def test_snapshots_are_the_models_of_a_run_that_stops_there(done: Path, foundation: Path, tmp_path: Path) -> None:
    align = {"name": "align", "trainable": ["projector", "gates"], "kinds": {"caption": 1.0, "caption.relation": 0.5}}
    constant = {**align, "lr_scheduler": "constant_with_warmup", "warmup_ratio": 0.0}
    run(make_recipe(foundation, constant, snapshot_steps=1), tmp_path / "long")
    run(make_recipe(foundation, {**constant, "steps": 2}), tmp_path / "short")
    assert_same_weights(tmp_path / "long" / "snapshots" / "1-align-2", tmp_path / "short" / "1-align")


def test_a_directory_that_is_no_finished_run_is_named(foundation: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is not the directory of a finished run")):
        trajectory(tmp_path)
    run(make_recipe(foundation, "align"), tmp_path / "run")
    with pytest.raises(ValueError, match="has no evaluation"):
        trajectory(tmp_path / "run")
