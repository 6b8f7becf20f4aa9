"""What is installed, a checkout or a wheel, trains, looks and answers from any directory, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SMALL = {
    "data.scenes.num_scenes": 12,
    "data.crowded.num_scenes": 12,
    "num_workers": 0,
    "evaluation.num_images": 1,
    **{f"stages.{index}.steps": 1 for index in range(4)},
}


def agevlm(*arguments: str | Path, cwd: Path) -> str:
    """What the command prints; where it fails or warns, the test does."""
    command = [sys.executable, "-m", "agevlm.cli", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"} | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert "warn" not in result.stderr.lower(), result.stderr
    return result.stdout


def test_it_draws_looks_and_trains_from_any_directory(tmp_path: Path) -> None:
    agevlm("scenes", "draw", "--num", "1", "--out", "pictures", cwd=tmp_path)
    (picture,) = (tmp_path / "pictures").glob("*.png")
    answer = agevlm("look", "tiny", picture, "is there a fish?", "--out", "look.png", cwd=tmp_path)
    assert answer.split()[0].strip(".,").lower() in ("yes", "no")
    assert (tmp_path / "look.png").stat().st_size > 1000
    assert {"quickstart", "scenes"} <= set(agevlm("recipe", "list", cwd=tmp_path).split())
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    agevlm("train", "quickstart", "--out", "run", *settings, cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").exists()
    assert agevlm("look", "run/model", picture, "is there a fish?", "--max-new-tokens", "2", cwd=tmp_path)
