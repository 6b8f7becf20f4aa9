"""What a study claims, figure by figure, and whether what was measured bears it out.

Claims are data: they stand in the recipe, travel in the file of figures, and are read here by one function for all. A
claim holds if the mean meets its bound and, where errors are set against each other, the interval of the difference is
clear of 0; whether the whole interval of the figure meets the bound too is said beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError, model_validator

from agevlm.comparison.readings import (
    ERROR,
    Nested,
    Reading,
    difference,
    error_ratio,
    figure_of,
    percent,
    section,
    signed,
    titles,
    written,
)
from agevlm.documents import Strict
from agevlm.training.recipe import explain

Kind = Literal["bound", "difference", "error_ratio"]
Bound = Literal["at_least", "at_most", "under"]


class Claim(Strict):
    """What is said of an arm, and what was wanted of it.

    `figure` is named as in metrics.json, or is `similarity.MEASURE.FIGURE` or `detection.SPLIT.DETECTOR.FIGURE`. A
    `bound` is about the figure itself, a `difference` about that of `arm` minus that of `against`, paired, and an
    `error_ratio` about the adversarial error of `arm` over that of `against`. Several arms in `against` are a claim
    about the best of them. `within` names the part of the figures: "equal_time", or nothing for those at equal steps.
    """

    said: str
    """The claim in words."""
    arm: str
    """Whom it is about."""
    figure: str
    """A figure as metrics.json names it, or `similarity.MEASURE.FIGURE`, or `detection.SPLIT.DETECTOR.FIGURE`."""
    kind: Kind = "bound"
    """Of the figure itself, of its paired difference to another arm, or of the ratio of adversarial errors."""
    against: tuple[str, ...] = ()
    """The other arm; of several the best one."""
    at_least: float | None = None
    """What was wanted: this, `at_most` or `under`."""
    at_most: float | None = None
    """What was wanted."""
    under: float | None = None
    """What was wanted."""
    within: Literal["", "equal_time"] = ""
    """equal_time: of the figures at equal time."""
    added: bool = False
    """It was made when figures were known."""

    @model_validator(mode="before")
    @classmethod
    def _one_arm_is_a_list(cls, content: object) -> object:
        if isinstance(content, dict) and isinstance(content.get("against"), str):
            return content | {"against": (content["against"],)}
        return content

    @model_validator(mode="after")
    def _is_whole(self) -> Claim:
        bounds = [name for name in ("at_least", "at_most", "under") if getattr(self, name) is not None]
        if len(bounds) != 1:
            raise ValueError(
                f"{self.said!r} needs one of at_least, at_most and under, got {', '.join(bounds) or 'none'}"
            )
        if (self.kind == "bound") == bool(self.against):
            what = "is about the arm alone, without against" if self.kind == "bound" else "needs against, another arm"
            raise ValueError(f"{self.said!r} is of the kind {self.kind}, which {what}")
        if self.arm in self.against:
            raise ValueError(f"{self.said!r} sets the arm {self.arm!r} against itself")
        if self.kind == "error_ratio" and (self.figure != ERROR or self.at_most is None):
            raise ValueError(f"{self.said!r}: ratios are known of the figure {ERROR}, and are claimed to be at_most")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that it names."""
        return (self.arm, *self.against)

    @property
    def bound(self) -> float:
        """The number that was wanted."""
        return next(bound for bound in (self.at_least, self.at_most, self.under) if bound is not None)

    def meets(self, value: float) -> bool:
        """Whether a value is on the wanted side of the bound."""
        if self.at_least is not None:
            return value >= self.at_least
        return value < self.bound or (self.under is None and value == self.bound)


@dataclass(frozen=True)
class Verdict:
    """A claim and what was measured: the arm that it is against, and whether it holds (None: not measured)."""

    claim: Claim
    against: str | None = None
    what: str = ""
    measured: str = "not measured"
    holds: bool | None = None
    beside: str = ""  # what the interval has to say

    @property
    def wanted(self) -> str:
        """What was wanted, in words."""
        if self.claim.kind == "error_ratio":
            return f"at most {100 * self.claim.bound:.0f} %, difference clear of 0"
        sense = next(name for name in ("at_least", "at_most", "under") if getattr(self.claim, name) is not None)
        return f"{sense.replace('_', ' ')} {self.claim.bound:g}"

    @property
    def told(self) -> str:
        """The verdict in a word or two."""
        if self.holds is None:
            return "not measured"
        return ("**yes**" if self.holds else "**no**") + (f", {self.beside}" if self.beside else "")


def check_claims(claims: Sequence[Claim], arms: Sequence[str]) -> None:
    """Raise a ValueError for a claim about an arm that is not among `arms`."""
    for claim in claims:
        if unknown := [arm for arm in claim.arms if arm not in arms]:
            raise ValueError(f"claims: {claim.said!r} names the arm {unknown[0]!r}; there are {', '.join(arms)}")


def judge(content: Nested) -> list[Verdict]:
    """The verdict on every claim that a file of figures holds; what was not measured is among them."""
    return [_verdict(claim, content) for claim in claims_of(content)]


def claims_of(content: Nested) -> list[Claim]:
    """The claims of a file of figures, [] where it has none. One that is wrong is a ValueError."""
    try:
        return [Claim.model_validate(claim) for claim in content.get("claims", ())]
    except ValidationError as error:
        raise ValueError("\n".join(f"claims: {line}" for line in explain(error, Claim))) from error


def _verdict(claim: Claim, content: Nested) -> Verdict:
    part = section(content, claim.within) if claim.within else content
    against = _best(claim, part)
    named = f" ({titles(content).get(against, against)})" if against and len(claim.against) > 1 else ""
    judged = _JUDGES[claim.kind](claim, part, against)
    return (
        Verdict(claim, against, claim.said + named, *judged) if judged else Verdict(claim, against, claim.said + named)
    )


def _best(claim: Claim, content: Nested) -> str | None:
    """The arm that the claim is against: of several the one with the best figure, of errors the lowest."""
    if len(claim.against) < 2:
        return next(iter(claim.against), None)
    found = {arm: figure.mean for arm in claim.against if (figure := figure_of(content, arm, claim.figure))}
    choose = min if claim.figure == ERROR else max
    return choose(found, key=found.__getitem__) if found else None


Judged = tuple[str, bool, str] | None  # measured, holds, beside


def _judge_bound(claim: Claim, content: Nested, against: str | None) -> Judged:
    found = figure_of(content, claim.arm, claim.figure)
    if found is None:
        return None
    holds = claim.meets(found.mean)
    return written(found), holds, _beside(found, claim.bound, holds, written)


def _judge_ratio(claim: Claim, content: Nested, against: str | None) -> Judged:
    ratio, gap = (
        (error_ratio(content, claim.arm, against), difference(content, claim.arm, against)) if against else (None, None)
    )
    if ratio is None or gap is None:
        return None
    meets = claim.meets(ratio.mean)
    beside = _beside(ratio, claim.bound, meets, percent)
    if meets and not gap.clear_of_zero:
        beside = "its mean would: the difference is not clear of 0"
    return f"{percent(ratio)}; accuracy {signed(gap)}", meets and gap.mean > 0 and gap.clear_of_zero, beside


def _judge_difference(claim: Claim, content: Nested, against: str | None) -> Judged:
    gap = difference(content, claim.arm, against, claim.figure) if against else None
    if gap is None:
        return None
    beside = f"interval on both sides of {claim.bound:g}" if _inside(gap, claim.bound) else ""
    return signed(gap), claim.meets(gap.mean), beside


_JUDGES: dict[Kind, Callable[[Claim, Nested, str | None], Judged]] = {
    "bound": _judge_bound,
    "error_ratio": _judge_ratio,
    "difference": _judge_difference,
}


def _beside(found: Reading, bound: float, meets: bool, write: Callable[[Reading | None], str]) -> str:
    """What to add where the bound lies inside the interval: the mean alone decides then."""
    if not _inside(found, bound):
        return ""
    return (
        "by its mean: the interval reaches beyond" if meets else f"though {write(Reading(bound))} lies in the interval"
    )


def _inside(found: Reading, bound: float) -> bool:
    return (found.low is None or found.low < bound) and (found.high is None or found.high > bound)
