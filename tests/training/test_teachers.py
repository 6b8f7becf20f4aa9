"""Teachers made in the embedded world: boxes, losses, inputs, and checkpoints that `agevlm ground` loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from agevlm.data.scenes import WorldSpec, draw_scene
from agevlm.teachers.detectors import GroundingDino
from agevlm.teachers.segmenters import Sam
from agevlm.training.teachers import TeacherSpec, train_teachers
from agevlm.training.teachers.detector import DetectorSpec, cells_loss, make_detector, of_asked, queries_loss
from agevlm.training.teachers.pool import MAX_THINGS, boxes_of, draw_pool, normalised
from agevlm.training.teachers.segmenter import SegmenterSpec, make_segmenter, segmenter_loss

TINY = TeacherSpec(
    num_scenes=8,
    num_workers=0,
    detector=DetectorSpec(hidden_size=32, num_attention_heads=2, text_hidden_size=16, steps=2, batch_size=2),
    segmenter=SegmenterSpec(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, decoder_hidden_size=16, steps=2, batch_size=2
    ),
)


def make_masks() -> torch.Tensor:
    """One picture of 32 pixels with a thing in three cells of eight pixels, one of which it shares, and a small one."""
    masks = torch.zeros(1, 3, 32, 32)
    masks[0, 0, 0:16, 8:16] = 1
    masks[0, 1, 20:22, 3:5] = 1
    return masks


def test_boxes_lie_around_masks() -> None:
    assert (boxes_of(make_masks())[0] * 32).tolist() == [[8, 0, 16, 16], [3, 20, 5, 22], [0, 0, 0, 0]]


def test_cells_on_things_say_their_words_and_boxes() -> None:
    masks, categories = make_masks(), torch.tensor([[2, 1, -1]])
    logits = torch.full((1, 16, 4), -20.0)
    logits[0, [1, 5], 2] = 20  # the two cells of the first thing
    logits[0, 8, 1] = 20  # the cell that the small one covers best, though little
    boxes = torch.zeros(1, 16, 4)
    boxes[0, [1, 5]] = torch.tensor([12.0, 8, 8, 16]) / 32
    boxes[0, 8] = torch.tensor([4.0, 21, 2, 2]) / 32
    assert cells_loss(logits, boxes, categories, boxes_of(masks), masks) < 1e-5
    for change in ((0, 1, 2), (0, 8, 1)):
        worse = logits.clone()
        worse[change] = -20
        assert cells_loss(worse, boxes, categories, boxes_of(masks), masks) > 5
    moved = boxes.clone()
    moved[0, 5, 0] += 0.2
    assert cells_loss(logits, moved, categories, boxes_of(masks), masks) > 0.5


def test_queries_that_start_on_things_say_their_words_and_boxes() -> None:
    masks, categories = make_masks(), torch.tensor([[2, 1, -1]])
    truth = torch.tensor([12.0, 8, 8, 16]) / 32  # centre and sides of the first thing
    starts = torch.stack([truth, truth * torch.tensor([1, 1, 1, 0.4]), torch.tensor([0.9, 0.9, 0.1, 0.1])])[None]
    logits = torch.full((1, 3, 4), -20.0)
    logits[0, 0, 2] = 20
    boxes = truth.expand(1, 3, 4)
    assert queries_loss(logits, boxes, starts, categories, boxes_of(masks)) < 1e-5
    for query, word, wrong in (
        (0, 2, True),
        (1, 2, False),
        (2, 3, True),
    ):  # the second starts between thing and nothing
        worse = logits.clone()
        worse[0, query, word] *= -1
        assert (queries_loss(worse, boxes, starts, categories, boxes_of(masks)) > 5) == wrong
    assert queries_loss(logits, boxes * 0.9, starts, categories, boxes_of(masks)) > 0.3


def test_a_picture_without_what_is_asked_has_a_loss() -> None:
    categories, masks = of_asked(torch.tensor([[2, 1, -1]]), make_masks(), np.array([1, 5]))
    assert categories.tolist() == [[-1, 0, -1]] and masks.flatten(2).sum(-1).tolist() == [[0, 4, 0]]
    categories, masks = of_asked(torch.tensor([[2, 1, -1]]), make_masks(), np.array([7, 5]))
    logits, boxes = torch.zeros(1, 16, 2, requires_grad=True), torch.full((1, 16, 4), 0.5)
    cells_loss(logits, boxes, categories, boxes_of(masks), masks).backward()
    queries_loss(logits, boxes, boxes, categories, boxes_of(masks)).backward()
    assert torch.isfinite(logits.grad).all()


def test_masks_and_their_scores_are_learned() -> None:
    masks = make_masks()[:, :1]
    logits = 40 * F.max_pool2d(masks, 2) - 20
    exact = F.interpolate(masks, scale_factor=1) * 40 - 20
    assert segmenter_loss(exact, torch.ones(1, 1), masks) < 0.01
    assert segmenter_loss(exact, torch.zeros(1, 1), masks) == pytest.approx(1, abs=0.01)
    assert segmenter_loss(-logits, torch.zeros(1, 1), masks) > 5


def test_inputs_are_those_of_the_processors() -> None:
    scene = draw_scene(WorldSpec(), 0, 0)
    pixels = torch.from_numpy(scene.image.transpose(2, 0, 1))[None]
    size = TINY.world.image_size
    for _, processors in (make_detector(TINY.detector, size), make_segmenter(TINY.segmenter, size)):
        processor = processors.image_processor
        expected = processor(Image.fromarray(scene.image), return_tensors="pt").pixel_values
        assert torch.allclose(normalised(pixels, processor), expected, atol=1e-4)


def test_the_pool_holds_what_was_drawn() -> None:
    pool = draw_pool(TINY.world, TINY.seed, TINY.num_scenes, num_workers=0)
    assert len(pool) == 8 and pool.categories.shape == (8, MAX_THINGS)
    masks = pool.masks(torch.tensor([3, 5]))
    scene = draw_scene(TINY.world, TINY.seed, 5)
    assert int((pool.categories[5] >= 0).sum()) == len(scene.annotation.instances)
    assert masks[1].flatten(1).sum(1)[: len(scene.annotation.instances)].tolist() == [
        thing.area for thing in scene.annotation.instances
    ]
    np.testing.assert_array_equal(pool.pixels[5].numpy(), scene.image.transpose(2, 0, 1))


def test_what_is_trained_is_loaded_as_the_large_ones_are(tmp_path: Path) -> None:
    steps: list[tuple[str, int]] = []
    train_teachers(tmp_path, TINY, lambda name, step, total, loss: steps.append((name, step)))
    assert steps == [("grounding-dino", 1), ("grounding-dino", 2), ("sam", 1), ("sam", 2)]
    image = Image.fromarray(draw_scene(TINY.world, 0, 1).image)
    ((fish, boat),) = GroundingDino(tmp_path / "grounding-dino").detect([image], [["fish", "red boat"]], 0.0)
    assert fish.best > 0 and boat.best > 0 and fish.best != boat.best
    ((masks, scores),) = Sam(tmp_path / "sam").segment([image], [np.array([[10, 10, 50, 50]], dtype=np.float32)])
    assert masks.shape == (1, 96, 96) and scores.shape == (1,)
