"""A run that is killed and resumed is the run that was never killed: same losses, same weights, to the last bit."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from rich.console import Console
from tiny_runs import STAGES, assert_same_weights, make_recipe, read_losses, read_weights, run

from agevlm.training.progress import RunProgress
from agevlm.training.recipe import parse_recipe
from agevlm.training.run import Run, train
from agevlm.training.trainer import StageTrainer, find_checkpoints


class KilledError(BaseException):
    """Stands for a kill inside the process."""


def recipe_of(foundation: Path, **settings: Any) -> dict[str, Any]:
    """Two stages of seven steps, one with AdamW, one with Muon, accumulated, with a checkpoint every third."""
    stages = (
        {"name": name, **STAGES[name], "optimizer": optimizer, "steps": 7, "gradient_accumulation_steps": 2}
        for name, optimizer in (("cross", "adamw"), ("instruct", "muon"))
    )
    return make_recipe(foundation, *stages, save_steps=3, **settings)


@pytest.fixture(scope="module")
def whole(foundation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never killed."""
    out = tmp_path_factory.mktemp("whole")
    run(recipe_of(foundation), out)
    return out


def assert_same_run(out: Path, whole: Path) -> None:
    assert read_losses(out) == read_losses(whole)
    assert [line["global_step"] for line in read_losses(out)] == list(range(1, 15))
    for name in ("1-cross", "2-instruct", "model"):
        assert_same_weights(out / name, whole / name)
        assert (out / name / "config.json").read_text() == (whole / name / "config.json").read_text()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def kill_at(global_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RunProgress.step

    def step(self: RunProgress, record: dict[str, Any]) -> None:
        original(self, record)
        if self.first_step + record["step"] == global_step:
            raise KilledError

    monkeypatch.setattr(RunProgress, "step", step)


@pytest.mark.parametrize("step", [2, 3, 7, 8, 11])
def test_a_run_killed_at_a_step_goes_on_as_if_it_were_not(
    step: int, foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a step whose checkpoint is not yet written, after one, at a stage's last step, at the next stage's first."""
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(step, patch)
        run(recipe_of(foundation), tmp_path)
    assert len(read_losses(tmp_path)) == step
    run(recipe_of(foundation), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_worker_processes_change_nothing(
    foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = recipe_of(foundation, num_workers=1)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(12, patch)
        run(content, tmp_path)
    run(content, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_a_run_killed_again_and_again_goes_on(
    foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (4, 6, 10, 13):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            kill_at(step, patch)
            run(recipe_of(foundation), tmp_path, resume=True)
    run(recipe_of(foundation), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("moment", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_older_one_whole(
    moment: str, foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: StageTrainer, directory: str) -> None:
        if self.state.global_step == 6:
            (Path(directory) / "optimizer.pt").write_bytes(b"half")
            raise KilledError
        original(self, directory)

    original = getattr(StageTrainer, moment)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(StageTrainer, moment, killed)
        run(recipe_of(foundation), tmp_path)
    stage = tmp_path / "1-cross"
    assert [path.name for path in find_checkpoints(stage)] == ["checkpoint-3"]
    assert read_weights(stage / "checkpoint-3")
    assert {"recipe.yaml", "environment.json"} <= {path.name for path in (stage / "checkpoint-3").iterdir()}
    run(recipe_of(foundation), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("method", "time_"), [("_record", 1), ("_save", 1), ("_save", 2), ("_save", 3), ("_measure", 1)]
)
def test_a_kill_between_stages_goes_on(
    method: str, time_: int, foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a stage is recorded, before it is saved, before the end is measured."""
    calls = []
    original = getattr(Run, method)

    def killed(self: Run, *args: Any) -> None:
        calls.append(method)
        if len(calls) == time_:
            raise KilledError
        original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Run, method, killed)
        run(recipe_of(foundation), tmp_path)
    run(recipe_of(foundation), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_a_kill_between_the_two_renames_of_a_directory_loses_nothing(
    foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(4, patch)
        run(recipe_of(foundation), tmp_path)
    (tmp_path / "1-cross").rename(tmp_path / ".1-cross.0123abcd.old")
    (tmp_path / ".1-cross.4567abcd.part").mkdir()
    (tmp_path / ".log.jsonl.4567abcd.part").write_text("half")
    recipe = parse_recipe(recipe_of(foundation), "recipe")
    Run(recipe, tmp_path, None).open(resume=True)  # type: ignore[arg-type]
    assert [path.name for path in find_checkpoints(tmp_path / "1-cross")] == ["checkpoint-3"]
    run(recipe_of(foundation), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_adapters_start_from_the_same_numbers_after_a_kill(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"name": "lora", **STAGES["instruct"], "trainable": ["projector"], "lora": {"rank": 2}, "steps": 4}
    content = make_recipe(foundation, "cross", lora)
    run(content, tmp_path / "whole")
    for step in (4, 6):  # before and after the first checkpoint of the stage with adapters
        out = tmp_path / f"killed-{step}"
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            kill_at(step, patch)
            run(content, out)
        run(content, out, resume=True)
        assert read_losses(out) == read_losses(tmp_path / "whole")
        assert_same_weights(out / "model", tmp_path / "whole" / "model")


def test_a_log_whose_last_line_was_cut_short_is_mended(
    foundation: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(9, patch)
        run(recipe_of(foundation), tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-25])
    run(recipe_of(foundation), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_times_go_on_where_they_stopped(foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agevlm.training.trainer import read_log

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(4, patch)
        run(recipe_of(foundation), tmp_path)
    run(recipe_of(foundation), tmp_path, resume=True)
    times = [line["time_s"] for line in read_log(tmp_path / "log.jsonl") if line["stage_index"] == 0]
    assert times == sorted(times)


def test_a_run_goes_on_only_with_its_own_recipe_and_only_when_asked(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, "align")
    run(content, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match="holds a run already; go on with --resume"):
        run(content, tmp_path)
    with pytest.raises(ValueError, match="differs from the recipe given"):
        run({**content, "seed": 1}, tmp_path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    known = tmp_path / "recipe.yaml"
    old = known.read_text(encoding="utf-8").replace("max_length: ", "max_length_of_yore: ")
    known.write_text(old, encoding="utf-8")
    with pytest.raises(ValueError, match="differs from the recipe given"):
        run(content, tmp_path, resume=True)
    lacking = [line for line in old.splitlines() if "max_length" not in line]  # as before the key was there
    known.write_text("\n".join(lacking), encoding="utf-8")
    run(content, tmp_path, resume=True)


def test_where_there_is_no_run_to_go_on_with_one_begins_and_says_so(foundation: Path, tmp_path: Path) -> None:
    said, line = io.StringIO(), f"there is no run in {tmp_path / 'out'} to go on with: it begins anew"
    recipe = parse_recipe(make_recipe(foundation, "align"), "recipe")
    console = Console(file=said, width=400)
    train(recipe, tmp_path / "out", resume=True, console=console)
    assert said.getvalue().count(line) == 1 and (tmp_path / "out" / "model").is_dir()
    train(recipe, tmp_path / "out", resume=True, console=console)
    train(recipe, tmp_path / "other", console=console)
    assert said.getvalue().count("begins anew") == 1


def test_two_processes_do_not_train_in_one_directory(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.training.run.LEAVING_S", 0.0)
    content = make_recipe(foundation, "align")
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(ValueError, match="is being trained by another process"):
            run(content, tmp_path, resume=True)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    run(content, tmp_path, resume=True)
    assert (tmp_path / "model" / "config.json").exists() and not (tmp_path / ".lock").exists()


def test_a_directory_of_something_else_is_left_alone(foundation: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        run(make_recipe(foundation, "align"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


# ------------------------------------------------------------------------------------------------ real kills


def hold_and_fork(content: dict[str, Any], out: Path, ready: Any) -> None:
    Run(parse_recipe(content, "recipe"), out, Console(quiet=True)).open(resume=True)
    if os.fork() == 0:  # as a worker is, that was never told to end
        ready.set()
        time.sleep(30)
        os._exit(0)
    time.sleep(60)


def test_a_worker_left_behind_does_not_keep_the_directory(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, context = make_recipe(foundation, "align"), multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=hold_and_fork, args=(content, tmp_path, ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    monkeypatch.setattr("agevlm.training.run.LEAVING_S", 0.0)
    run(content, tmp_path, resume=True)
    assert (tmp_path / "model" / "config.json").exists()


def train_in_a_process(content: dict[str, Any], out: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # workers that see when this process is gone
    run(content, out, resume=True)


def test_runs_survive_kills_at_random_moments(foundation: Path, tmp_path: Path, whole: Path) -> None:
    """SIGKILL, wherever it strikes: drawing, training, writing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agevlm.training.run", "tiny_runs"])
    content = recipe_of(foundation, num_workers=1)
    start = time.monotonic()
    train = context.Process(target=train_in_a_process, args=(content, tmp_path / "0"))
    train.start()
    train.join()
    seconds = time.monotonic() - start  # the server's imports are in it, so later processes are faster
    chance, struck = random.Random(), []
    for name in "1234":
        for _ in range(2):
            process = context.Process(target=train_in_a_process, args=(content, tmp_path / name))
            process.start()
            process.join(chance.random() * seconds / 4)
            struck.append(process.is_alive())
            process.kill()
            process.join()
        run(content, tmp_path / name, resume=True)
        assert_same_run(tmp_path / name, whole)
    print(seconds, struck)
    assert any(struck)


def test_a_killed_command_goes_on_with_resume(foundation: Path, tmp_path: Path, whole: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(recipe_of(foundation)))
    command = [sys.executable, "-m", "agevlm.cli", "train", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (out / "log.jsonl").exists():
        time.sleep(0.005)
    time.sleep(random.random() * 0.4)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    run(recipe_of(foundation), out, resume=True)
    assert_same_run(out, whole)
