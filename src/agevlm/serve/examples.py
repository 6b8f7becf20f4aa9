"""Pictures to begin with: scenes drawn by the package, with questions that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_NUMBERS = (8, 0, 2, 6, 9, 10)  # scenes of the test split, which training never sees
NUM_EXAMPLES = len(_NUMBERS)
_SIDE = 384  # pixels
_ABSENT = ("fish", "boat", "cup", "tree", "key")  # asked for where they are not there


@dataclass(frozen=True)
class Example:
    """A drawn scene as a PNG, the things in it, and questions about it."""

    png: bytes
    things: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def title(self) -> str:
        """A line that says what it shows."""
        return "a drawn scene: " + ", ".join(self.things)


@lru_cache(maxsize=NUM_EXAMPLES)
def example(number: int) -> Example:
    """Example `number` of `NUM_EXAMPLES`: always the same picture. IndexError for another number."""
    from agevlm.data.images import png_bytes
    from agevlm.data.scenes import WorldSpec, draw_scene, split_seed

    if not 0 <= number < NUM_EXAMPLES:
        raise IndexError(number)
    world = WorldSpec(image_size=_SIDE, min_objects=3, max_objects=5)
    scene = draw_scene(world, split_seed("test", 0), _NUMBERS[number])
    things = list(dict.fromkeys(instance.category for instance in scene.annotation.instances))
    absent = next(name for name in _ABSENT[number % len(_ABSENT) :] + _ABSENT if name not in things)
    questions = (
        "what is in the picture?",
        f"is there a {things[0]}?",
        f"is there a {absent}?",
        f"where is the {things[-1]}?",
    )
    return Example(png_bytes(scene.image), tuple(things), questions)
