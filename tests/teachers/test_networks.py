"""Teachers of networks: tiny random checkpoints in the real layout, through transformers' own classes and files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_teachers import save_grounding_dino, save_owlv2, save_sam, save_sam2, save_sam3
from transformers import SamModel, SamProcessor

from agevlm.data.masks import decode_mask
from agevlm.teachers import segmenters
from agevlm.teachers.base import Request, Thresholds
from agevlm.teachers.detectors import GroundingDino, Owlv2, select
from agevlm.teachers.registry import TeacherOptions, load_teacher
from agevlm.teachers.segmenters import Sam, Sam2, masks_of_picture, normalised_pixels

EVERYTHING = Thresholds(present=0.0, absent=0.0, max_area_ratio=1.0)


def make_image(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [make_image(48, 80), make_image(100, 60, 1), make_image(1, 7, 2)]
BOXES = np.array([[1, 2, 30, 40], [5, 5, 50, 44]], dtype=np.float32)
NO_BOXES = np.zeros((0, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    savers = {"grounding-dino": save_grounding_dino, "owlv2": save_owlv2}
    savers |= {"sam": save_sam, "sam2": save_sam2, "sam3": save_sam3}
    return {name: save(root / name) for name, save in savers.items()}


# --------------------------------------------------------------------------------------------------------- detectors


@pytest.mark.parametrize("kind", [GroundingDino, Owlv2])
def test_detectors_answer_each_phrase_whatever_its_company(kind: Any, weights: dict[str, Path]) -> None:
    detector = kind(weights["grounding-dino" if kind is GroundingDino else "owlv2"])
    phrases = [["boat", "hot dog"], [], ["Fish"]]
    found = detector.detect(IMAGES, phrases, 0.0)
    assert [len(detections) for detections in found] == [2, 0, 1]
    for image, detections in zip(IMAGES, found, strict=True):
        for detection in detections:
            assert len(detection.boxes) == len(detection.scores) <= 50
            assert (detection.boxes >= 0).all()
            assert (detection.boxes[:, 2:] <= np.array(image.size) + 1e-4).all()
            assert (np.diff(detection.scores) <= 0).all()
            assert 0 <= detection.scores.max() <= detection.best <= 1
    alone = detector.detect(IMAGES[:1], [["boat", "hot dog"]], 0.0)[0]
    for one, two in zip(alone, found[0], strict=True):
        assert one.best > 0.01
        assert one.best == pytest.approx(two.best, rel=0.05)  # Grounding DINO pads pictures of a batch to one size


def test_owlv2_knows_nothing_of_the_other_pictures(weights: dict[str, Path]) -> None:
    detector = Owlv2(weights["owlv2"])
    both = detector.detect(IMAGES[:2], [["boat"], ["fish", "cat"]], 0.0)
    for number, names in enumerate((["boat"], ["fish", "cat"])):
        for one, two in zip(detector.detect([IMAGES[number]], [names], 0.0)[0], both[number], strict=True):
            np.testing.assert_allclose(one.scores, two.scores, rtol=1e-4, atol=1e-12)


def test_more_phrases_than_a_sentence_holds_are_asked_in_turns(weights: dict[str, Path]) -> None:
    detector = GroundingDino(weights["grounding-dino"])
    names = ["boat", "fish", "house", "dog", "cat"] * 5  # of two tokens each, and the model reads 24
    found = detector.detect(IMAGES[:1], [names], 0.5)
    assert len(found[0]) == 25


def test_boxes_of_one_thing_are_kept_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 40, 40], [-9, -9, -1, -1], [5, 5, 5, 9]], np.float32)
    scores = np.array([0.5, 0.9, 0.4, 0.99, 0.98], np.float32)
    found = select(boxes, scores, 0.3, (30, 30))
    np.testing.assert_array_equal(found.boxes, [[1, 0, 10, 10], [20, 20, 30, 30]])
    assert found.scores.tolist() == pytest.approx([0.9, 0.4]) and found.best == pytest.approx(0.99)
    assert len(select(boxes, scores, 1.0, (30, 30)).boxes) == 0


# -------------------------------------------------------------------------------------------------------- segmenters


def test_sam_gives_what_its_own_processor_gives(weights: dict[str, Path]) -> None:
    found = Sam(weights["sam"]).segment(IMAGES, [BOXES, NO_BOXES, np.array([[0, 0, 3, 1]], np.float32)])
    assert [masks.shape for masks, _ in found] == [(2, 48, 80), (0, 100, 60), (1, 1, 7)]
    model, processor = SamModel.from_pretrained(weights["sam"]).eval(), SamProcessor.from_pretrained(weights["sam"])
    inputs = processor(IMAGES[0], input_boxes=[BOXES.tolist()], return_tensors="pt")
    inputs["input_boxes"] = inputs["input_boxes"].float()
    with torch.inference_mode():
        outputs = model(**inputs, multimask_output=False)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    (expected,) = processor.post_process_masks(outputs.pred_masks, *sizes)
    assert 0 < expected.float().mean() < 1
    np.testing.assert_array_equal(found[0][0], expected[:, 0].numpy())
    np.testing.assert_allclose(found[0][1], outputs.iou_scores[0, :, 0].clamp(0, 1), atol=1e-5)


def test_sam2_segments_each_box_by_itself(weights: dict[str, Path]) -> None:
    segmenter = Sam2(weights["sam2"])
    found = segmenter.segment(IMAGES, [BOXES, NO_BOXES, np.array([[0, 0, 3, 1]], np.float32)])
    assert [masks.shape for masks, _ in found] == [(2, 48, 80), (0, 100, 60), (1, 1, 7)]
    (alone,) = segmenter.segment(IMAGES[:1], [BOXES[1:]])
    assert (alone[0][0] == found[0][0][1]).mean() > 0.999


def test_pixels_are_normalised_as_documented() -> None:
    white, black = (Image.new("RGB", (20, 10), colour) for colour in ("white", "black"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = normalised_pixels([white, black], 8, mean, std)
    assert pixels.shape == (2, 3, 8, 8)
    for channel in range(3):
        assert torch.allclose(pixels[0, channel], torch.tensor((1 - mean[channel]) / std[channel]))
        assert torch.allclose(pixels[1, channel], torch.tensor(-mean[channel] / std[channel]))


# ---------------------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize("name", ["grounded-sam", "sam2", "sam3"])
@pytest.mark.parametrize(("detector", "dtype"), [("grounding-dino", "float32"), ("owlv2", "bfloat16")])
def test_teachers_answer_every_phrase_with_masks_of_its_picture(
    name: str, detector: str, dtype: str, weights: dict[str, Path]
) -> None:
    segmenter = str(weights[{"grounded-sam": "sam"}.get(name, name)])
    options = TeacherOptions(detector, str(weights[detector]), segmenter, dtype, present=0.0, absent=0.0)
    teacher = load_teacher(name, options)
    requests = [Request(IMAGES[0], ("boat", "hot dog")), Request(IMAGES[1], ()), Request(IMAGES[2], ("cat",))]
    answers = teacher.ground(requests)
    assert [len(verdicts) for verdicts in answers] == [2, 0, 1]
    for request, verdicts in zip(requests, answers, strict=True):
        for verdict in verdicts:
            assert (verdict.present is True) == bool(verdict.masks)
            assert len(verdict.scores) == len(verdict.masks)
            assert all(decode_mask(mask).shape == (request.image.height, request.image.width) for mask in verdict.masks)
    assert any(verdict.present for verdicts in answers for verdict in verdicts)


@pytest.mark.parametrize(
    ("name", "detector"),
    [("grounded-sam", "grounding-dino"), ("grounded-sam", "owlv2"), ("sam2", "owlv2"), ("sam3", "")],
)
def test_what_a_network_cannot_read_is_unknown(name: str, detector: str, weights: dict[str, Path]) -> None:
    segmenter = str(weights[{"grounded-sam": "sam"}.get(name, name)])
    options = TeacherOptions(detector, str(weights.get(detector)), segmenter, present=0.0, absent=0.0, max_area_ratio=1)
    long, line = "boat " * 300, Image.new("RGB", (1, 500))
    requests = [Request(line, ("boat", long)), Request(IMAGES[0], (long, "boat")), Request(IMAGES[0], (long,))]
    requests.append(Request(Image.new("RGB", (1, 1)), ("boat",)))
    reasons = [[verdict.reason for verdict in verdicts] for verdicts in load_teacher(name, options).ground(requests)]
    assert reasons[:3] == [["picture too thin"] * 2, ["phrase too long", "found"], ["phrase too long"]]
    assert reasons[3] in (["found"], ["empty mask"])
    assert load_teacher(name, options).ground(requests[:1])[0][0].present is None


def test_masks_of_a_large_picture_are_made_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, picture = torch.randn(5, 6, 6), IMAGES[0]
    whole = masks_of_picture(values, picture, 0.0)
    monkeypatch.setattr(segmenters, "_PIXELS_AT_ONCE", 2 * picture.width * picture.height)
    np.testing.assert_array_equal(masks_of_picture(values, picture, 0.0), whole)
    assert whole.shape == (5, picture.height, picture.width) and 0.3 < whole.mean() < 0.7
    assert masks_of_picture(values[:0], picture, 0.0).shape == (0, picture.height, picture.width)


def test_published_weights_are_those_of_video_models(weights: dict[str, Path], tmp_path: Path) -> None:
    for name in ("sam2", "sam3"):
        shutil.copytree(weights[name], tmp_path / name)
        file = tmp_path / name / "config.json"
        known = json.loads(file.read_text()) | {"model_type": f"{name}_video"}
        file.write_text(json.dumps(known))
    state = load_file(weights["sam3"] / "model.safetensors")
    save_file({f"detector_model.{key}": value for key, value in state.items()}, tmp_path / "sam3" / "model.safetensors")
    detector = json.loads((weights["sam3"] / "config.json").read_text())
    (tmp_path / "sam3" / "config.json").write_text(
        json.dumps({"model_type": "sam3_video", "detector_config": detector})
    )
    requests = [Request(IMAGES[0], ("boat", "cat"))]
    for name in ("sam2", "sam3"):
        found = []
        for root in (weights[name], tmp_path / name):
            options = TeacherOptions(
                "owlv2", str(weights["owlv2"]), str(root), present=0.0, absent=0.0, max_area_ratio=1
            )
            found.append(load_teacher(name, options).ground(requests))
        assert found[0] == found[1]


def test_a_teacher_of_the_wrong_kind_is_named(weights: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sam2: is a sam2.* model, this teacher needs sam$"):
        Sam(weights["sam2"])
    with pytest.raises(ValueError, match=r"sam: is a sam model, this teacher needs grounding-dino"):
        GroundingDino(weights["sam"])
    with pytest.raises(ValueError, match=r"holds no config.json"):
        Sam2(tmp_path)
    for name, options, message in (
        ("sam9", TeacherOptions(), "no teacher 'sam9'; there are grounded-sam"),
        ("grounded-sam", TeacherOptions(detector="yolo"), "no detector 'yolo'"),
        ("sam3", TeacherOptions(segmenter_weights=str(weights["sam3"]), dtype="int8"), "no dtype 'int8'"),
        ("sam3", TeacherOptions(segmenter_weights=str(weights["sam3"]), absent=0.9), "0 <= absent <= present <= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            load_teacher(name, options)
