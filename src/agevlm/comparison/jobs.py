"""Run commands side by side, each in a process of its own with its share of the cores, and go on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_S = 0.5
TAIL_LINES = 5  # of the log of a job that failed, in the error


@dataclass(frozen=True)
class Job:
    """A command of `agevlm`, whose outcome is the file `done`; `log` takes what it prints.

    `steps_log` is the file in which it writes a line a step, `num_steps` how many it will be: for the progress bar.
    """

    name: str
    arguments: tuple[str, ...]
    done: Path
    log: Path
    num_steps: int = 1
    steps_log: Path | None = None

    @property
    def steps_done(self) -> int:
        """Steps taken so far; all of them where it is done."""
        if self.done.exists():
            return self.num_steps
        if self.steps_log is None or not self.steps_log.exists():
            return 0
        with self.steps_log.open("rb") as file:
            return min(sum(1 for _ in file), self.num_steps)


def run_jobs(jobs: Sequence[Job], num_parallel: int, console: Console) -> None:
    """Run the jobs that are not done, in order, `num_parallel` at a time; the rest of the cores is shared evenly.

    A job that fails is a ValueError with the end of its log, after the ones that run beside it have ended. An
    interrupt ends all of them, and so does SIGTERM. What is done stays done.
    """
    threads = max(1, (os.cpu_count() or 1) // num_parallel)
    waiting = [job for job in jobs if not job.done.exists()]
    if not waiting:
        return
    running: dict[subprocess.Popen[bytes], tuple[Job, IO[bytes]]] = {}
    failed: list[Job] = []
    before = signal.signal(signal.SIGTERM, _stop)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("comparison", total=sum(job.num_steps for job in jobs))
        try:
            while running or (waiting and not failed):
                while waiting and not failed and len(running) < num_parallel:
                    job = waiting.pop(0)
                    running |= _started(job, threads)
                time.sleep(POLL_S)
                for process in [process for process in running if process.poll() is not None]:
                    job, log = running.pop(process)
                    log.close()
                    if process.returncode or not job.done.exists():
                        failed.append(job)
                    else:
                        console.print(f"done: {job.name}", highlight=False)
                names = ", ".join(job.name for job, _ in running.values())
                progress.update(bar, completed=sum(job.steps_done for job in jobs), description=names or "comparison")
        finally:
            for process in running:
                os.killpg(process.pid, signal.SIGTERM)  # its worker processes too
            for process in running:
                process.wait()
            signal.signal(signal.SIGTERM, before)
    if failed:
        raise ValueError("\n".join(_complaint(job) for job in failed))


def _stop(number: int, frame: object) -> None:
    """Leave by an exception, so that no job goes on without the process that started it."""
    sys.exit(128 + number)


def _started(job: Job, threads: int) -> dict[subprocess.Popen[bytes], tuple[Job, IO[bytes]]]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "agevlm.cli", *job.arguments]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    return {process: (job, log)}


def _complaint(job: Job) -> str:
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{job.name} failed: {' / '.join(lines[-TAIL_LINES:])} (all of it in {job.log})"
