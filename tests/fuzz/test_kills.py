"""A share of the kills: two commands at a random moment each, by another signal each time. `make kill` does more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("work", ["converting", "training"])
def test_work_that_is_ended_goes_on_to_the_same_end(work: str) -> None:
    number = str(int.from_bytes(os.urandom(2), "big"))
    command = [
        sys.executable,
        str(HERE / "kills.py"),
        "--only",
        work,
        "--moments",
        "2",
        "--sizes",
        "0",
        "--seed",
        number,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"--seed {number}: {done.stdout}{done.stderr}"
    assert f"| {work} |" in done.stdout
