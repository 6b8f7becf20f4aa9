"""The method's claim, figure by figure, and whether what was measured bears it out.

What is wanted of AGE was written down before anything was measured; what was added later is marked, and so is AGE +,
which is held to the same. A claim holds if the mean meets it and, where errors are set against each other, the interval
of the difference is clear of 0; whether the whole interval of the figure meets it too is said beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from agevlm.comparison.readings import Nested, Reading, percent, read, reading, section, signed, written

GUIDED = {"age": "AGE", "age_plus": "AGE +"}
UNGUIDED = "cross_attention"
GUIDED_CONCAT = "concat_guided"
ADVERSARIAL = "pope.adversarial.accuracy"
MAX_ERROR_RATIO_UNGUIDED, MAX_ERROR_RATIO_CONCAT = 0.35, 0.5
MIN_POINTING, MAX_POINTING_UNGUIDED = 0.96, 0.6
MIN_NULL_AUROC = {"random": 0.95, "adversarial": 0.9}
MIN_CAPTION_AUROC = 0.95
CAPTION = "caption_likelihood"


@dataclass(frozen=True)
class Claim:
    """What is said of whom, what is wanted, what was measured, and whether it holds (None: not measured)."""

    what: str
    wanted: str
    measured: str = "not measured"
    holds: bool | None = None
    beside: str = ""  # what the interval has to say about the verdict
    added: bool = False  # after figures were known

    @property
    def verdict(self) -> str:
        """The verdict in a word or two."""
        if self.holds is None:
            return "not measured"
        return ("**yes**" if self.holds else "**no**") + (f", {self.beside}" if self.beside else "")


def claims(content: Nested) -> list[Claim]:
    """Every claim, for AGE and, where it was trained, for AGE +; what was not measured is among them."""
    guided = [arm for arm in GUIDED if arm == "age" or arm in section(content, "arms")]
    found = [replace(claim, added=claim.added or arm != "age") for arm in guided for claim in _of_guided(content, arm)]
    pointing = reading(content, f"arms.{UNGUIDED}.pointing.accuracy")
    found.append(_bounded("Pointing, cross-attention unguided", pointing, MAX_POINTING_UNGUIDED, "under"))
    for split, wanted in MIN_NULL_AUROC.items():
        null = reading(content, f"detection.age_plus.{split}.null_mass.auroc")
        found.append(_bounded(f"Null token tells absent from present, {split} split, AUROC", null, wanted, "at least"))
    return found


def best_concatenation(content: Nested, *, guided: bool = True) -> str | None:
    """The concatenation arm with the highest adversarial accuracy, of all or of those without guidance."""
    found = {arm: reading(content, f"arms.{arm}.{ADVERSARIAL}") for arm in _concatenations(content, guided=guided)}
    scores = {arm: score.mean for arm, score in found.items() if score}
    return max(scores, key=scores.__getitem__) if scores else None


def error_ratio(content: Nested, arm: str, other: str) -> Reading | None:
    """The adversarial error of an arm over that of another."""
    return read(section(content, f"error_ratios.{arm}.{other}"))


def difference(content: Nested, arm: str, other: str, figure: str = ADVERSARIAL) -> Reading | None:
    """A figure of an arm minus that of another, paired."""
    return reading(content, f"differences.{arm}.{other}.{figure}")


def _of_guided(content: Nested, arm: str) -> Iterator[Claim]:
    name, equal_time = GUIDED[arm], section(content, "equal_time")
    yield _ratio(content, arm, UNGUIDED, MAX_ERROR_RATIO_UNGUIDED, "unguided cross-attention")
    best = best_concatenation(content)
    yield _ratio(content, arm, best, MAX_ERROR_RATIO_CONCAT, "the best concatenation")
    for other in _others_unguided(content, best):
        claim = _ratio(content, arm, other, MAX_ERROR_RATIO_CONCAT, "unguided concatenation")
        yield replace(claim, added=True)
    yield _no_worse(content, arm, UNGUIDED, "unguided cross-attention")
    best = best_concatenation(equal_time)
    yield _no_worse(content, arm, best, "the best concatenation")
    for other in _others_unguided(equal_time, best):
        yield replace(_no_worse(content, arm, other, "unguided concatenation"), added=True)
    pointing = reading(content, f"arms.{arm}.pointing.accuracy")
    yield _bounded(f"Pointing, {name}", pointing, MIN_POINTING, "at least")
    caption = reading(content, f"similarity.{arm}.{CAPTION}.auroc")
    what = f"Caption likelihood tells matching from mismatched pairs, {name}, AUROC"
    yield _bounded(what, caption, MIN_CAPTION_AUROC, "at least")


def _others_unguided(content: Nested, best: str | None) -> list[str]:
    """Where the best concatenation is guided, those that are not."""
    return _concatenations(content, guided=False) if best == GUIDED_CONCAT else []


def _concatenations(content: Nested, *, guided: bool) -> list[str]:
    arms = (arm for arm in section(content, "arms") if arm.startswith("concat"))
    return [arm for arm in arms if guided or arm != GUIDED_CONCAT]


def _ratio(content: Nested, arm: str, other: str | None, most: float, whose: str) -> Claim:
    what = f"Adversarial error of {GUIDED[arm]} over that of {whose}"
    wanted = f"at most {100 * most:.0f} %, difference clear of 0"
    ratio = error_ratio(content, arm, other) if other else None
    gap = difference(content, arm, other) if other else None
    if ratio is None or gap is None:
        return Claim(what, wanted)
    measured = f"{percent(ratio)}; accuracy {signed(gap)}"
    holds = ratio.mean <= most and gap.mean > 0 and gap.clear_of_zero
    beside = _beside(ratio, most, ratio.mean <= most, percent)
    if ratio.mean <= most and not gap.clear_of_zero:
        beside = "its mean would: the difference is not clear of 0"
    return Claim(what + _named(content, other), wanted, measured, holds, beside)


def _named(content: Nested, other: str | None) -> str:
    """Which arm the best one is, in brackets."""
    return f" ({section(content, 'titles').get(other, other)})" if other and other != UNGUIDED else ""


def _no_worse(content: Nested, arm: str, other: str | None, whose: str) -> Claim:
    what = f"At equal time, adversarial accuracy of {GUIDED[arm]} minus that of {whose}{_named(content, other)}"
    gap = difference(section(content, "equal_time"), arm, other) if other else None
    if gap is None:
        return Claim(what, "at least 0")
    holds = gap.mean >= 0
    beside = "" if gap.clear_of_zero else "interval on both sides of 0"
    return Claim(what, "at least 0", signed(gap), holds, beside)


def _bounded(what: str, found: Reading | None, bound: float, sense: str) -> Claim:
    wanted = f"{sense} {bound:g}"
    if found is None:
        return Claim(what, wanted)
    holds = found.mean >= bound if sense == "at least" else found.mean < bound
    return Claim(what, wanted, written(found), holds, _beside(found, bound, holds, written))


def _beside(found: Reading, bound: float, meets: bool, write: Callable[[Reading | None], str]) -> str:
    """What to add where the bound lies inside the interval: the mean alone decides then."""
    inside = (found.low is None or found.low < bound) and (found.high is None or found.high > bound)
    if not inside:
        return ""
    return (
        "by its mean: the interval reaches beyond" if meets else f"though {write(Reading(bound))} lies in the interval"
    )
