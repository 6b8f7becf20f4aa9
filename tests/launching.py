"""Processes of their own: a piece of code, and the command line of `agevlm` in several of them."""

from __future__ import annotations

import subprocess
import sys


def run_code(code: str) -> str:
    """What a fresh Python prints that runs `code`; where that fails, the test does, with its errors."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launch_command(num_processes: int, *arguments: str) -> list[str]:
    """`agevlm ARGUMENTS` in several processes; `accelerate launch --cpu` would start a single one without MPI."""
    return launch_script(num_processes, "-m", "agevlm.cli", *arguments)


def launch_script(num_processes: int, *arguments: str) -> list[str]:
    """A script with its arguments in several processes, by what `accelerate launch` calls; on any free port."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    return [sys.executable, "-m", *launch, *arguments]
