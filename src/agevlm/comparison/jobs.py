"""Run commands side by side, each in a process with its share of the cores and GPUs, and go on after a kill."""

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

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agevlm.signals import ENDS_WITH_STDIN

POLL_S = 0.5
TAIL_LINES = 5  # of the log of a job that failed, in the error


@dataclass(frozen=True)
class Job:
    """A command of `agevlm`, whose outcome is the file `done`; `log` takes what it prints.

    It waits until the file `after` exists, the outcome of a job that comes before it, while later ones may begin.
    `steps_log` is the file in which it writes a line a step, `num_steps` how many it will be: for the progress bar.
    """

    name: str
    arguments: tuple[str, ...]
    done: Path
    log: Path
    num_steps: int = 1
    steps_log: Path | None = None
    after: Path | None = None

    @property
    def may_begin(self) -> bool:
        return self.after is None or self.after.exists()

    @property
    def steps_done(self) -> int:
        """Steps taken so far; all of them where it is done."""
        if self.done.exists():
            return self.num_steps
        if self.steps_log is None or not self.steps_log.exists():
            return 0
        with self.steps_log.open("rb") as file:
            return min(sum(1 for _ in file), self.num_steps)


@dataclass(frozen=True)
class _Running:
    job: Job
    log: IO[bytes]
    gpu: str | None


def run_jobs(jobs: Sequence[Job], num_parallel: int, console: Console, *, num_shares: int | None = None) -> None:
    """Run the jobs that are not done, in order, `num_parallel` at a time; they share the cores evenly.

    With `num_shares` each has the cores that it would have if as many ran. Each sees one GPU, the one on which the
    fewest run; there may be more jobs than GPUs. A job that fails is a ValueError with the end of its log, after the
    ones that run beside it have ended. An interrupt ends all of them, and so does SIGTERM; they also end with this
    process where it is killed. What is done stays done.
    """
    threads = max(1, (os.cpu_count() or 1) // (num_shares or num_parallel))
    waiting = [job for job in jobs if not job.done.exists()]
    if not waiting:
        return
    num_jobs, num_done = len(waiting), 0
    gpus = visible_gpus()
    running: dict[subprocess.Popen[bytes], _Running] = {}
    failed: list[Job] = []
    before = signal.getsignal(signal.SIGTERM)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("comparison", total=sum(job.num_steps for job in jobs))
        try:
            while running or (not failed and any(job.may_begin for job in waiting)):
                while not failed and len(running) < num_parallel and (ready := [j for j in waiting if j.may_begin]):
                    taken = [other.gpu for other in running.values()]
                    running |= _started(ready[0], threads, min(gpus, key=taken.count, default=None))
                    waiting.remove(ready[0])
                time.sleep(POLL_S)
                for process in [process for process in running if process.poll() is not None]:
                    ended = running.pop(process)
                    ended.log.close()
                    if process.returncode or not ended.job.done.exists():
                        failed.append(ended.job)
                    else:
                        num_done += 1
                        console.print(f"done: {ended.job.name} ({num_done} of {num_jobs})", highlight=False)
                names = ", ".join(other.job.name for other in running.values())
                progress.update(bar, completed=sum(job.steps_done for job in jobs), description=names or "comparison")
        finally:
            for process in running:
                process.terminate()  # it writes a checkpoint, and ends its worker processes
            for process in running:
                process.wait()
            signal.signal(signal.SIGTERM, before)
    if failed:
        raise ValueError("\n".join(_complaint(job) for job in failed))


def _stop(number: int, frame: object) -> None:
    """Leave by an exception, so that no job goes on without the process that started it."""
    sys.exit(128 + number)


def visible_gpus() -> list[str]:
    """The GPUs of this process, as `CUDA_VISIBLE_DEVICES` names them; [] without any."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]


def _started(job: Job, threads: int, gpu: str | None) -> dict[subprocess.Popen[bytes], _Running]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    share = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpu is not None:
        share["CUDA_VISIBLE_DEVICES"] = gpu
    command = [sys.executable, "-m", "agevlm.cli", *job.arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | share | {ENDS_WITH_STDIN: "1"},
        start_new_session=True,
    )
    return {process: _Running(job, log, gpu)}


def _complaint(job: Job) -> str:
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{job.name} failed: {' / '.join(lines[-TAIL_LINES:])} (all of it in {job.log})"
