"""A comparison: its recipe, its runs side by side, going on after a stop, and what comparison.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tiny_runs import make_foundation, make_recipe

from agevlm.comparison.jobs import Job, run_jobs
from agevlm.comparison.recipe import ComparisonRecipe, load_comparison
from agevlm.comparison.run import compare, training_jobs
from agevlm.comparison.summary import summarise
from agevlm.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two arms of two stages on tiny foundations; the second arm is the concatenation baseline, with one seed."""
    foundation = make_foundation(tmp_path_factory.mktemp("foundation"))
    common = make_recipe(foundation, "align", "instruct", evaluation={"num_images": 12, "batch_size": 64})
    common.pop("name")
    concat = {"stages.align.trainable": ["projector"], "stages.instruct.trainable": ["projector", "language_model"]}
    arms = {
        "age": {"title": "guided", "set": {"stages.instruct.guidance": {"weight": 0.5}}},
        "concat": {"title": "in front", "num_seeds": 1, "set": {"model.architecture": "concat", **concat}},
    }
    return {"name": "small", "num_seeds": 2, "common": common, "arms": arms}


@pytest.fixture(scope="module")
def done(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonRecipe, Path]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    recipe = ComparisonRecipe.model_validate(content)
    compare(recipe, out, num_parallel=2, console=QUIET)
    return recipe, out


def test_every_arm_is_trained_with_every_seed_of_its_own(done: tuple[ComparisonRecipe, Path]) -> None:
    _, out = done
    assert sorted(path.parent.relative_to(out).as_posix() for path in out.glob("*/*/report.html")) == [
        "age/0",
        "age/1",
        "concat/0",
    ]
    for arm in ("age", "concat"):
        recipe = load_recipe(out / arm / "0" / "recipe.yaml")
        assert recipe.model.architecture == {"age": "cross_attention", "concat": "concat"}[arm]
        assert recipe.evaluation is not None
    second = load_recipe(out / "age" / "1" / "recipe.yaml")
    assert second.seed == 1
    assert second.evaluation is not None and second.evaluation.seed == 1


def test_arms_of_one_seed_read_the_same_data_in_the_same_order(done: tuple[ComparisonRecipe, Path]) -> None:
    _, out = done
    asked = [
        [json.loads(line)["id"] for line in (out / arm / "0" / "predictions.jsonl").open()] for arm in ("age", "concat")
    ]
    assert asked[0] == asked[1]
    first, second = (load_recipe(out / arm / "0" / "recipe.yaml") for arm in ("age", "concat"))
    assert first.data == second.data
    for one, two in zip(first.stages, second.stages, strict=True):
        assert (one.data, one.kinds, one.steps, one.images_per_batch) == (
            two.data,
            two.kinds,
            two.steps,
            two.images_per_batch,
        )


def test_what_is_done_is_not_trained_again(done: tuple[ComparisonRecipe, Path]) -> None:
    recipe, out = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    compare(recipe, out, console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


def test_the_summary_has_figures_differences_and_their_intervals(done: tuple[ComparisonRecipe, Path]) -> None:
    summary = summarise(*done)
    adversarial = summary["arms"]["age"]["pope"]["adversarial"]["accuracy"]
    assert len(adversarial["values"]) == 2
    assert 0 <= adversarial["low"] <= adversarial["mean"] <= adversarial["high"] <= 1
    metrics = json.loads((done[1] / "age" / "1" / "metrics.json").read_text())
    assert adversarial["values"][1] == pytest.approx(metrics["pope"]["adversarial"]["accuracy"])
    assert "null_token" not in summary["arms"]["concat"]
    forth, back = (
        summary["differences"][a][b]["pope"]["random"]["accuracy"] for a, b in (("age", "concat"), ("concat", "age"))
    )
    assert forth["mean"] == pytest.approx(-back["mean"])
    assert forth["num_seeds"] == 1
    assert summary["error_ratios"]["age"]["concat"]["mean"] > 0
    questions = sum(cell["num_questions"] for cell in summary["breakdown"]["age"]["false_yes"]["num_objects"])
    assert (
        questions
        == sum(cell["num_questions"] for cell in summary["breakdown"]["age"]["false_yes"]["co_occurrence"])
        > 0
    )
    assert set(summary["detection"]["age"]["adversarial"]) == {"null_mass", "p_no", "entropy"}
    assert set(summary["detection"]["concat"]["adversarial"]) == {"p_no", "entropy"}
    json.dumps(summary)


def test_another_recipe_does_not_go_into_the_same_directory(done: tuple[ComparisonRecipe, Path]) -> None:
    recipe, out = done
    with pytest.raises(ValueError, match="differs from the recipe given"):
        compare(recipe.model_copy(update={"num_seeds": 3}), out, console=QUIET)


def test_the_recipe_in_the_package_has_the_arms_of_the_claim() -> None:
    recipe = load_comparison(ROOT / "recipes" / "comparison.yaml")
    assert list(recipe.arms) == ["concat", "concat_pooled", "concat_guided", "cross_attention", "age", "age_plus"]
    age, plus = recipe.recipe_of("age", 0), recipe.recipe_of("age_plus", 0)
    assert [stage.guidance is not None for stage in age.stages] == [False, False, True, False]
    assert [stage.guidance is not None for stage in plus.stages] == [False, False, True, True]
    assert recipe.recipe_of("concat_pooled", 1).model.pool_size == 2
    assert {recipe.recipe_of(arm, 0).stages[3].steps for arm in recipe.arms} == {1200}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"arms": {"age": {"title": "x", "set": {"stages.instruct.gidance": None}}}},
            "arm age.*did you mean 'guidance'",
        ),
        ({"arms": {"a b": {"title": "x"}}}, "the arm 'a b' needs a name"),
        ({"arms": {"age": {"caption": "x"}}}, "caption"),
        ({"num_seeds": 0}, "num_seeds"),
    ],
)
def test_wrong_recipes_are_named(content: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump(content | change))
    with pytest.raises(ValueError, match=message):
        load_comparison(file)


def test_a_job_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    wrong = Job("age 3", ("train", "nowhere.yaml"), tmp_path / "never", tmp_path / "logs" / "age-3.log")
    with pytest.raises(ValueError, match=r"age 3 failed: .*nowhere.yaml.*age-3.log"):
        run_jobs([wrong], 1, QUIET)


def test_jobs_come_seed_by_seed(content: dict[str, Any], tmp_path: Path) -> None:
    jobs = training_jobs(ComparisonRecipe.model_validate(content), tmp_path, ["age", "concat"])
    assert [job.name for job in jobs] == ["age 0", "concat 0", "age 1"]
    assert jobs[0].num_steps == 6
