"""Teachers of the embedded world: a small Grounding DINO that turns words into boxes, a small SAM for their masks.

They stand for the large ones, are saved in their formats and loaded by their classes, and are good: the whole path of
photographs (`agevlm ground`, then training on what it found) runs and is measured with them.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field

from agevlm.data.scenes import WorldSpec
from agevlm.documents import Strict
from agevlm.files import write_beside
from agevlm.training.foundation import Progress
from agevlm.training.teachers.detector import DetectorSpec, train_detector
from agevlm.training.teachers.pool import draw_pool
from agevlm.training.teachers.segmenter import SegmenterSpec, train_segmenter


class TeacherSpec(Strict):
    """The recipe of both teachers."""

    seed: int = 0
    """Of scenes, weights and order."""
    world: WorldSpec = WorldSpec()
    """The world that they learn."""
    num_scenes: int = Field(16_000, ge=4)
    """How many scenes."""
    num_workers: int = Field(2, ge=0)
    """Processes that draw them."""
    detector: DetectorSpec = DetectorSpec()
    """The Grounding DINO."""
    segmenter: SegmenterSpec = SegmenterSpec()
    """The SAM."""


def train_teachers(out: str | Path, spec: TeacherSpec, progress: Progress | None = None) -> None:
    """Train both and write them to `out/grounding-dino` and `out/sam`, each with its recipe."""
    report = progress or (lambda *_: None)
    pool = draw_pool(spec.world, spec.seed, spec.num_scenes, spec.num_workers)
    trained = (
        ("grounding-dino", lambda: train_detector(spec.detector, pool, spec.seed, report)),
        ("sam", lambda: train_segmenter(spec.segmenter, pool, spec.seed, report)),
    )
    for name, train in trained:
        model, processor = train()
        with write_beside(Path(out) / name) as beside:
            model.save_pretrained(beside)
            processor.save_pretrained(beside)
            (beside / "teacher.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
