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
    """`agevlm ARGUMENTS` under `accelerate launch` on CPUs; the port is whichever is free."""
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", str(num_processes), "--main_process_port", "0"]
    return [sys.executable, "-m", *launch, "-m", "agevlm.cli", *arguments]
