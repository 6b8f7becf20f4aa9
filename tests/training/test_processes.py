"""One run in several processes: the same run, written once."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from launching import launch_command
from tiny_runs import make_recipe, read_losses, read_weights, run

from agevlm.training.recipe import StageRecipe
from agevlm.training.run import open_processes
from agevlm.training.trainer import images_per_process


@pytest.mark.slow
def test_two_processes_train_the_run_of_one_and_go_on_with_it(foundation: Path, tmp_path: Path) -> None:
    recipe = make_recipe(foundation, "cross", "ground", "instruct", seed=3)
    run(recipe, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # as if one process had been stopped after the first stage
    for name in ("2-ground", "3-instruct", "model"):
        shutil.rmtree(tmp_path / "two" / name)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--resume", "--out", str(tmp_path / "two")]
    done = subprocess.run(launch_command(2, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    one, two = read_losses(tmp_path / "one"), read_losses(tmp_path / "two")
    assert [line["global_step"] for line in two] == list(range(1, 10))
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
    first, second = read_weights(tmp_path / "one" / "model"), read_weights(tmp_path / "two" / "model")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    assert not list((tmp_path / "two").rglob("checkpoint-*"))


def test_a_batch_is_divided_evenly_or_refused() -> None:
    stage = StageRecipe(name="ground", trainable=("projector",), steps=1, images_per_batch=6)
    assert [images_per_process(stage, number) for number in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(ValueError, match=r"'ground'.*4 processes.*images_per_batch = 6.*multiple of 4"):
        images_per_process(stage, 4)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launch_that_divides_the_model_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"{name}.*--multi_gpu"):
        open_processes()
