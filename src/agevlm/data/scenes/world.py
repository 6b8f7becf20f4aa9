"""What a scene holds: which things, of which colour, where. Layouts only; `drawing.py` makes pictures of them.

Things come in groups of partner pairs. A thing brings its partner along with probability `co_occurrence`, and further
things tend to come from a group that is already there: a language prior can learn that, and be caught by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from agevlm.documents import Strict

GROUPS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "harbour": (("fish", "boat"), ("anchor", "umbrella")),
    "street": (("house", "tree"), ("car", "flag")),
    "kitchen": (("table", "cup"), ("bottle", "mushroom")),
    "study": (("key", "book"), ("lamp", "clock")),
}
CATEGORIES: tuple[str, ...] = tuple(name for pairs in GROUPS.values() for pair in pairs for name in pair)
PARTNERS: dict[str, str] = {a: b for pairs in GROUPS.values() for pair in pairs for a, b in (pair, pair[::-1])}
GROUP_OF: dict[str, str] = {name: group for group, pairs in GROUPS.items() for pair in pairs for name in pair}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 222, 40),
    "green": (44, 160, 60),
    "blue": (40, 90, 215),
    "purple": (140, 50, 175),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
}


TRIES = 12  # places tried for a thing before it is given up


class WorldSpec(Strict):
    """The parameters of the embedded world. Lengths are shares of the picture's side."""

    image_size: int = Field(96, ge=96, le=4096)
    """Height and width in pixels."""
    co_occurrence: float = Field(0.8, ge=0, le=1)
    """Probability that a thing brings its partner."""
    group_ratio: float = Field(0.5, ge=0, le=1)
    """Probability that a further thing is of a group already there."""
    repeat_ratio: float = Field(0.25, ge=0, le=1)
    """Probability that a further thing is of a category already there."""
    min_objects: int = Field(1, ge=1)
    """Fewest things in a scene."""
    max_objects: int = Field(6, ge=1, le=12)
    """Most things in a scene."""
    min_radius_ratio: float = Field(7 / 96, gt=0.02, lt=0.5)
    """Smallest radius, as a share of the side."""
    max_radius_ratio: float = Field(15 / 96, gt=0.02, lt=0.5)
    """Largest radius, as a share of the side."""
    min_visible_ratio: float = Field(0.45, ge=0, le=1)
    """Share of its own outline that every thing must show in the final picture."""
    num_strokes: int = Field(10, ge=0, le=100)
    """Distractor strokes at most."""

    @model_validator(mode="after")
    def _ordered(self) -> WorldSpec:
        for low, high in (("min_objects", "max_objects"), ("min_radius_ratio", "max_radius_ratio")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}")
        return self


@dataclass(frozen=True)
class Placement:
    """One thing to draw. Centre (y, x) and radius in pixels, angle in degrees."""

    category: str
    colour: str
    centre: tuple[float, float]
    radius: float
    angle: float
    mirrored: bool


def sample_layout(
    spec: WorldSpec, rng: np.random.Generator, put: Callable[[Placement], bool] = lambda placement: True
) -> list[Placement]:
    """The things of a scene from back to front.

    `put` is offered one place after another and says whether the thing can stand there; after `TRIES` refusals it
    is given up, so a crowded scene can hold fewer than `min_objects`. Without `put` every first place is taken.
    """
    layout: list[Placement] = []
    for category in sample_categories(spec, rng):
        colour = sample_colour(rng)
        for _ in range(TRIES):
            placement = place(spec, category, colour, rng)
            if put(placement):
                layout.append(placement)
                break
    return layout


def sample_categories(spec: WorldSpec, rng: np.random.Generator) -> list[str]:
    """The categories of a scene's things, in the order in which they come.

    With the defaults a category in the scene has its partner there in 80 of 100 cases, and in 28 of 100 without
    co-occurrence: that much is chance, repeats and groups. Four in five categories of a scene are there once, one in
    six twice, one in thirty three times. The last thing of a scene has no room for a partner.
    """
    number = int(rng.integers(spec.min_objects, spec.max_objects + 1))
    chosen: list[str] = []
    while len(chosen) < number:
        category = _next_category(spec, chosen, rng)
        chosen.append(category)
        partner = PARTNERS[category]
        if len(chosen) < number and partner not in chosen and rng.random() < spec.co_occurrence:
            chosen.append(partner)
    return chosen


def _next_category(spec: WorldSpec, chosen: list[str], rng: np.random.Generator) -> str:
    point = rng.random()
    if chosen and point < spec.repeat_ratio:
        return chosen[int(rng.integers(len(chosen)))]
    if chosen and rng.random() < spec.group_ratio:
        groups = {GROUP_OF[name] for name in chosen}
        candidates = [name for name in CATEGORIES if GROUP_OF[name] in groups]
    else:
        candidates = list(CATEGORIES)
    return candidates[int(rng.integers(len(candidates)))]


def place(spec: WorldSpec, category: str, colour: str, rng: np.random.Generator) -> Placement:
    """A random place, size and turn for a thing of a category and colour."""
    side = spec.image_size
    radius = side * (spec.min_radius_ratio + (spec.max_radius_ratio - spec.min_radius_ratio) * rng.random())
    margin = 0.7 * radius
    y, x = (margin + (side - 2 * margin) * rng.random() for _ in range(2))
    angle = 50 * rng.random() - 25
    return Placement(category, colour, (y, x), radius, angle, bool(rng.random() < 0.5))


def sample_colour(rng: np.random.Generator) -> str:
    """One of the eight colours, each equally often whatever the thing."""
    return list(COLOURS)[int(rng.integers(len(COLOURS)))]
