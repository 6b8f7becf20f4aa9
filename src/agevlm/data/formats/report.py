"""What became of the things that a converter met: nothing is left out in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """What became of a source: things kept, mended and left out, each counted under its name or reason.

    `first` tells of the first thing of each reason what is wrong with it, where that is known.
    """

    source: str
    vocabulary: tuple[str, ...] = ()
    kept: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, detail: str) -> None:
        """Count one thing that is left out; `detail` names it and says what is wrong with it."""
        self.left_out[reason] += 1
        self.first.setdefault(reason, detail)

    def reasons(self) -> str:
        """Why things were left out, each reason with its number; empty where nothing was."""
        return ", ".join(f"{reason}: {number}" for reason, number in self.left_out.items() if number)

    def rows(self) -> list[tuple[str, str, int]]:
        """(what became of it, name or reason, number) for a table; only what occurred."""
        groups = {"kept": self.kept, "mended": self.mended, "left out": self.left_out}
        return [(fate, name, number) for fate, counts in groups.items() for name, number in counts.items() if number]
