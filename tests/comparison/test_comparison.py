"""A comparison: its recipe, its runs side by side, going on after a stop, and what comparison.json says."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tiny_runs import make_foundation, make_recipe
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.comparison.jobs import Job, run_jobs
from agevlm.comparison.readings import difference
from agevlm.comparison.recipe import ComparisonRecipe, load_comparison
from agevlm.comparison.run import compare, costs_job, equal_time_factors, foundation_jobs, training_jobs
from agevlm.comparison.run import test_jobs as jobs_of_tests
from agevlm.comparison.summary import summarise
from agevlm.data.scenes import WorldSpec
from agevlm.data.scenes.export import export_parquet
from agevlm.data.schema import IGNORE_INDEX
from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.recipe import load_recipe
from agevlm.training.run import build_model, open_source, stage_collator
from agevlm.training.timing import draw_batches, with_features

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
CLAIM = {"said": "it points", "arm": "age", "figure": "pointing.accuracy", "at_least": 0.9}


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
    common["snapshot_steps"] = 2
    stored = tmp_path_factory.mktemp("stored") / "scenes"
    export_parquet(stored, WorldSpec(min_objects=2), 3, 6)
    settings = {"num_seeds": 2, "equal_time": {"reference": "age", "num_seeds": 1}, "costs": [144]}
    settings["tests"] = {"stored": str(stored)}
    return {"name": "small", **settings, "common": common, "arms": arms}


@pytest.fixture(scope="module")
def done(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonRecipe, Path]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    recipe = ComparisonRecipe.model_validate(content)
    (out / "recipes").mkdir(parents=True)
    (out / "costs.json").write_text(
        costs_of(age=1.0, concat=1.5)
    )  # no figure of this machine may decide what is tested
    compare(recipe, out, num_parallel=2, console=QUIET)
    return recipe, out


def test_every_arm_is_trained_with_every_seed_of_its_own(done: tuple[ComparisonRecipe, Path]) -> None:
    _, out = done
    done_runs = sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("report.html"))
    assert done_runs == ["age/0", "age/1", "concat/0", "equal_time/concat/0"]
    assert not (out / "cache").exists()
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


def test_the_command_writes_figures_and_page_and_trains_nothing_again(
    done: tuple[ComparisonRecipe, Path], tmp_path: Path
) -> None:
    recipe, out = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    file, figures = tmp_path / "small.yaml", tmp_path / "small.json"
    said = {"page": {"title": "Two arms"}, "claims": [CLAIM]}  # words may change, runs stay
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json") | said, sort_keys=False))
    outcome = CliRunner().invoke(app, ["compare", "run", str(file), "--out", str(out), "--json", str(figures)])
    assert outcome.exit_code == 0, outcome.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before
    assert figures.read_bytes() == (out / "small.json").read_bytes()
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "guided" in page and 'href="age/1/report.html"' in page
    assert "<h1>Two arms</h1>" in page and "it points" in page


def test_the_summary_has_figures_differences_and_their_intervals(done: tuple[ComparisonRecipe, Path]) -> None:
    summary = summarise(*done)
    adversarial = summary["arms"]["age"]["pope"]["adversarial"]["accuracy"]
    assert len(adversarial["values"]) == 2
    assert 0 <= adversarial["low"] <= adversarial["mean"] <= adversarial["high"] <= 1
    metrics = json.loads((done[1] / "age" / "1" / "metrics.json").read_text())
    assert adversarial["values"][1] == pytest.approx(metrics["pope"]["adversarial"]["accuracy"])
    assert "null_token" not in summary["arms"]["concat"]
    biased, ratio = metrics["biased"]["pope"]["popular"], summary["arms"]["age"]["biased"]["pope"]["popular"]
    assert ratio["yes_ratio"]["values"][1] == biased["yes_ratio"]  # every figure, not a choice of them
    assert ratio.keys() == {name for name, value in biased.items() if isinstance(value, float)} - {
        "reference_yes_ratio"
    }
    assert list(summary["differences"]) == ["age"], "one way round"
    forth, back = (
        difference(summary, *pair, "pope.random.accuracy") for pair in (("age", "concat"), ("concat", "age"))
    )
    assert forth is not None and back is not None and len(forth.values) == 1
    assert -forth == back
    assert summary["error_ratios"]["age"]["concat"]["mean"] > 0
    questions = sum(cell["num_questions"] for cell in summary["breakdown"]["age"]["false_yes"]["num_objects"])
    assert (
        questions
        == sum(cell["num_questions"] for cell in summary["breakdown"]["age"]["false_yes"]["co_occurrence"])
        > 0
    )
    assert set(summary["detection"]["age"]["adversarial"]) == {"null_mass", "p_no", "entropy"}
    assert set(summary["detection"]["concat"]["adversarial"]) == {"p_no", "entropy"}
    json.dumps(summary, allow_nan=False)


def test_what_runs_are_measured_on_besides_has_figures_of_its_own(done: tuple[ComparisonRecipe, Path]) -> None:
    domain = summarise(*done)["domains"]["stored"]
    assert domain["runs"] == {"age": [0, 1], "concat": [0]}
    metrics = json.loads((done[1] / "age" / "1" / "tests" / "stored" / "metrics.json").read_text())
    accuracy = domain["arms"]["age"]["pope"]["random"]["accuracy"]
    assert accuracy["values"][1] == pytest.approx(metrics["pope"]["random"]["accuracy"])
    assert domain["differences"]["age"]["concat"]["pope"]["random"]["accuracy"]["values"]
    assert domain["error_ratios"].keys() == {"age", "concat"}


def test_the_summary_follows_the_figures_along_the_training(done: tuple[ComparisonRecipe, Path]) -> None:
    summary = summarise(*done)
    curve = summary["curves"]["age"]
    assert [(point["stage"], point["step"], point["ends_stage"]) for point in curve] == [
        ("align", 2, False),
        ("align", 3, True),
        ("instruct", 5, False),
        ("instruct", 6, True),
    ]
    for point in curve:
        accuracy, perplexity = (point["figures"][name] for name in ("pope.adversarial.accuracy", "text_perplexity"))
        assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1
        assert 1 <= perplexity["low"] <= perplexity["mean"]
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    assert curve[-1]["seconds"] == pytest.approx(summary["arms"]["age"]["train"]["seconds"]["mean"])
    perplexity = summary["arms"]["age"]["text_perplexity"]
    assert set(perplexity) == {"before", "align", "after"}
    assert perplexity["align"]["mean"] == pytest.approx(perplexity["before"]["mean"], rel=1e-4)  # text sees no picture


def test_the_summary_says_how_alike_pictures_and_texts_are(done: tuple[ComparisonRecipe, Path]) -> None:
    similarity = summarise(*done)["similarity"]
    for arm, num_seeds in (("age", 2), ("concat", 1)):
        likelihood = similarity[arm]["caption_likelihood"]
        assert 0 <= likelihood["auroc"]["mean"] <= 1 and likelihood["auroc"]["num_seeds"] == num_seeds


def test_runs_at_equal_time_have_their_own_steps(done: tuple[ComparisonRecipe, Path]) -> None:
    recipe, out = done
    assert [stage.steps for stage in load_recipe(out / "equal_time" / "concat" / "0" / "recipe.yaml").stages] == [2, 2]
    equal_time = summarise(recipe, out)["equal_time"]
    assert equal_time["runs"] == {"age": [0], "concat": [0]}
    own = json.loads((out / "equal_time" / "concat" / "0" / "metrics.json").read_text())
    assert equal_time["arms"]["concat"]["pope"]["random"]["accuracy"]["values"] == [own["pope"]["random"]["accuracy"]]
    assert equal_time["error_ratios"]["age"]["concat"]["mean"] > 0
    assert json.loads((out / "equal_time" / "factors.json").read_text()) == equal_time["step_factors"]


def costs_of(**ratios: float) -> str:
    """What `agevlm compare costs` writes, of arms whose step of the last stage takes so many times that of AGE."""
    costs = {
        arm: {"144": {"train": {"instruct": {"seconds_per_step": {"median": 7.0 * time, "ratio": {"median": time}}}}}}
        for arm, time in ratios.items()
    }
    return json.dumps({"costs": costs, "reference": "age"})


def test_equal_time_goes_by_the_costs_of_a_step(content: dict[str, Any], tmp_path: Path) -> None:
    recipe = ComparisonRecipe.model_validate(content)
    (tmp_path / "costs.json").write_text(costs_of(age=1.0, concat=2.0))
    assert equal_time_factors(recipe, tmp_path) == {"age": 1.0, "concat": 0.5}
    (tmp_path / "costs.json").write_text(costs_of(age=1.0, concat=1.025))
    assert equal_time_factors(recipe, tmp_path) == {"age": 1.0, "concat": 1.0}
    (tmp_path / "equal_time").mkdir()
    (tmp_path / "equal_time" / "factors.json").write_text('{"age": 1.0, "concat": 0.5}')  # runs have begun
    assert equal_time_factors(recipe, tmp_path) == {"age": 1.0, "concat": 0.5}


def test_another_recipe_does_not_go_into_the_same_directory(done: tuple[ComparisonRecipe, Path]) -> None:
    recipe, out = done
    with pytest.raises(ValueError, match="differs from the recipe given"):
        compare(recipe.model_copy(update={"cost_repetitions": 3}), out, console=QUIET)
    longer = {**recipe.common, "dtype": "bfloat16"}
    other = recipe.model_copy(update={"name": "other", "common": longer})
    with pytest.raises(ValueError, match=r"age.0.recipe.yaml is of another recipe"):
        compare(other, out, console=QUIET)


def test_seeds_are_added_by_the_same_command(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.comparison.run.run_jobs", lambda *_, **__: None)
    recipe = ComparisonRecipe.model_validate(content | {"equal_time": None, "costs": [], "foundations": None})
    compare(recipe, tmp_path, console=QUIET)
    compare(recipe.model_copy(update={"num_seeds": 4}), tmp_path, console=QUIET)
    assert (tmp_path / "recipes" / "age-3.yaml").exists()
    assert yaml.safe_load((tmp_path / f"{recipe.name}.yaml").read_text())["num_seeds"] == 4


def test_a_directory_of_other_things_is_left_alone(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "pancakes.yaml").touch()
    with pytest.raises(ValueError, match="is not empty and holds no comparison"):
        compare(ComparisonRecipe.model_validate(content), tmp_path, console=QUIET)
    assert [path.name for path in tmp_path.rglob("*")] == ["recipes", "pancakes.yaml"]


def test_a_directory_with_foundations_alone_is_gone_on_with(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.comparison.run.run_jobs", lambda *_, **__: None)
    (tmp_path / "foundations").mkdir()
    compare(ComparisonRecipe.model_validate(content | {"equal_time": None, "costs": []}), tmp_path, console=QUIET)
    assert sorted(path.name for path in (tmp_path / "recipes").iterdir()) == [
        "age-0.yaml",
        "age-1.yaml",
        "concat-0.yaml",
    ]


def test_comparisons_of_one_directory_share_the_runs_that_are_the_same(done: tuple[ComparisonRecipe, Path]) -> None:
    recipe, out = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    fewer = recipe.model_copy(update={"name": "fewer", "num_seeds": 1, "equal_time": None, "costs": ()})
    compare(fewer, out, console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before
    assert summarise(fewer, out)["runs"] == {"age": [0], "concat": [0]}


@pytest.mark.parametrize("added", ["", "arms:\n"])
def test_a_comparison_may_change_another_and_add_no_arm(tmp_path: Path, added: str) -> None:
    shutil.copy(ROOT / "recipes" / "comparison.yaml", tmp_path)
    (tmp_path / "fewer.yaml").write_text(f"extends: comparison.yaml\nname: fewer\nset: {{num_seeds: 2}}\n{added}")
    fewer, whole = (load_comparison(tmp_path / f"{name}.yaml") for name in ("fewer", "comparison"))
    assert (fewer.num_seeds, whole.num_seeds) == (2, 5)
    assert fewer.arms == whole.arms


def test_seeds_begin_where_the_recipe_says(tmp_path: Path) -> None:
    recipe = load_comparison(ROOT / "recipes" / "longer.yaml", ["first_seed=4", "num_seeds=2"])
    assert recipe.seeds == recipe.seeds_of("cross_attention_4x") == range(4, 6)
    assert recipe.seeds_of("cross_attention_16x") == range(4, 5)
    assert recipe.groups_of_seeds == {4: 4, 5: 0}
    assert [job.name for job in foundation_jobs(recipe, tmp_path, recipe.trained)] == ["foundation 0", "foundation 4"]
    trained = training_jobs(recipe, tmp_path, ["cross_attention_4x", "cross_attention_16x"])
    assert [job.name for job in trained] == ["cross_attention_16x 4", "cross_attention_4x 4", "cross_attention_4x 5"]
    costs = costs_job(recipe, tmp_path).arguments
    assert costs[costs.index("--foundation") + 1] == str(tmp_path / "foundations" / "4")


def test_only_foundations_that_a_seed_of_the_arms_starts_from_are_trained(tmp_path: Path) -> None:
    recipe = load_comparison(ROOT / "recipes" / "longer.yaml")
    assert recipe.seeds_of("cross_attention_16x") == range(1)
    assert [job.name for job in foundation_jobs(recipe, tmp_path, ["cross_attention_16x"])] == ["foundation 0"]
    assert len(foundation_jobs(recipe, tmp_path, recipe.trained)) == 3
    written = yaml.safe_load((tmp_path / "foundations" / "2.yaml").read_text())
    assert written["seed"] == 2


def test_models_that_are_ready_are_copied_and_not_trained(tmp_path: Path) -> None:
    recipe = load_comparison(ROOT / "recipes" / "comparison.yaml")
    jobs = foundation_jobs(recipe, tmp_path / "same", ["age"])
    assert [job.done.exists() for job in jobs] == [True, True, False, False, False]
    assert jobs[2].done.parent.name == "tiny-llama"  # all that is left to train
    packaged, copies = ROOT / "src" / "agevlm" / "checkpoints", tmp_path / "same" / "foundations"
    for ready, copy in (
        (packaged / "tiny-llama", "0/tiny-llama"),
        (ROOT / "foundations" / "1" / "tiny-llama", "1/tiny-llama"),
        (ROOT / "foundations" / "2" / "tiny-convnext", "2/tiny-convnext"),
    ):
        weights = (folder / "model.safetensors" for folder in (ready, copies / copy))
        assert len({path.read_bytes() for path in weights}) == 1
    other = load_comparison(ROOT / "recipes" / "comparison.yaml", ["foundations.spec.vision.steps=3"])
    assert not any(job.done.exists() for job in foundation_jobs(other, tmp_path / "other", ["age"]))


def test_without_ready_foundations_those_of_other_seeds_are_trained_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "recipes" / "comparison.yaml", tmp_path)  # as in a wheel: no foundations lie beside it
    recipe = load_comparison(tmp_path / "comparison.yaml", ["equal_time=null", "costs=[]", "num_seeds=2"])
    monkeypatch.setattr("agevlm.comparison.run.run_jobs", lambda *_, **__: None)
    said = Console(record=True, quiet=False, file=io.StringIO())
    out = compare(recipe, tmp_path / "out", console=said)
    assert said.export_text().strip().endswith("foundation 1")
    assert [path.name for path in (out / "foundations").iterdir() if path.is_dir()] == ["0"]
    assert "ready" not in (out / "comparison.yaml").read_text()  # how they were had is no part of what they are


def test_foundations_of_another_recipe_are_not_taken_for_done(tmp_path: Path) -> None:
    recipe = load_comparison(ROOT / "recipes" / "comparison.yaml")
    foundation_jobs(recipe, tmp_path, ["age"])
    known = (tmp_path / "foundations" / "1.yaml").read_text()
    other = load_comparison(ROOT / "recipes" / "comparison.yaml", ["foundations.spec.vision.steps=3"])
    with pytest.raises(ValueError, match=r"foundations/\d/tiny-\w+ was made by another recipe"):
        foundation_jobs(other, tmp_path, ["age"])
    assert (tmp_path / "foundations" / "1.yaml").read_text() == known


def test_extensions_that_cannot_be_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "self.yaml").write_text("name: self\nextends: self.yaml\n")
    with pytest.raises(ValueError, match=r"self\.yaml extends itself"):
        load_comparison(tmp_path / "self.yaml")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "list.yaml").write_text("name: list\nextends: base.yaml\narms: [age]\n")
    with pytest.raises(ValueError, match=r"arms: got \['age'\], expected a mapping from names"):
        load_comparison(tmp_path / "list.yaml")

    for key, value in (("extends", 7.5), ("extends", b"x"), ("extends", "../base.yaml"), ("set", [1]), ("quick", "x")):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"name": "wrong", "extends": "base.yaml", key: value}))
        with pytest.raises(ValueError, match=rf"wrong\.yaml: {key}: got .*, expected "):
            load_comparison(tmp_path / "wrong.yaml")


def test_the_recipe_in_the_package_has_the_arms_of_the_claim() -> None:
    recipe = load_comparison(ROOT / "recipes" / "comparison.yaml")
    assert list(recipe.arms) == ["concat", "concat_pooled", "concat_guided", "cross_attention", "age", "age_plus"]
    age, plus = recipe.recipe_of("age", 0), recipe.recipe_of("age_plus", 0)
    assert [stage.guidance is not None for stage in age.stages] == [False, False, True, False]
    assert [stage.guidance is not None for stage in plus.stages] == [False, False, True, True]
    assert recipe.recipe_of("concat_pooled", 1).model.pool_size == 2
    assert {recipe.recipe_of(arm, 0).stages[3].steps for arm in recipe.arms} == {500}
    quick = load_comparison(ROOT / "recipes" / "comparison.yaml", quick=True)
    assert quick.trained == recipe.trained and quick.foundations is None
    assert quick.recipe_of("age", 0).stages[3].steps < 400


@pytest.mark.parametrize("name", ["sweeps", "longer", "ablations"])
def test_recipes_that_extend_it_change_one_thing_at_a_time(name: str) -> None:
    recipe = load_comparison(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.groups and recipe.equal_time is None
    for title, (first, *others) in recipe.groups.items():
        plain = recipe.recipe_of(first, 0)
        assert all(recipe.recipe_of(other, 0) != plain for other in others), title
    main = load_comparison(ROOT / "recipes" / "comparison.yaml")
    same = recipe.recipe_of("age", 0) == main.recipe_of("age", 0)
    assert same == (name == "longer")  # which shares runs with it


def test_an_arm_like_another_one_adds_to_its_changes(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**content, "quick": {"num_seeds": 1}}))
    arms = {"heavy": {"title": "x", "like": "age", "set": {"stages.instruct.guidance.weight": 2.0}}}
    extension = {"name": "more", "extends": "base.yaml", "set": {"common.dtype": "bfloat16"}, "arms": arms}
    file = tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump({**extension, "groups": {"weight": ["age", "heavy"]}}))
    recipe = load_comparison(file)
    assert recipe.trained == ("age", "heavy") and recipe.equal_time is None
    heavy = recipe.recipe_of("heavy", 0)
    assert heavy.dtype == "bfloat16" and heavy.stages[1].guidance is not None
    assert heavy.stages[1].guidance.weight == 2.0 and heavy.stages[0].guidance is None
    assert load_comparison(tmp_path / "base.yaml", quick=True).num_seeds == 1
    with pytest.raises(ValueError, match="needs the key quick"):
        load_comparison(file, quick=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"arms": {"age": {"title": "x", "set": {"stages.instruct.gidance": None}}}},
            "arm age.*did you mean 'guidance'",
        ),
        ({"arms": {"a b": {"title": "x"}}}, "the arm 'a b' needs a name"),
        ({"arms": {"age": {"titles": "x"}}}, "arms.age.titles: unknown key; did you mean 'title'"),
        ({"num_sedes": 3}, "num_sedes: unknown key; did you mean 'num_seeds'"),
        ({"num_seeds": 0}, "num_seeds"),
        ({"common": {"evaluation": "scenes"}}, "evaluation: .*got 'scenes'"),
        ({"groups": {"weights": ["age", "plus"]}}, "group 'weights' names the arm 'plus'"),
        ({"chosen": ["plus"]}, "chosen names the arm 'plus'"),
        ({"equal_time": {"reference": "plus"}}, "equal_time names the arm 'plus'"),
        ({"costs": []}, "equal_time needs costs at its num_tokens, 144"),
        ({"arms": {"age": {"title": "x", "like": "age"}}}, "'age' is like 'age', which must come before it"),
        ({"page": {"baseline": "plus"}}, "page names the arm 'plus'; there are age, concat"),
        ({"page": {"tilte": "x"}}, "page.tilte: unknown key; did you mean 'title'"),
        ({"claims": [CLAIM | {"arm": "plus"}]}, "'it points' names the arm 'plus'; there are age, concat"),
        ({"claims": [CLAIM | {"against": "plus", "kind": "difference"}]}, "'it points' names the arm 'plus'"),
        ({"claims": [CLAIM | {"at_most": 1}]}, "claims.0: 'it points' needs one of .*got at_least, at_most"),
        ({"claims": [CLAIM | {"at_leats": 1}]}, "claims.0.at_leats: unknown key; did you mean 'at_least'"),
        ({"claims": [CLAIM | {"against": "concat"}]}, "kind bound, which is about the arm alone"),
        ({"claims": [CLAIM | {"kind": "difference"}]}, "kind difference, which needs against"),
        ({"claims": [CLAIM | {"kind": "difference", "against": "age"}]}, "sets the arm 'age' against itself"),
        ({"claims": [CLAIM | {"kind": "error_ratio", "against": "concat"}]}, "ratios are known of the figure pope.ad"),
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


def test_jobs_side_by_side_are_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/bash\nsleep 1\necho "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" > "${!#}"\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    done = [tmp_path / str(number) for number in range(4)]
    run_jobs([Job(path.name, (str(path),), path, tmp_path / "log") for path in done], 4, QUIET)
    assert sorted(path.read_text() for path in done) == ["3 2\n", "3 2\n", "5 2\n", "5 2\n"]
    alone = tmp_path / "alone"
    run_jobs([Job("alone", (str(alone),), alone, tmp_path / "log")], 1, QUIET, num_shares=4)
    assert alone.read_text() == "3 2\n"


def test_a_job_waits_for_what_it_comes_after_and_lets_others_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/bash\necho "${!#}" >> "$(dirname "$0")/begun"\nsleep 0.2\ntouch "${!#}"\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))

    def job(name: str, after: Path | None = None) -> Job:
        return Job(name, (str(tmp_path / name),), tmp_path / name, tmp_path / "log", after=after)

    written = io.StringIO()
    said = Console(file=written, width=200)
    run_jobs([job("run"), job("analysis", tmp_path / "run"), job("other"), job("another")], 2, said)
    assert re.findall(r"done: \w+ (\(.+\))", written.getvalue()) == [f"({number} of 4)" for number in (1, 2, 3, 4)]
    begun = [Path(line).name for line in (tmp_path / "begun").read_text().splitlines()]
    assert sorted(begun[:2]) == ["other", "run"] and sorted(begun[2:]) == ["analysis", "another"]
    run_jobs([job("late", tmp_path / "never")], 1, QUIET)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stop_ends_the_jobs_that_run(
    number: signal.Signals, status: int, content: dict[str, Any], tmp_path: Path
) -> None:
    common = {**content["common"], "snapshot_steps": None, "evaluation": None}
    common["stages"] = [{**stage, "steps": 100_000} for stage in common["stages"]]
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump({**content, "common": common, "num_seeds": 1, "equal_time": None, "costs": []}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "agevlm.cli", "compare", "run", str(file), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as comparison:
        logs = [out / arm / "0" / "log.jsonl" for arm in ("age", "concat")]
        while not all(log.exists() for log in logs):
            assert comparison.poll() is None
            time.sleep(0.1)
        comparison.send_signal(number)
        assert comparison.wait() == status
    time.sleep(1)  # of a process that was killed, the jobs notice it
    sizes = [log.stat().st_size for log in logs]
    time.sleep(1)
    assert [log.stat().st_size for log in logs] == sizes


def test_a_dry_run_says_what_would_train(content: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump(content))
    command = ["compare", "run", str(file), "--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.output.splitlines()]
    starts = [line.split(";")[0].split() for line in lines if line.startswith(("age", "concat"))]
    assert starts == [["age", "seeds", "0", "to", "1"], ["concat", "seeds", "0"]]
    assert result.output.count("steps 6") == 2
    assert not (tmp_path / "out").exists()


def test_jobs_come_seed_by_seed(content: dict[str, Any], tmp_path: Path) -> None:
    jobs = training_jobs(ComparisonRecipe.model_validate(content), tmp_path, ["age", "concat"])
    assert [job.name for job in jobs] == ["age 0", "concat 0", "age 1"]
    assert jobs[0].num_steps == 6


@pytest.mark.parametrize("outside", [False, True])
def test_tests_take_pictures_from_outside_where_the_evaluation_does(
    content: dict[str, Any], tmp_path: Path, outside: bool
) -> None:
    evaluation = content["common"]["evaluation"] | {"allow_outside": outside}
    content = content | {"common": content["common"] | {"evaluation": evaluation}}
    recipe = ComparisonRecipe.model_validate(content)
    job = jobs_of_tests(recipe, training_jobs(recipe, tmp_path, ["age"])[0])[0]
    assert ("--allow-outside" in job.arguments) == outside


def test_jobs_side_by_side_begin_with_seeds_of_their_own(content: dict[str, Any], tmp_path: Path) -> None:
    content["num_seeds"], content["arms"]["concat"]["num_seeds"] = 5, 5
    jobs = training_jobs(ComparisonRecipe.model_validate(content), tmp_path, ["age", "concat"], num_parallel=2)
    first = ["age 0", "age 1", "concat 0", "concat 1"]
    assert [job.name for job in jobs] == [*first, *(f"{arm} {seed}" for arm in ("age", "concat") for seed in (2, 3, 4))]
    alone = training_jobs(
        ComparisonRecipe.model_validate(content | {"num_seeds": 1}), tmp_path, ["age"], num_parallel=2
    )
    assert [job.name for job in alone] == ["age 0"]


def test_every_arm_is_taught_the_same_tokens_in_the_same_order() -> None:
    small = ["foundations=null", "common.data.scenes.num_scenes=40", "common.data.crowded.num_scenes=20"]
    recipe = load_comparison(ROOT / "recipes" / "comparison.yaml", small)
    taught: dict[str, list[list[int]]] = {}
    for arm in recipe.arms:
        own = recipe.recipe_of(arm, 1)
        model, processor = build_model(own)
        for stage in own.stages:
            sources = {name: SourceData(open_source(own.data[name], own.seed)) for name in stage.data}
            (items,) = draw_batches(StageDataset(stage, sources, seed=own.seed), 1)
            items = with_features(items, model, processor)
            labels = stage_collator(own, stage, model, processor)(items)["labels"]
            taught.setdefault(arm, []).append(labels[labels != IGNORE_INDEX].tolist())
    first = taught.pop("concat")
    assert [len(tokens) > 100 for tokens in first] == [True] * 4
    assert all(others == first for others in taught.values())
