"""Prints what this environment has in another version than constraints.txt: the first suspects when a test fails.

.venv-newest/bin/python tools/drift.py
"""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def canonical(name: str) -> str:
    """A package's name as indices compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def read_pins(path: Path) -> dict[str, str]:
    """The pinned version of each package of a file of constraints."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def main() -> None:
    """Print one line for each package that differs, and a last one that counts them."""
    pins = read_pins(CONSTRAINTS)
    installed = {canonical(found.name): found.version.partition("+")[0] for found in distributions()}
    changed = [(name, pins[name], now) for name, now in sorted(installed.items()) if pins.get(name, now) != now]
    for name, pinned, now in changed:
        print(f"{name:28} {pinned:20} -> {now}")
    print(f"{len(changed)} of {len(pins.keys() & installed.keys())} packages differ from constraints.txt")


if __name__ == "__main__":
    main()
