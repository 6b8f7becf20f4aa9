"""What became of the things that a converter met: nothing is left out in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """What became of a source: things kept, mended and left out, each counted under its name or reason."""

    source: str
    vocabulary: tuple[str, ...] = ()
    kept: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, str, int]]:
        """(what became of it, name or reason, number) for a table; only what occurred."""
        groups = {"kept": self.kept, "mended": self.mended, "left out": self.left_out}
        return [(fate, name, number) for fate, counts in groups.items() for name, number in counts.items() if number]
