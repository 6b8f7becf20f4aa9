"""Ends work at random moments by SIGKILL, SIGTERM and SIGINT, and on disks that fill; what goes on afterwards is whole.

    python tests/fuzz/kills.py --moments 20

goes through training (its features in the run and shared), grounding, converting, evaluating and comparing: each is
stopped at so many random moments, started again with the same command (training with --resume), and must then hold what
it holds where nobody stopped it. Then training fills disks of eight sizes. The share that runs in CI is in
test_kills.py. Works where processes can be forked; disks are tmpfs where they can be mounted, else limits of files'
sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST_S = 600.0  # a command that takes longer hangs
_CHANGING = (
    "time",
    "time_s",
    "seconds",
    "seconds_per_step",
    "provenance",
    "environment",
    "git",
)  # keys whose values differ from run to run


@dataclass(frozen=True)
class Work:
    """A command; `out` is what it writes, `again` what it needs to go on."""

    name: str
    arguments: tuple[str, ...]
    out: Path
    again: tuple[str, ...] = ()


def works(root: Path) -> list[Work]:
    """The commands, each on small data of its own that is made in `root`."""
    from fuzz_corpus import make_records
    from tiny_runs import STAGES, make_foundation, make_recipe

    from agevlm.data.formats.coco_export import write_coco
    from agevlm.data.parquet import write_parquet
    from agevlm.data.scenes import CATEGORIES

    foundation = make_foundation(root / "foundation")
    records = make_records(30)
    write_parquet(root / "scenes", records, vocabulary=CATEGORIES)
    write_coco(
        root / "coco", [(r.annotated, r.annotated.image.data or b"") for r in records if r.annotated], CATEGORIES
    )
    stages = [{"name": name, **STAGES[name], "steps": 12} for name in ("cross", "instruct")]
    recipe = {**make_recipe(foundation, *stages, save_steps=5, num_workers=1), "evaluation": None}
    shared = {**recipe, "cache_dir": str(root / "cache")}
    arm = {
        "name": "kills",
        "num_seeds": 1,
        "analyse": False,
        "common": {**recipe, "evaluation": {"num_images": 4}},
        "arms": {"age": {"title": "AGE"}},
    }
    for name, content in (("recipe", recipe), ("shared", shared), ("comparison", arm)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    out = root / "out"
    coco = ("--instances", str(root / "coco" / "instances.json"), "--images", str(root / "coco" / "images"))
    scenes, train = str(root / "scenes"), out / "train"
    resume = ("--resume",)
    ground = ("ground", scenes, "--teacher", "annotations", "--samples-per-shard", "4", "--out", f"{out}/ground")
    measure = ("evaluate", "tiny", "--benchmark", scenes, "--out", f"{out}/metrics")
    compare = ("compare", "run", str(root / "comparison.yaml"), "--out", f"{out}/compare")
    return [
        Work("training", ("train", str(root / "recipe.yaml"), "--out", str(train)), train, resume),
        Work("training, shared cache", ("train", str(root / "shared.yaml"), "--out", f"{out}/s"), out / "s", resume),
        Work("grounding", ground, out / "ground"),
        Work("converting", ("data", "coco", *coco, "--out", f"{out}/data"), out / "data"),
        Work("evaluating", measure, out / "metrics"),
        Work("comparing", compare, out / "compare"),
    ]


def start(arguments: tuple[str, ...], log: Path, limit: int | None = None) -> int:
    """Start `agevlm` in a process of its own, forked from this one, which has imported everything; its number."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.argv = ["agevlm", *arguments]
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        from agevlm.cli import main

        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, longest_s: float = LONGEST_S) -> int | None:
    """The exit code of a process, negative for a signal; None where it hangs and is ended."""
    ends = time.monotonic() + longest_s
    while time.monotonic() < ends:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def digest(out: Path) -> dict[str, str]:
    """Every file that is written and what is in it, but for times."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix in (".html", ".log", ".md") or path.name in ("environment.json", "training_args.bin"):
            found[name] = "there"
        elif path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            found[name] = json.dumps([_lasting(json.loads(line)) for line in lines], sort_keys=True)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _CHANGING}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


@dataclass
class Trial:
    """What came of the kills of one command."""

    work: Work
    struck: Counter[str]
    faults: list[str]
    seconds: float


def kill_at_random(work: Work, root: Path, moments: int, chance: random.Random) -> Trial:
    """Run a command to its end, then stop it at random moments; each time it goes on, and the outcome is the same.

    A moment at which it has ended already does not count: another is drawn, before that one.
    """
    log = root / "log.txt"
    begun = time.monotonic()
    assert wait(start(work.arguments, log)) == 0, log.read_text()
    seconds, whole = time.monotonic() - begun, digest(work.out)
    trial = Trial(work, Counter(), [], seconds)
    latest = seconds
    while (done := trial.struck.total()) < moments:
        _remove(work.out)
        number, moment = SIGNALS[done % len(SIGNALS)], chance.random() * latest
        process = start(work.arguments, log)
        time.sleep(moment)
        _send(process, number)
        code, said = wait(process), log.read_text()
        if code == 0:
            latest = moment
            continue
        trial.faults += [f"{number.name}: {fault}" for fault in _after_signal(number, code, said)]
        trial.struck[number.name] += 1
        code = wait(start((*work.arguments, *work.again), log))
        if code != 0:
            trial.faults.append(f"after {number.name}, going on ended with {code}: {log.read_text()[-500:]}")
            continue
        trial.faults += [f"after {number.name}: {fault}" for fault in _differences(whole, digest(work.out), work.out)]
    _remove(work.out)
    return trial


def _send(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _after_signal(number: signal.Signals, code: int | None, said: str) -> Iterator[str]:
    if code is None:
        yield "it went on, or hung"
    elif number != signal.SIGKILL and code not in (0, 128 + number, -number):
        yield f"ended with {code}: {said[-300:]}"
    elif code == 128 + number and said.count("stopped by") != 1:
        yield f"said {said[-300:]!r}, and one line was expected"


def _differences(whole: dict[str, str], found: dict[str, str], out: Path) -> Iterator[str]:
    if changed := sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)):
        yield f"{len(changed)} files differ, the first is {changed[0]}"
    if left := [path.name for path in out.parent.glob(".*") if path.suffix in (".part", ".old")]:
        yield f"{left} is left"


def _remove(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    for path in out.parent.glob(f".{out.name}.*"):
        shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- disks


@contextmanager
def small_disk(where: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A file system of `size` bytes at `where`, and what makes it large; None where none can be mounted."""
    where.mkdir(parents=True, exist_ok=True)
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where))
    try:
        yield (lambda: assert_run("mount", "-o", "remount,size=1g", str(where))) if mounted else None
    finally:
        if mounted:
            assert_run("umount", "-l", str(where))


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def assert_run(*command: str) -> None:
    """Run a command that must succeed."""
    assert _run(*command), command


def fill_disks(work: Work, root: Path, sizes: int) -> tuple[str, list[str]]:
    """Train on disks of `sizes` sizes below what is needed, then on with more room; what kind of disks, and faults."""
    log, faults = root / "log.txt", []
    assert wait(start(work.arguments, log)) == 0, log.read_text()
    whole = digest(work.out)
    needed = sum(path.stat().st_size for path in work.out.rglob("*") if path.is_file())
    largest = max(path.stat().st_size for path in work.out.rglob("*") if path.is_file())
    _remove(work.out)
    kind = "tmpfs"
    for number in range(sizes):
        size = 4096 * max(1, needed * (2 * number + 1) // (2 * sizes) // 4096)
        with small_disk(work.out.parent, size) as enlarge:
            limit = None
            if enlarge is None:
                kind, limit = "RLIMIT_FSIZE", max(1, largest * (number + 1) // (sizes + 1))
            code, said = wait(start(work.arguments, log, limit)), log.read_text()
            lines = [line for line in said.splitlines() if line.startswith("error:")]
            if code != 1 or len(lines) != 1 or "no space left on the disk" not in lines[0]:
                faults.append(f"{size} bytes: ended with {code}: {said[-300:]}")
            if enlarge is not None:
                enlarge()
            code = wait(start((*work.arguments, *work.again), log))
            if code != 0:
                faults.append(f"{size} bytes: going on ended with {code}: {log.read_text()[-500:]}")
            else:
                faults += [f"{size} bytes: {fault}" for fault in _differences(whole, digest(work.out), work.out)]
            _remove(work.out)
    return kind, faults


def _told(name: str, faults: list[str]) -> list[str]:
    for fault in faults:
        print(f"{name}: {fault}", file=sys.stderr, flush=True)
    return faults


def main() -> None:
    """`make kill`."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from agevlm.cli.show import quiet_transformers

    quiet_transformers()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="random moments of each command")
    parser.add_argument("--sizes", type=int, default=8, help="sizes of disks")
    parser.add_argument("--only", action="append", help="a command; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance, faults = random.Random(asked.seed), []
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        root = Path(directory)
        made = works(root)
        print("| command | seconds | stopped at | faults |\n|---|---|---|---|", flush=True)
        for work in made:
            if not asked.only or work.name in asked.only:
                trial = kill_at_random(work, root, asked.moments, chance)
                struck = ", ".join(f"{number} {name}" for name, number in sorted(trial.struck.items()))
                print(f"| {work.name} | {trial.seconds:.1f} | {struck} | {len(trial.faults)} |", flush=True)
                faults += _told(work.name, trial.faults)
        if asked.sizes:
            kind, found = fill_disks(made[0], root, asked.sizes)
            print(f"| training on {kind} of {asked.sizes} sizes | | | {len(found)} |")
            faults += _told("full disk", found)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
