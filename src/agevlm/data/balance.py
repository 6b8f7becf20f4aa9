"""Which category to ask about in which picture, so that no habit answers: balance over a whole dataset, hard negatives.

Natural questions ask what is there and what is not equally often, but *what* they ask tells the answer: a person is
mostly there, a toaster mostly not. Balanced questions ask every category as often where it is as where it is not, so
that the word alone says nothing. Of all ways to do so this one is nearest to natural questions (least Kullback-Leibler
divergence): natural chances, times a factor of the category where it is there and its inverse where it is not. Knows
categories, not pictures: what is said about them is made in `language.py`.
"""

# Shapes: P pictures, C categories that are asked.

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PICTURES = 20_000  # from which the factors are found; of a larger dataset, so many spread over it
UNEVEN_RATIO = 0.02  # off one half, from which on a category that cannot be balanced is named
_MAX_STEPS, _TOLERANCE, _MAX_FACTOR = 2000, 1e-3, 1e4
_NAMED = 12


@dataclass(frozen=True)
class PresenceBalance:
    """Chances of asking for each category in a picture, by what is in the picture.

    `factors` (C,) multiply the natural chance of a category where it is there and divide it where it is not.
    `together` (C, C) counts the pictures that hold two categories. `yes_ratios` (C,) are the shares of yes that came
    out. `never` and `always` are the categories in no picture and in all of them: they are not asked, for one answer to
    them would always be right.
    """

    categories: tuple[str, ...]
    factors: NDArray[np.float64]
    together: NDArray[np.float64]
    hard_ratio: float
    yes_ratios: NDArray[np.float64]
    never: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    balanced: bool = True

    @classmethod
    def of(
        cls,
        pictures: Sequence[Collection[str]],
        vocabulary: Sequence[str],
        *,
        balanced: bool = True,
        hard_ratio: float = 0.0,
    ) -> PresenceBalance:
        """The balance of a dataset, given the categories of each of its pictures.

        `hard_ratio` of the natural questions about absent things ask for one that is often seen with something that
        is there, as POPE's adversarial ones do; not `balanced`, they stay natural but for that. ValueError where every
        category of the vocabulary is in all pictures or in none: there is nothing to tell apart.
        """
        if not 0 <= hard_ratio <= 1:
            raise ValueError(f"hard_ratio must lie in [0, 1], got {hard_ratio}")
        held = [set(picture) for picture in _spread(pictures, MAX_PICTURES)]
        asked, never, always = _told_apart(held, vocabulary)
        _check_asked(len(held), asked, never, always)
        present_PC = np.array([[category in picture for category in asked] for picture in held])
        together_CC = present_PC.astype(float).T @ present_PC
        np.fill_diagonal(together_CC, 0.0)
        natural_PC = np.stack([_natural(row_C, together_CC, hard_ratio) for row_C in present_PC])
        factors_C, yes_ratio_C = _balanced(present_PC, natural_PC, _MAX_STEPS if balanced else 0)
        return cls(asked, factors_C, together_CC, hard_ratio, yes_ratio_C, never, always, balanced)

    def chances(self, present: Collection[str]) -> NDArray[np.float64]:
        """The chance (C,) of asking for each category in a picture that holds `present`; they sum to 1."""
        present_C = np.array([category in present for category in self.categories])
        weights_C = _natural(present_C, self.together, self.hard_ratio)
        weights_C *= np.where(present_C, self.factors, 1 / self.factors)
        return weights_C / weights_C.sum()

    def choose(self, present: Collection[str], rng: np.random.Generator) -> str:
        """Draw the category to ask for in a picture that holds `present`."""
        return self.categories[int(rng.choice(len(self.categories), p=self.chances(present)))]

    def notes(self) -> Iterator[str]:
        """A line for each thing that people should know: what is not asked, and what could not be balanced."""
        if self.never:
            yield f"never asked: {_listed('in no picture', self.never)}"
        if self.always:
            yield f"never asked: {_listed('in every picture', self.always)}"
        if not self.balanced:
            return
        uneven = np.flatnonzero(np.abs(self.yes_ratios - 0.5) > UNEVEN_RATIO)
        if uneven.size:
            named = [f"{self.categories[n]} (yes to {self.yes_ratios[n]:.0%})" for n in uneven]
            yield f"not balanced, for want of pictures with and without: {_some(named)}"


def check_balance(pictures: Sequence[Collection[str]], vocabulary: Sequence[str]) -> None:
    """ValueError where the `PresenceBalance` of a dataset would have nothing to tell apart."""
    held = [set(picture) for picture in _spread(pictures, MAX_PICTURES)]
    _check_asked(len(held), *_told_apart(held, vocabulary))


def _check_asked(num: int, asked: Sequence[str], never: Sequence[str], always: Sequence[str]) -> None:
    if not asked:
        raise ValueError(
            f"nothing to balance in {num} pictures: {_listed('in every picture', always)}"
            f"{'; ' if always and never else ''}{_listed('in none', never)}; give pictures that differ in what they "
            "show: --keep-empty takes those without any instance for pictures that show none of the categories"
        )


def asked_categories(pictures: Sequence[Collection[str]], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The categories that the `PresenceBalance` of a dataset asks for, without its factors."""
    asked, _, _ = _told_apart([set(picture) for picture in _spread(pictures, MAX_PICTURES)], vocabulary)
    return asked


def _told_apart(
    held: Sequence[set[str]], vocabulary: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The categories in some pictures and not in others, those in none, and those in all."""
    counts = {category: sum(category in picture for picture in held) for category in dict.fromkeys(vocabulary)}
    asked = tuple(category for category, number in counts.items() if 0 < number < len(held))
    never = tuple(category for category, number in counts.items() if number == 0)
    return asked, never, tuple(category for category in counts if category not in asked and category not in never)


def _natural(present_C: NDArray[np.bool_], together_CC: NDArray[np.float64], hard_ratio: float) -> NDArray[np.float64]:
    """Natural chances in one picture: half for what is there, each alike; half for what is not, some of it hard."""
    absent_C = ~present_C
    num_present, num_absent = int(present_C.sum()), int(absent_C.sum())
    chances_C = np.zeros(len(present_C))
    if num_present:
        chances_C[present_C] = 0.5 / num_present
    if num_absent:
        hard_C = _seen_with(present_C, together_CC) if hard_ratio and num_present else np.zeros(len(present_C))
        share = hard_ratio if hard_C.any() else 0.0
        chances_C += 0.5 * (share * hard_C + (1 - share) * absent_C / num_absent)
    return chances_C


def _seen_with(present_C: NDArray[np.bool_], together_CC: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each thing that is there in turn an absent one, as often as the two share a picture. Sums to 1, or is 0."""
    pairs = together_CC[present_C] * ~present_C
    seen = pairs.sum(axis=1, keepdims=True)
    partners = (pairs / np.maximum(seen, 1))[seen[:, 0] > 0]
    return partners.mean(axis=0) if len(partners) else np.zeros(len(present_C))


def _balanced(
    present_PC: NDArray[np.bool_], natural_PC: NDArray[np.float64], max_steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors (C,) by which as many questions about each category are answered yes as no, and the share of yes.

    Generalised iterative scaling; each picture keeps its number of questions.
    """
    factors_C = np.ones(present_PC.shape[1])
    for step in range(max_steps + 1):
        chances_PC = natural_PC * np.where(present_PC, factors_C, 1 / factors_C)
        chances_PC /= chances_PC.sum(axis=1, keepdims=True)
        yes_C = (chances_PC * present_PC).sum(axis=0)
        no_C = chances_PC.sum(axis=0) - yes_C
        ratio_C = np.maximum(no_C, 1e-12) / np.maximum(yes_C, 1e-12)
        if step == max_steps or np.abs(np.log(ratio_C)).max() < _TOLERANCE:
            break
        factors_C = np.clip(factors_C * np.sqrt(ratio_C), 1 / _MAX_FACTOR, _MAX_FACTOR)
    return factors_C, yes_C / (yes_C + no_C)


def _spread(pictures: Sequence[Collection[str]], most: int) -> list[Collection[str]]:
    if not pictures:
        raise ValueError("nothing to balance: there is no picture")
    num = min(most, len(pictures))
    return [pictures[number * len(pictures) // num] for number in range(num)]


def _listed(what: str, categories: Sequence[str]) -> str:
    return f"{len(categories)} categories {what} ({_some(categories)})" if categories else ""


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
