"""`agevlm ground` as users run it: from a dataset to a dataset, killed for good, and what it says of wrong wishes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import launch_command
from tiny_teachers import save_owlv2, save_sam
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.parquet import read_parquet
from agevlm.data.phrases import Vocabulary
from agevlm.teachers.ground import GroundOptions
from agevlm.teachers.launch import Task, choose_finder, ground
from agevlm.teachers.registry import TeacherOptions

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    done = RUNNER.invoke(app, ["scenes", "export", "--num", "9", "--format", "parquet", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_exact_masks_come_back_as_they_were(scenes: Path, tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["ground", str(scenes), "--teacher", "scenes", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "phrases found" in done.output and "a second" in done.output
    for before, after in zip(read_parquet(scenes), read_parquet(tmp_path / "out"), strict=True):
        assert after.annotated == before.annotated
        for one, two in zip(before.sample.conversations, after.sample.conversations, strict=True):
            assert one.messages == two.messages
            assert [(known.start, known.phrase, known.image) for known in one.groundings] == [
                (known.start, known.phrase, known.image) for known in two.groundings
            ]
            if one.kind.startswith(("presence", "counting")) and "colour" not in one.kind:
                assert one.groundings == two.groundings  # words for all things of a kind, and for what is not there


def test_a_teacher_of_two_networks_grounds_a_dataset(scenes: Path, tmp_path: Path) -> None:
    weights = [str(save(tmp_path / name)) for name, save in (("owlv2", save_owlv2), ("sam", save_sam))]
    options = TeacherOptions("owlv2", *weights, present=0.0, absent=0.0, max_area_ratio=1.0)
    outcome = ground(Task(scenes, tmp_path / "out", "grounded-sam", options, GroundOptions(samples_per_shard=4)))
    assert outcome is not None
    summary, counts = outcome
    assert summary.num_samples == 9 and len(summary.shards) == 3
    assert counts.verdicts.keys() <= {"found", "empty mask"} and counts.phrases == counts.verdicts.total()


def test_a_killed_run_goes_on_to_the_same_files(scenes: Path, tmp_path: Path) -> None:
    options = ["--teacher", "scenes", "--samples-per-shard", "1", "--batch-size", "1"]

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agevlm.cli", "ground", str(scenes), *options, "--out", str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    for shards in (1, 4):
        process = start("out")
        while process.poll() is None and len(list((tmp_path / "out").glob("data-*"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / "dataset.json").exists()
    assert start("out").wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.fixture(scope="module")
def small_shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Arguments, but for where to write, and what one process makes of them."""
    arguments = ["ground", str(scenes), "--teacher", "scenes", "--samples-per-shard", "2"]
    whole = tmp_path_factory.mktemp("small") / "whole"
    done = RUNNER.invoke(app, [*arguments, "--out", str(whole)])
    assert done.exit_code == 0, done.output
    return arguments, whole


@pytest.mark.slow
def test_processes_of_accelerate_make_the_same_files_as_one(
    small_shards: tuple[list[str], Path], tmp_path: Path
) -> None:
    arguments, whole = small_shards
    options = ["--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(launch_command(2, *arguments, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(whole)
    rates = re.search(r"decode +(\d+)", done.stdout)
    assert rates is not None and rates[1] == "9", done.stdout  # of both processes, told once
    assert done.stdout.count("9 samples") == 1


@pytest.mark.slow
def test_workers_of_ray_make_the_same_files_and_go_on(
    small_shards: tuple[list[str], Path], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments, whole = small_shards
    out = tmp_path / "out"
    shutil.copytree(whole, out)  # as if stopped after three of five shards
    for number in (1, 4):
        (out / f"data-{number:05d}-of-00005.parquet").unlink()
    (out / "dataset.json").unlink()
    done = RUNNER.invoke(app, [*arguments, "--ray-workers", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert contents(out) == contents(whole)
    rates = re.search(r"decode +(\d+)", done.stdout)
    assert rates is not None and rates[1] == "3", done.stdout  # two samples and the last one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "sam9"], "no teacher 'sam9'; there are grounded-sam"),
        (["--teacher", "scenes", "--vocabulary", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--teacher", "sam3", "--segmenter-weights", "."], "holds no config.json"),
    ],
)
def test_wrong_wishes_are_named_before_anything_is_written(
    arguments: list[str], message: str, scenes: Path, tmp_path: Path
) -> None:
    done = RUNNER.invoke(app, ["ground", str(scenes), *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code != 0 and message in str(done.exception)
    assert not (tmp_path / "out").exists()


def names_of(name: str | None, *categories: str) -> tuple[str, ...]:
    finder = choose_finder(name, categories)
    assert isinstance(finder, Vocabulary)
    return finder.names


def test_the_vocabulary_is_the_dataset_s_own_unless_another_is_given(tmp_path: Path) -> None:
    own = choose_finder(None, ("dog", "gizmo"))
    assert [phrase.name for phrase in own.find("two puppies and a gizmo, no cat")] == ["dog", "gizmo"]
    assert len(names_of(None)) == len(names_of("coco", "gizmo")) == 80
    (tmp_path / "mine.txt").write_text("widget")
    assert names_of(str(tmp_path / "mine.txt"), "dog") == ("widget",)
    with pytest.raises(ValueError, match="no spaCy pipeline 'nowhere'"):
        choose_finder("spacy:nowhere", ())
