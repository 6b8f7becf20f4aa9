"""What is missing of a recipe is told before anything trains, with the commands that make it."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_runs import make_recipe, run
from typer.main import get_command

from agevlm.cli import app
from agevlm.data.parquet import read_parquet, write_parquet
from agevlm.data.scenes import WorldSpec
from agevlm.data.scenes.export import export_parquet
from agevlm.training.needs import missing, unreadable
from agevlm.training.recipe import ParquetSource, load_recipe, parse_recipe
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


@pytest.mark.parametrize("name", ["age_vlm_1b", "age_vlm_135m"])
def test_pictures_that_are_not_copied_into_a_dataset_are_read_from_where_they_are(name: str) -> None:
    recipe = load_recipe(packaged_recipes()[name])
    sources = [source for source in recipe.data.values() if isinstance(source, ParquetSource)]
    linked = [source for source in sources if "--no-embed-images" in recipe.prepare[source.parquet.as_posix()][-1]]
    assert len(linked) == 3
    assert all(source.allow_outside for source in linked)


def link_pictures(directory: Path) -> Path:
    """A dataset that names pictures outside of it."""
    export_parquet(directory / "embedded", WorldSpec(), 0, 3)
    records = []
    for number, record in enumerate(read_parquet(directory / "embedded")):
        (image,) = record.sample.images
        path = directory / f"{number}.png"
        path.write_bytes(image.data or b"")
        images = (replace(image, path=path, data=None),)
        records.append(replace(record, sample=replace(record.sample, images=images)))
    write_parquet(directory / "linked", records, embed_images=False)
    return directory / "linked"


def test_data_whose_first_sample_cannot_be_read_are_told_before_anything_trains(
    foundation: Path, tmp_path: Path
) -> None:
    linked = {"parquet": str(link_pictures(tmp_path))}
    late = {"name": "late", "trainable": ["projector"], "data": {"linked": 1.0}}
    data = {"scenes": {"num_scenes": 12}, "linked": linked, "unused": linked}
    content = make_recipe(foundation, "align", late, data=data, evaluation={"benchmark": linked["parquet"]})
    for options in ({"dry_run": True}, {}):
        with pytest.raises(ValueError, match=r"^data\.linked: .*leads out of .*`allow_outside: true` of the source"):
            run(content, tmp_path / "run", **options)
    found = list(unreadable(parse_recipe(content, "recipe")))
    assert [line.split(":")[0] for line in found] == ["data.linked", "evaluation.benchmark"]
    allowed = {**content, "data": {**data, "linked": {**linked, "allow_outside": True}}, "evaluation": None}
    run(allowed, tmp_path / "run", dry_run=True)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"^data\.linked: .*0\.png"):
        run(allowed, tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_classes_are_told_before_anything_trains(foundation: Path, tmp_path: Path) -> None:
    (tmp_path / "labels" / "cat").mkdir(parents=True)
    (tmp_path / "labels" / "cat" / "1.png").write_bytes(b"not opened yet")
    named = {"labels": str(tmp_path / "labels"), "names": {"cta": "cat"}}
    content = make_recipe(foundation, "align", data={"scenes": {"num_scenes": 12}, "labels": named})
    content["stages"][0]["data"] = {"labels": 1.0}
    for options in ({"dry_run": True}, {}):
        with pytest.raises(ValueError, match=r"^data\.labels: .*no folder 'cta' .* did you mean 'cat'"):
            run(content, tmp_path / "run", **options)
    del named["names"]
    assert "the class 'cat' alone" in "".join(unreadable(parse_recipe(content, "recipe")))
    (tmp_path / "labels" / "dog").mkdir()
    assert len(list(unreadable(parse_recipe(content, "recipe")))) == 1  # a folder without a picture is no class
    (tmp_path / "labels" / "dog" / "1.jpg").touch()
    assert not list(unreadable(parse_recipe(content, "recipe")))
    assert not (tmp_path / "run").exists()


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


def test_a_name_that_means_no_model_does_not_hide_what_else_is_missing(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(
        foundation, "align", data={"scenes": {"parquet": "absent/train"}}, evaluation={"benchmark": "absent/val"}
    )
    content["model"] |= {"language_model": "models/nothere.gguf", "vision_model": "efficientnet-lite0"}
    with pytest.raises(ValueError, match=r"nothere") as caught:
        run(content, tmp_path / "run", dry_run=True)
    gguf, vision, *others = str(caught.value).splitlines()
    assert gguf.startswith("model.language_model: no GGUF file 'models/nothere.gguf': expected one that exists")
    assert vision.startswith("model.vision_model: no model 'efficientnet-lite0'")
    assert "agevlm import-backbone" in vision
    assert others == ["data.scenes: absent/train is not here", "evaluation.benchmark: absent/val is not here"]


def timm_of(*names: str) -> ModuleType:
    """A timm that knows models by these names."""
    module: Any = ModuleType("timm")
    known = SimpleNamespace(to_dict=lambda: {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    module.get_pretrained_cfg = lambda name, **_: known if name in names else None
    module.is_model = lambda name: name in names
    module.list_pretrained = lambda _="*": list(names)
    return module


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("installed", "name", "told"),
    [
        (False, "convnext_base.clip", r"is a model of the package timm: pip install 'agevlm\[timm\]'"),
        (True, "convnext_bas", r"timm has no model 'convnext_bas': did you mean timm/convnext_base\.clip\?$"),
        (True, "convnext_base.clip", "is not here; make it by: hf download timm/convnext_base.clip$"),
    ],
)
def test_a_model_of_timm_needs_timm_and_a_name_that_it_knows(
    installed: bool,
    name: str,
    told: str,
    cached: bool,
    foundation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agevlm.modeling.timm_models.is_timm_available", lambda: installed)
    monkeypatch.setitem(sys.modules, "timm", timm_of("convnext_base.clip", "resnet18.a1_in1k"))
    monkeypatch.setattr("agevlm.training.needs._cached", lambda _: cached)
    content = make_recipe(foundation, "align", data={"scenes": {"parquet": "absent/train"}})
    content["model"]["vision_model"] = f"timm/{name}"
    lines = [str(need) for need in missing(parse_recipe(content, "r.yaml"))]
    assert lines.pop() == "data.scenes: absent/train is not here"
    if cached and "hf download" in told:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith("model.vision_model: ")
    assert re.search(told, line)
    assert ("hf download" in line) == ("hf download" in told)


def test_what_is_there_is_not_missing(foundation: Path, tmp_path: Path) -> None:
    export_parquet(tmp_path / "train", WorldSpec(), 0, 3)
    content = make_recipe(foundation, "align", data={"scenes": {"parquet": str(tmp_path / "train")}})
    assert missing(parse_recipe(content, "r.yaml")) == []
    absent = {"scenes": {"parquet": str(tmp_path / "train")}, "other": {"labels": "nowhere"}}
    assert missing(parse_recipe({**content, "data": absent}, "r.yaml")) == []  # no stage reads the other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "organisation/name/small/a file.gguf",
            "^model.language_model: organisation/name/small/a file.gguf is not here; "
            "make it by: hf download organisation/name 'small/a file.gguf'$",
        ),
        (
            "models/nothere.gguf",
            r"^model.language_model: no GGUF file 'models/nothere\.gguf': expected one that exists",
        ),
    ],
)
def test_a_gguf_file_that_is_missing_is_told(
    name: str, message: str, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_recipe(foundation, "align")
    content["model"]["language_model"] = name
    with pytest.raises(ValueError, match=message):
        run(content, tmp_path / "run", dry_run=True)
    prepared = parse_recipe({**content, "prepare": {name: ["make it"]}}, "r.yaml")
    assert [need.commands for need in missing(prepared)] == [("make it",)]
    (tmp_path / "file.gguf").touch()
    monkeypatch.setattr("agevlm.training.needs.hf_hub_download", lambda *_, **__: str(tmp_path / "file.gguf"))
    if name.startswith("organisation"):
        assert missing(parse_recipe(content, "r.yaml")) == []
