"""Views of annotated pictures: masks lie on the pixels that they lay on, what is cut away is gone, nothing is lost."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agevlm.data.augmentation import ENLARGED, GIVEN_UP, REPEATED, Augmentation, Drawn, draw_view
from agevlm.data.language import make_conversations
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance

COLOURS = {"red thing": (250, 0, 0), "green thing": (0, 250, 0), "blue thing": (0, 0, 250)}
PLAIN: dict[str, Any] = {"flip_ratio": 0, "crop_ratio": 0, "mosaic_ratio": 0, "colour": 0}


def make(identity: str, size: tuple[int, int], *things: tuple[str, tuple[int, int, int, int]]) -> AnnotatedImage:
    """A grey picture of a (height, width) with rectangles (top, left, bottom, right) in the colours of their names."""
    pixels = np.full((*size, 3), 128, dtype=np.uint8)
    instances = []
    for category, (top, left, bottom, right) in things:
        mask = np.zeros(size, dtype=bool)
        mask[top:bottom, left:right] = True
        pixels[mask] = COLOURS[category]
        box = (float(left), float(top), float(right - left), float(bottom - top))
        instances.append(Instance(category, encode_mask(mask), box, float(mask.sum())))
    return AnnotatedImage(picture(identity, pixels), tuple(instances))


def picture(identity: str, pixels: np.ndarray) -> ImageSource:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageSource(identity, *pixels.shape[:2], data=buffer.getvalue())


PICTURES = (
    make("a", (60, 80), ("red thing", (10, 10, 30, 30)), ("green thing", (40, 60, 56, 76))),
    make("b", (100, 50), ("blue thing", (60, 10, 90, 40))),
    make("c", (40, 40), ("red thing", (0, 0, 12, 40)), ("red thing", (28, 0, 40, 40))),
    make("d", (70, 70), ("green thing", (20, 20, 50, 50))),
    make("e", (30, 90)),
)


def view(number: int = 1, index: int = 0, pictures: Sequence[AnnotatedImage] = PICTURES, **settings: Any) -> Drawn:
    made = Augmentation(**PLAIN | settings)
    return draw_view(pictures.__getitem__, len(pictures), index, number, made, seed=0)


def assert_masks_lie_on_their_things(drawn: Drawn, slack: float = 0.0) -> None:
    """Every pixel of a mask has its thing's colour, and every other pixel has not, up to a share at the borders."""
    for category, colour in COLOURS.items():
        masks = [decode_mask(i.mask) for i in drawn.annotated.instances if i.category == category]
        channel = colour.index(250)
        shown = drawn.pixels[..., channel] > np.delete(drawn.pixels, channel, axis=2).max(axis=2).astype(int) + 60
        known = np.logical_or.reduce(masks) if masks else np.zeros(shown.shape, dtype=bool)
        assert (shown ^ known).mean() <= slack, category
    for instance in drawn.annotated.instances:
        mask = decode_mask(instance.mask)
        rows, columns = np.nonzero(mask)
        assert mask.shape == drawn.pixels.shape[:2] == (drawn.annotated.image.height, drawn.annotated.image.width)
        assert instance.area == mask.sum() > 0
        box = (columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min())
        assert instance.box == box


def test_the_first_view_is_the_picture_itself() -> None:
    drawn = view(number=0, crop_ratio=1, mosaic_ratio=1)
    assert_masks_lie_on_their_things(drawn)
    image = replace(PICTURES[0].image, data=None)
    assert drawn.annotated == replace(PICTURES[0], image=image)


def test_a_flip_takes_masks_boxes_and_sides_along() -> None:
    drawn = view(flip_ratio=1)
    assert_masks_lie_on_their_things(drawn)
    assert [instance.box for instance in drawn.annotated.instances] == [(50, 10, 20, 20), (4, 40, 16, 16)]
    asked = make_conversations(drawn.annotated, np.random.default_rng(0), list(COLOURS), {"location": 1.0}, 20)
    assert {(c.groundings[0].phrase, c.messages[1].content) for c in asked} == {
        ("red thing", "top right"),
        ("green thing", "bottom left"),
    }


def test_what_is_cut_away_is_absent_and_what_is_left_is_there_in_full_or_in_part() -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    for number in range(1, 80):
        drawn = view(number, crop_ratio=1, min_side_ratio=0.3, min_visible_ratio=0.5)
        assert_masks_lie_on_their_things(drawn)
        seen[drawn.annotated.categories] += 1
        whole = {instance.category: instance.area for instance in PICTURES[0].instances}
        assert all(i.area >= 0.5 * whole[i.category] for i in drawn.annotated.instances)
        asked = make_conversations(drawn.annotated, np.random.default_rng(0), list(COLOURS), {"presence": 1.0}, 20)
        for conversation in asked:
            there = conversation.groundings[0].phrase in drawn.annotated.categories
            assert conversation.messages[1].content == ("yes" if there else "no")
    assert set(seen) == {("red thing",), ("green thing",), ("red thing", "green thing")}  # never empty


def test_one_of_two_things_may_go_and_its_category_stays() -> None:
    numbers = {len(view(n, 2, crop_ratio=1, min_side_ratio=0.4).annotated.instances) for n in range(1, 40)}
    assert numbers == {1, 2}


def test_a_crop_that_would_leave_doubt_is_given_up_and_counted() -> None:
    filled = make("f", (40, 40), ("red thing", (0, 0, 40, 40)))
    drawn = view(1, 0, [filled], crop_ratio=1, min_side_ratio=0.3, min_visible_ratio=1.0)
    assert drawn.notes == (GIVEN_UP,)
    assert drawn.pixels.shape == (40, 40, 3)
    assert_masks_lie_on_their_things(drawn)


def test_a_picture_of_nothing_may_be_cropped() -> None:
    drawn = view(1, 4, crop_ratio=1, min_side_ratio=0.3)
    assert drawn.pixels.shape != (30, 90, 3) and drawn.annotated.instances == () and drawn.notes == ()


def test_colour_changes_pixels_alone() -> None:
    drawn = view(colour=0.4)
    plain = view()
    assert drawn.annotated == plain.annotated
    assert not np.array_equal(drawn.pixels, plain.pixels)
    assert_masks_lie_on_their_things(drawn)


@pytest.mark.parametrize("index", range(5))
def test_a_mosaic_holds_what_its_four_pictures_hold(index: int) -> None:
    drawn = view(3, index, mosaic_ratio=1)
    assert_masks_lie_on_their_things(drawn, slack=0.03)
    height, width = PICTURES[index].image.height, PICTURES[index].image.width
    assert drawn.pixels.shape == (height // 2 * 2, width // 2 * 2, 3)
    quarters = {
        (int(instance.centre[0] >= height // 2), int(instance.centre[1] >= width // 2))
        for instance in drawn.annotated.instances
    }
    assert 3 <= len(quarters) <= 4  # one of the five pictures is empty


def test_mosaics_of_small_and_of_few_pictures_are_counted() -> None:
    small = [PICTURES[0], *(make(f"s{n}", (8, 8), ("red thing", (2, 2, 6, 6))) for n in range(4))]
    assert view(1, 0, small, mosaic_ratio=1).notes == (ENLARGED,) * 3
    few = view(1, 0, PICTURES[:2], mosaic_ratio=1)
    assert few.notes == (REPEATED,)
    assert_masks_lie_on_their_things(few, slack=0.03)
    tiny = make("t", (1, 1), ("red thing", (0, 0, 1, 1)))
    assert view(1, 0, [tiny], mosaic_ratio=1, crop_ratio=1).annotated.categories == ("red thing",)


def test_a_thing_too_thin_for_a_mosaic_stays() -> None:
    thin = make("thin", (80, 80), ("red thing", (40, 3, 41, 5)))
    drawn = view(1, 0, [thin] * 4, mosaic_ratio=1)
    assert len(drawn.annotated.instances) == 4


def test_a_labelled_picture_is_never_cropped_and_keeps_its_label() -> None:
    labelled = [AnnotatedImage(replace(p.image), (), (p.image.id,)) for p in PICTURES]
    drawn = view(1, 0, labelled, crop_ratio=1)
    assert drawn.pixels.shape == (60, 80, 3) and drawn.annotated.labels == ("a",)
    assert len(view(1, 0, labelled, mosaic_ratio=1).annotated.labels) == 4


def test_an_empty_mask_becomes_a_label() -> None:
    nothing = Instance("blue thing", encode_mask(np.zeros((60, 80), dtype=bool)), (0.0, 0.0, 0.0, 0.0), 0.0)
    drawn = view(1, 0, [replace(PICTURES[0], instances=(*PICTURES[0].instances, nothing))], crop_ratio=1)
    assert drawn.annotated.labels == ("blue thing",)
    assert len(drawn.annotated.instances) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_mask_of_another_size_is_named(number: int) -> None:
    wrong = replace(PICTURES[0], instances=PICTURES[1].instances)
    with pytest.raises(
        ValueError, match=r"image a: the mask of a blue thing has 100 × 50 pixels .*, the picture 60 × 80"
    ):
        view(number, 0, [wrong])


def test_grey_and_turned_photographs_go_too() -> None:
    grey = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (30, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    grey.save(buffer, "JPEG", exif=exif)
    turned = AnnotatedImage(ImageSource("g", 50, 30, data=buffer.getvalue()), (), ("sky",))
    assert view(1, 0, [turned], flip_ratio=1, colour=0.2).pixels.shape == (50, 30, 3)


def test_a_view_depends_on_seed_picture_and_number_alone() -> None:
    settings = Augmentation()

    def draw(index: int, number: int, seed: int) -> Drawn:
        return draw_view(PICTURES.__getitem__, 5, index, number, settings, seed)

    for index in range(5):
        first, again = draw(index, 2, 7), draw(index, 2, 7)
        assert np.array_equal(first.pixels, again.pixels) and first.annotated == again.annotated
    shapes = {draw(index, number, seed).pixels.tobytes() for index in (0, 1) for number in (1, 2) for seed in (7, 8)}
    assert len(shapes) == 8
    assert draw(0, 2, 7).annotated.image.id == "a/view-2"
