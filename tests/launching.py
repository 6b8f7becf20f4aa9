"""The command line of `agevlm` in several processes of one machine."""

from __future__ import annotations

import sys


def launch_command(num_processes: int, *arguments: str) -> list[str]:
    """`agevlm ARGUMENTS` under `accelerate launch` on CPUs; the port is whichever is free."""
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", str(num_processes), "--main_process_port", "0"]
    return [sys.executable, "-m", *launch, "-m", "agevlm.cli", *arguments]
