"""Where the time goes: seconds by step, and what was done in them. Of several processes the seconds add up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Adds up the seconds of steps and the number of things that each handled."""

    seconds: Counter[str] = field(default_factory=Counter)
    handled: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def __call__(self, step: str, number: int = 1) -> Iterator[None]:
        """Time a step that handles `number` things; one that fails counts too."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - start  # type: ignore[assignment]
            self.handled[step] += number

    def add(self, other: Stopwatch) -> None:
        """Add what was measured elsewhere, such as in a process beside."""
        self.seconds.update(other.seconds)
        self.handled.update(other.handled)

    def rows(self) -> list[tuple[str, int, str, str]]:
        """(step, number, seconds, number a second) for a table, in the order of first use."""
        return [
            (step, self.handled[step], f"{taken:.1f}", f"{self.handled[step] / taken:.1f}" if taken else "–")
            for step, taken in self.seconds.items()
        ]
