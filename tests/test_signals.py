"""Ctrl-C and SIGTERM: training writes a checkpoint and says the command that goes on; others clear up and say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launching import launch_command
from tiny_runs import STAGES, make_foundation, make_recipe

from agevlm.signals import ENDS_WITH_STDIN, put_off
from agevlm.training.trainer import find_checkpoints


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in the workers of pytest-xdist, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_first_signal_waits_and_a_second_one_does_not() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), put_off() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        reached.append(asked())
    assert reached == [True] and signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt), put_off():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        reached.append("never")
    assert reached == [True] and signal.getsignal(signal.SIGINT) == before
    with put_off() as asked:
        assert not asked()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_that_is_stopped_writes_a_checkpoint_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    foundation = make_foundation(tmp_path / "foundation")
    stage = {"name": "cross", **STAGES["cross"], "steps": 5000}
    content = make_recipe(foundation, stage, save_steps=10_000, num_workers=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "agevlm.cli", "train", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while process.poll() is None and not (out / "log.jsonl").exists():
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: to the workers too
    said = process.communicate()[0]
    assert process.returncode == 128 + number, said
    (line,) = [line for line in said.splitlines() if line.startswith("stopped by")]
    assert line == (
        f"stopped by {number.name}: what was trained is kept; go on with: "
        f"agevlm train {tmp_path / 'recipe.yaml'} --out '{out}' --resume"
    )
    assert "Traceback" not in said
    (checkpoint,) = find_checkpoints(out / "1-cross")
    assert int(checkpoint.name.split("-")[1]) == len((out / "log.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_a_launch_that_fails_or_is_stopped_tells_it_once(tmp_path: Path) -> None:
    foundation = make_foundation(tmp_path / "foundation")
    stage = {"name": "cross", **STAGES["cross"], "steps": 5000}
    content, recipe, out = make_recipe(foundation, stage, save_steps=10_000), tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content))
    arguments = ["train", str(recipe), "--out", str(out)]
    odd = subprocess.run(
        launch_command(2, *arguments, "--set", "stages.0.images_per_batch=3"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert odd.returncode == 1
    assert odd.stderr.count("error: stage 'cross': 2 processes") == 1, odd.stderr
    with subprocess.Popen(
        launch_command(2, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None and not (out / "log.jsonl").exists():
            time.sleep(0.01)
        process.terminate()
        said = process.communicate()[0]
    (line,) = [line for line in said.splitlines() if line.startswith("stopped by")]
    assert f"go on with the same launch of 2 processes: agevlm train {recipe} --out {out} --resume" in line
    assert find_checkpoints(out / "1-cross")


def test_a_byte_that_is_no_text_on_the_command_line_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agevlm.cli", "look", "tiny", "x.png", b"caf\xff?"], capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr == b"error: the argument b'caf\\xff?' is not UTF-8: type it again, or rename the file\n"


def test_a_process_ends_with_the_one_that_started_it() -> None:
    program = (
        "import time\nfrom agevlm.signals import end_with_starter\nend_with_starter()\nprint('ready', flush=True)\n"
        "time.sleep(120)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {ENDS_WITH_STDIN: "1"},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n" and process.poll() is None
        process.stdin.close()  # as the system does where the starter is killed
        assert process.wait(60) == 1
