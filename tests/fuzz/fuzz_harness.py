"""Runs plans in a process of their own, which may die, hang or eat the machine, and says how each ended.

    python tests/fuzz/fuzz_harness.py --num 10000

prints the table of docs/reliability.md. The share that runs in CI is in test_fuzz.py.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LONGEST_S = 10.0
MOST_BYTES = 3 * 1024**3  # beside what the libraries take
_DONE = ("accepted", "clean", "unclean")


@dataclass(frozen=True)
class Outcome:
    """How an input ended: accepted, clean (an error that names it) or unclean, with the line or what is wrong."""

    kind: str
    detail: str = ""
    seconds: float = 0.0


def run_plan(name: str, corpus: Path, plan: Any) -> Outcome:
    """Run a target in this process."""
    from fuzz_targets import NAMELESS, SELFTEST, TARGETS

    from agevlm.cli.errors import explain

    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            (TARGETS | SELFTEST)[name](corpus, work, plan)
    except AssertionError as error:
        return Outcome("unclean", f"wrong without a word: {error}")
    except Exception as error:
        lines = explain(error)
        said = "\n".join(lines)
        names = (str(work), str(corpus), *([""] if name in NAMELESS else []))
        unknown = "(run it again with --debug" in said or isinstance(error, MemoryError)
        if unknown or not said.strip() or not any(part in said for part in names):
            return Outcome("unclean", f"{type(error).__name__}: {said[:300]}")
        try:
            said.encode()
        except UnicodeEncodeError:
            return Outcome("unclean", f"a line that cannot be printed: {said[:300]!r}")
        return Outcome("clean", said[:300])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Outcome("accepted")


def _serve(connection: Connection, corpus: Path) -> None:
    """The other process: answers plans until there are none."""
    import torch

    from agevlm.cli.show import quiet_transformers

    torch.set_num_threads(1)
    quiet_transformers()
    connection.send("ready")
    while (job := pickle.loads(connection.recv_bytes())) is not None:
        started = time.monotonic()
        outcome = run_plan(job[0], corpus, job[1])
        connection.send((outcome.kind, outcome.detail, time.monotonic() - started))


@dataclass
class Runner:
    """Gives plans to a process, and ends it where it takes too long or too much; the next plan gets a new one."""

    corpus: Path
    longest_s: float = LONGEST_S
    process: Any = None
    connection: Any = None
    floor: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    found: list[tuple[str, Outcome, Any]] = field(default_factory=list)

    def run(self, name: str, plan: Any) -> Outcome:
        """The outcome of a plan, which is counted."""
        outcome = self._run(name, plan)
        self.outcomes.setdefault(name, Counter())[outcome.kind] += 1
        if outcome.kind == "unclean":
            self.found.append((name, outcome, plan))
        return outcome

    def _run(self, name: str, plan: Any) -> Outcome:
        if self.process is None:
            self._start()
        self.connection.send_bytes(pickle.dumps((name, plan)))
        started = _cpu_s(self.process.pid)
        while not self.connection.poll(0.05):
            used, taken = _cpu_s(self.process.pid) - started, _resident(self.process.pid) - self.floor
            if not self.process.is_alive():
                code = self.process.exitcode
                self.process = None
                return Outcome("unclean", f"the process died ({code})")
            if used > self.longest_s or taken > MOST_BYTES:
                self.close()
                fault = f"took more than {self.longest_s:.0f} s" if used > self.longest_s else "took more than 3 GB"
                return Outcome("unclean", fault, used)
        try:
            return Outcome(*self.connection.recv())
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            return Outcome("unclean", f"the process died ({code})")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.corpus), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"
        self.floor = _resident(self.process.pid)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def table(self) -> str:
        """What was tried and how it ended, as Markdown."""
        lines = ["| class | tried | clean error | accepted | unclean |", "|---|---|---|---|---|"]
        total: Counter[str] = Counter()
        for name, counts in self.outcomes.items():
            total.update(counts)
            lines.append(_row(name, counts))
        return "\n".join([*lines, _row("all", total)])


def _row(name: str, counts: Counter[str]) -> str:
    return f"| {name} | {counts.total()} | {counts['clean']} | {counts['accepted']} | {counts['unclean']} |"


def _resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _cpu_s(pid: int) -> float:
    """Seconds of work that a process has done: not those that it waited for others on a busy machine."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return time.monotonic()


def fuzz(runner: Runner, name: str, num: int, seed: int) -> None:
    """Run `num` plans, drawn by Hypothesis from a seed, against a target."""
    import hypothesis
    from fuzz_plans import plans

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(plan=plans())
    def each(plan: Any) -> None:
        runner.run(name, plan)

    each()


def main() -> None:
    """`make fuzz`."""
    from fuzz_corpus import make_corpus
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="a class; may be repeated")
    parser.add_argument("--rounds", type=int, default=10, help="turns in which the classes are gone through")
    asked = parser.parse_args()
    names = asked.only or list(TARGETS)
    with tempfile.TemporaryDirectory(prefix="corpus-") as directory:
        corpus = Path(directory)
        make_corpus(corpus)
        runner, told = Runner(corpus), 0
        try:
            for turn in range(asked.rounds):
                for name in names:
                    fuzz(runner, name, max(1, asked.num // len(names) // asked.rounds), asked.seed + turn)
                    for found_in, outcome, plan in runner.found[told:]:
                        print(f"UNCLEAN {found_in}: {outcome.detail}\n    {str(plan)[:500]!r}", flush=True)
                    told = len(runner.found)
                print(f"after turn {turn + 1} of {asked.rounds}:\n{runner.table()}", flush=True)
        except KeyboardInterrupt:
            print(f"stopped:\n{runner.table()}", flush=True)
        runner.close()
    sys.exit(1 if runner.found else 0)


if __name__ == "__main__":
    main()
