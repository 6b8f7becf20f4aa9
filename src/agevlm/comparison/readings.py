"""Figures as the JSON of a comparison has them, read back and written for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "–"
ADVERSARIAL = "pope.adversarial.accuracy"
ERROR = "pope.adversarial.error"  # one minus it: whose ratios between arms the file has
_SECTIONS = ("similarity", "detection")  # of an arm, beside the figures that metrics.json has
_SHARES = ("accuracy", "_ratio", "auroc", "precision", "recall", "f1", ".mass", ".iou")

Nested = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """A figure: mean, the ends of its 95 % interval (None: unbounded), and the values of the seeds."""

    mean: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()

    @property
    def complement(self) -> Reading:
        """One minus the figure: the error of an accuracy."""
        low, high = (None if end is None else 1 - end for end in (self.high, self.low))
        return Reading(1 - self.mean, low, high, tuple(1 - value for value in self.values))

    def __neg__(self) -> Reading:
        """A difference the other way round."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Reading(-self.mean, low, high, tuple(-value for value in self.values))

    def within(self, lowest: float, highest: float) -> Reading:
        """The same with the ends of its interval no further than what can be."""
        low, high = (None if end is None else min(max(end, lowest), highest) for end in (self.low, self.high))
        return Reading(self.mean, low, high, self.values)

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval lies on one side of 0, whole."""
        return (self.low is not None and self.low > 0) or (self.high is not None and self.high < 0)


def section(nested: Any, path: str) -> Nested:
    """What stands under a dotted path; empty where there is nothing."""
    for name in path.split("."):
        nested = nested.get(name) if isinstance(nested, Mapping) else None
    return nested if isinstance(nested, Mapping) else {}


def reading(nested: Any, path: str) -> Reading | None:
    """The figure under a dotted path, None where there is none; `ERROR` is one minus the accuracy."""
    if path.endswith(ERROR):
        found = read(section(nested, path.removesuffix("error") + "accuracy"))
        return found.complement if found else None
    return read(section(nested, path))


def read(record: Any) -> Reading | None:
    """A record of `statistics.Estimate`; None where it has no mean."""
    if not isinstance(record, Mapping) or not isinstance(record.get("mean"), int | float):
        return None
    values = tuple(value for value in record.get("values", ()) if isinstance(value, int | float))
    return Reading(record["mean"], record.get("low"), record.get("high"), values)


def titles(content: Nested) -> dict[str, str]:
    """Arm → its name for people, of the arms that were measured, in the order of the file."""
    named = section(content, "titles")
    return {arm: str(named.get(arm, arm)) for arm in section(content, "arms")}


def places(content: Nested) -> dict[str, int]:
    """Arm → its number among all arms of the recipe, by which it has its colour in every plot."""
    return {arm: number for number, arm in enumerate(dict.fromkeys((*section(content, "titles"), *titles(content))))}


def figure_of(content: Nested, arm: str, figure: str) -> Reading | None:
    """A figure of an arm, named as in metrics.json, or `similarity.…` or `detection.…`."""
    first, _, rest = figure.partition(".")
    return reading(content, f"{first}.{arm}.{rest}" if first in _SECTIONS else f"arms.{arm}.{figure}")


def difference(content: Nested, arm: str, other: str, figure: str = ADVERSARIAL) -> Reading | None:
    """A figure of an arm minus that of another, paired; the file has it one way round.

    Of shares, which lie between 0 and 1, the interval ends where a difference can.
    """
    found = reading(content, f"differences.{arm}.{other}.{figure}")
    if found is None and (back := reading(content, f"differences.{other}.{arm}.{figure}")):
        found = -back
    return found.within(-1, 1) if found and figure.endswith(_SHARES) else found


def error_ratio(content: Nested, arm: str, other: str) -> Reading | None:
    """The adversarial error of an arm over that of another."""
    return read(section(content, f"error_ratios.{arm}.{other}"))


def written(found: Reading | None, digits: int = 3) -> str:
    """The mean, and its interval in brackets: 0.949 (0.942 to 0.954)."""
    return _written(found, lambda value: f"{value:.{digits}f}")


def signed(found: Reading | None, digits: int = 3) -> str:
    """A difference: +0.034 (+0.020 to +0.048)."""
    zero = f"{0:.{digits}f}"
    return _written(
        found, lambda value: f"{round(value, digits) or 0:+.{digits}f}".replace("-", "−").replace(f"+{zero}", zero)
    )


def marked(found: Reading | None) -> str:
    """A difference, bold where its interval is clear of 0."""
    return f"**{signed(found)}**" if found and found.clear_of_zero else signed(found)


def percent(found: Reading | None) -> str:
    """A ratio: 35 % (30 to 41 %)."""
    if found is None:
        return NOTHING
    low, high = ("∞" if end is None else f"{100 * end:.0f}" for end in (found.low, found.high))
    bounds = "" if found.low is None and found.high is None else f" ({low} to {high} %)"
    return f"{100 * found.mean:.0f} %{bounds}"


def _written(found: Reading | None, number: Any) -> str:
    if found is None:
        return NOTHING
    if found.low is None and found.high is None:
        return str(number(found.mean))
    low, high = (NOTHING if end is None else number(end) for end in (found.low, found.high))
    return f"{number(found.mean)} ({low} to {high})"
