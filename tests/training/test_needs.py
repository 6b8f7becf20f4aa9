"""What is missing of a recipe is told before anything trains, with the commands that make it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make_recipe, run
from typer.main import get_command

from agevlm.cli import app
from agevlm.data.scenes import WorldSpec
from agevlm.data.scenes.export import export_parquet
from agevlm.training.needs import missing
from agevlm.training.recipe import load_recipe, parse_recipe
from agevlm.training.recipe_files import packaged_recipes


@pytest.mark.parametrize("name", ["age_vlm_1b", "age_vlm_135m"])
def test_the_full_recipes_say_how_everything_that_they_name_is_made(name: str) -> None:
    recipe = load_recipe(packaged_recipes()[name])
    needs = missing(recipe)
    assert len(needs) == 7
    assert all(need.commands for need in needs)
    assert {need.name for need in needs} == set(recipe.prepare)
    for need in needs:
        if need.name.startswith(("data/", "models/")):
            assert need.commands[-1].startswith("agevlm ")
            assert need.commands[-1].split("--out ")[1].split()[0] == need.name


@pytest.mark.parametrize("name", ["age_vlm_1b", "age_vlm_135m"])
def test_their_commands_are_commands_of_ours(name: str) -> None:
    commands = [command for made in load_recipe(packaged_recipes()[name]).prepare.values() for command in made]
    ours = [shlex.split(command)[1:] for command in commands if command.startswith("agevlm ")]
    assert len(ours) == 6
    for words in ours:
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)


def test_a_benchmark_that_is_missing_is_told_before_anything_trains(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, "align", evaluation={"benchmark": "absent/val"})
    with pytest.raises(ValueError, match=r"^evaluation\.benchmark: absent/val is not here$"):
        run(content, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_all_that_is_missing_and_fetches_nothing(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    content = make_recipe(
        foundation,
        "align",
        data={"scenes": {"parquet": "absent/train"}},
        evaluation={"benchmark": "absent/val"},
        prepare={"absent/train": ["make raw", "make train"]},
    )
    content["model"]["language_model"] = "nobody/nothing"
    with pytest.raises(ValueError, match=r"nobody/nothing") as caught:
        run(content, tmp_path / "run", dry_run=True)
    assert str(caught.value).splitlines() == [
        "model.language_model: nobody/nothing is not here; make it by: hf download nobody/nothing",
        "data.scenes: absent/train is not here; make it by: make raw && make train",
        "evaluation.benchmark: absent/val is not here",
    ]
    assert not (tmp_path / "run").exists()


def test_what_is_there_is_not_missing(foundation: Path, tmp_path: Path) -> None:
    export_parquet(tmp_path / "train", WorldSpec(), 0, 3)
    content = make_recipe(foundation, "align", data={"scenes": {"parquet": str(tmp_path / "train")}})
    assert missing(parse_recipe(content, "r.yaml")) == []
    absent = {"scenes": {"parquet": str(tmp_path / "train")}, "other": {"labels": "nowhere"}}
    assert missing(parse_recipe({**content, "data": absent}, "r.yaml")) == []  # no stage reads the other
