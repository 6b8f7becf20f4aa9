"""Runs plans in a process of their own, which may die, hang or eat the machine, and says how each ended.

    python tests/fuzz/fuzz_harness.py --num 10000 --log fuzz.jsonl

prints the table of docs/reliability.md. What stands in the log is not run again, so that a stopped run goes on. The
share that runs in CI is in test_fuzz.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LONGEST_S = 10.0
MOST_BYTES = 3 * 1024**3  # beside what the libraries take


@dataclass(frozen=True)
class Outcome:
    """How an input ended: accepted, clean (an error that names it) or unclean, with the line or what is wrong.

    `seconds` of work and `num_bytes` of memory are what it took.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0
    num_bytes: int = 0


def run_plan(name: str, corpus: Path, plan: Any) -> Outcome:
    """Run a target in this process."""
    from fuzz_targets import NAMELESS, SELFTEST, TARGETS

    from agevlm.cli.errors import explain

    work = Path(tempfile.mkdtemp(prefix="fuzz-", dir=corpus.parent))
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
    floor = _resident(os.getpid())
    while (job := pickle.loads(connection.recv_bytes())) is not None:
        _forget_peak()
        started = time.process_time()
        outcome = run_plan(job[0], corpus, job[1])
        took = time.process_time() - started
        connection.send((outcome.kind, outcome.detail, took, max(0, _peak() - floor)))


@dataclass
class Tally:
    """How the inputs of a class ended, and the most that one of them took."""

    counts: Counter[str] = field(default_factory=Counter)
    total_s: float = 0.0
    longest_s: float = 0.0
    most_bytes: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        self.counts[outcome.kind] += 1
        self.total_s += outcome.seconds
        self.longest_s = max(self.longest_s, outcome.seconds)
        self.most_bytes = max(self.most_bytes, outcome.num_bytes)

    def merge(self, other: Tally) -> None:
        """Add those of another."""
        self.counts.update(other.counts)
        self.total_s += other.total_s
        self.longest_s = max(self.longest_s, other.longest_s)
        self.most_bytes = max(self.most_bytes, other.most_bytes)

    def row(self, name: str) -> str:
        """A row of the table."""
        ends = " | ".join(str(self.counts[kind]) for kind in ("clean", "accepted", "unclean"))
        return f"| {name} | {self.counts.total()} | {ends} | {self.longest_s:.1f} | {self.most_bytes / 2**30:.2f} |"


@dataclass
class Runner:
    """Gives plans to a process, and ends it where it takes too long or too much; the next plan gets a new one."""

    corpus: Path
    longest_s: float = LONGEST_S
    process: Any = None
    connection: Any = None
    floor: int = 0
    outcomes: dict[str, Tally] = field(default_factory=dict)
    found: list[tuple[str, Outcome, Any]] = field(default_factory=list)

    def run(self, name: str, plan: Any) -> Outcome:
        """The outcome of a plan, which is counted."""
        outcome = self._run(name, plan)
        if outcome.kind != "unclean" and (outcome.seconds > self.longest_s or outcome.num_bytes > MOST_BYTES):
            took = f"took {outcome.seconds:.1f} s and {outcome.num_bytes / 2**30:.1f} GiB"
            outcome = replace(outcome, kind="unclean", detail=took)
        self.outcomes.setdefault(name, Tally()).add(outcome)
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
        """What was tried and how it ended, as Markdown; `seconds` and `GiB` are the most that one input took."""
        lines = ["| class | tried | clean error | accepted | unclean | seconds | GiB |", f"|{'---|' * 7}"]
        total = Tally()
        for name, tally in self.outcomes.items():
            total.merge(tally)
            lines.append(tally.row(name))
        return "\n".join([*lines, total.row("all")])


def _resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _forget_peak() -> None:
    """Let the most memory that this process had be counted anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most bytes of memory that this process had since; 0 where it cannot be told."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


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


def run_turn(runner: Runner, name: str, num: int, seed: int, log: Path | None) -> None:
    """As `fuzz`, once: what a log has of the same turn is counted instead. What ends unclean is printed."""
    turn: dict[str, Any] = {"class": name, "num": num, "seed": seed}
    for line in log.read_text().splitlines() if log is not None and log.exists() else ():
        done = json.loads(line)
        if done["turn"] == turn:
            tally = Tally(Counter(done["counts"]), done["total_s"], done["longest_s"], done["most_bytes"])
            runner.outcomes.setdefault(name, Tally()).merge(tally)
            return
    before, told = runner.outcomes.pop(name, Tally()), len(runner.found)
    try:
        fuzz(runner, name, num, seed)
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps({"turn": turn, **vars(runner.outcomes[name])}) + "\n")
    finally:  # a turn that is stopped counts as far as it came
        for _, outcome, plan in runner.found[told:]:
            print(f"UNCLEAN {name}: {outcome.detail}\n    {replace(plan, text=plan.text[:200])!r:.2000}", flush=True)
        runner.outcomes.setdefault(name, Tally()).merge(before)


def main() -> None:
    """`make fuzz`."""
    from fuzz_corpus import make_corpus
    from fuzz_targets import SHARES, TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=10_000, help="inputs in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="a class; may be repeated")
    parser.add_argument("--rounds", type=int, default=20, help="turns in which the classes are gone through")
    parser.add_argument("--log", type=Path, help="a file of the turns that are done, which is added to")
    asked = parser.parse_args()
    names = asked.only or list(TARGETS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    share = asked.num / asked.rounds / sum(SHARES[name] for name in names)
    with tempfile.TemporaryDirectory(prefix="corpus-") as directory:
        corpus = Path(directory) / "corpus"
        make_corpus(corpus)
        runner = Runner(corpus)
        try:
            for turn in range(asked.rounds):
                for name in names:
                    run_turn(runner, name, math.ceil(share * SHARES[name]), asked.seed + turn, asked.log)
                print(f"after turn {turn + 1} of {asked.rounds}:\n{runner.table()}", flush=True)
        except KeyboardInterrupt:
            print(f"stopped:\n{runner.table()}", flush=True)
        runner.close()
    sys.exit(1 if any(tally.counts["unclean"] for tally in runner.outcomes.values()) else 0)


if __name__ == "__main__":
    main()
