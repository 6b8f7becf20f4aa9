"""Real photographs, where they are at hand: ../shared/coco_mini beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from agevlm.data.formats.coco import convert_coco, read_coco
from agevlm.data.images import open_image
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet
from agevlm.data.pope import POPE_KINDS

COCO_MINI = Path(__file__).parents[4] / "shared" / "coco_mini"
SPLITS = {"train2017": (80, 739, 8), "val2017": (79, 624, 5)}

pytestmark = pytest.mark.skipif(not COCO_MINI.is_dir(), reason="no photographs at ../shared/coco_mini")


def files(split: str) -> tuple[Path, Path]:
    return COCO_MINI / "annotations" / f"instances_{split}.json", COCO_MINI / split


@pytest.mark.parametrize("split", SPLITS)
def test_reads_every_annotation_with_pycocotools_masks(split: str) -> None:
    annotated, report = read_coco(*files(split))
    num_images, num_instances, num_crowds = SPLITS[split]
    assert report.kept == {"pictures": num_images, "instances": num_instances, "crowds": num_crowds}
    assert not report.mended
    assert not report.left_out
    assert len(report.vocabulary) == 80
    reference = COCO(str(files(split)[0]))
    for picture in annotated[::8]:
        entries = reference.loadAnns(reference.getAnnIds(int(picture.image.id)))
        for instance, entry in zip(picture.instances, entries, strict=True):
            assert np.array_equal(decode_mask(instance.mask), reference.annToMask(entry).astype(bool))


def test_converts_and_asks_balanced_questions(tmp_path: Path) -> None:
    report, summary = convert_coco(*files("val2017"), tmp_path / "val")
    dataset = read_parquet(tmp_path / "val")
    assert len(dataset) == summary.num_samples == report.kept["pictures"] == 79
    answers = {kind: {"yes": 0, "no": 0} for kind in POPE_KINDS}
    for record in dataset:
        assert record.annotated is not None
        present = set(record.annotated.categories)
        assert any(not conversation.kind.startswith("pope.") for conversation in record.sample.conversations)
        for conversation in record.sample.conversations:
            if conversation.kind in answers:
                answer = conversation.messages[-1].content
                answers[conversation.kind][answer] += 1
                assert (conversation.groundings[0].phrase in present) is (answer == "yes")
            for grounding in conversation.groundings:
                size = [record.annotated.image.height, record.annotated.image.width]
                assert all(mask["size"] == size for mask in grounding.masks)
    for counts in answers.values():
        assert counts["yes"] == counts["no"] > 100
    image = dataset[0].sample.images[0]
    picture = open_image(image)
    assert (picture.height, picture.width) == (image.height, image.width)
    assert np.asarray(picture).std() > 10
