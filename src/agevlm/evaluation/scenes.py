"""The scenes benchmark: a fresh world for every seed, and questions on what the method promises.

Scenes to train on, to validate on and to test on never share a seed. This draws samples; `benchmarks.py` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from agevlm.data.language import NUMBERS, make_conversations
from agevlm.data.pope import picture_rng, pope_conversations
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene, scene_png, split_seed
from agevlm.data.schema import AnnotatedImage, Conversation, Sample

TEST_CO_OCCURRENCE = 0.4  # breaks the habit of the training world, whose default is 0.8
NUM_STATISTICS = 400  # scenes of the training world that POPE's frequencies are counted in
QUESTIONS: Mapping[str, int] = MappingProxyType(
    {
        "presence.colour": 2,
        "counting": 2,
        "colour": 2,
        "relation.yes_no": 2,
        "relation.choice": 2,
        "location": 1,
    }
)
"""Questions a scene beside POPE's, by kind; equal ones are asked once."""

ONE_KEPT_RATIO = 0.4  # of counting questions answered by "one": most things are alone, and it must be no safe guess


def scenes_benchmark(
    spec: WorldSpec,
    seed: int,
    num_images: int = 600,
    *,
    split: str = "test",
    num_per_image: int = 3,
    questions: Mapping[str, int] = QUESTIONS,
    statistics: Sequence[AnnotatedImage] | None = None,
) -> list[Sample]:
    """Draw `num_images` scenes of the world `spec` and their questions.

    POPE's three splits, `num_per_image` things that are there and as many that are not in each, with the frequencies of
    `statistics`: scenes of the training world (None: of `spec` itself, see `training_statistics`). Then `questions` of
    each kind, as far as the scene offers them. Deterministic in all arguments.
    """
    annotated = _drawn(spec, seed, num_images, split)
    counted = training_statistics(spec, seed) if statistics is None else statistics
    pope = pope_conversations(
        annotated, num_per_image=num_per_image, seed=seed, vocabulary=CATEGORIES, statistics=counted
    )
    return [
        Sample(a.image.id, (a.image,), (*pope.get(a.image.id, ()), *_others(a, seed, questions))) for a in annotated
    ]


def captioned_scenes(spec: WorldSpec, seed: int, num_images: int, *, split: str = "test") -> list[Sample]:
    """The scenes of `scenes_benchmark` with the same arguments, each with one caption in place of questions."""
    annotated = _drawn(spec, seed, num_images, split)
    return [
        Sample(
            a.image.id, (a.image,), make_conversations(a, picture_rng(a.image.id, seed), CATEGORIES, {"caption": 1.0})
        )
        for a in annotated
    ]


@lru_cache(maxsize=2)  # what is asked about is shown in a report afterwards
def _drawn(spec: WorldSpec, seed: int, num_images: int, split: str) -> tuple[AnnotatedImage, ...]:
    """Scenes with their pictures as PNG."""
    if num_images < 1:
        raise ValueError(f"a benchmark needs at least 1 image, got {num_images}")
    scene_seed = split_seed(split, seed)
    scenes = (draw_scene(spec, scene_seed, index) for index in range(num_images))
    return tuple(
        replace(scene.annotation, image=replace(scene.annotation.image, data=scene_png(scene))) for scene in scenes
    )


def _others(annotated: AnnotatedImage, seed: int, questions: Mapping[str, int]) -> list[Conversation]:
    rng = picture_rng(annotated.image.id, seed)
    made = (make_conversations(annotated, rng, CATEGORIES, {kind: 1.0}, num) for kind, num in questions.items())
    asked = {(c.kind, c.messages[0].content): c for drawn in made for c in drawn}.values()
    return [c for c in asked if not _counts_one(c) or rng.random() < ONE_KEPT_RATIO]


def _counts_one(conversation: Conversation) -> bool:
    return conversation.kind == "counting" and conversation.messages[-1].content == NUMBERS[1]


@lru_cache(maxsize=1)
def training_statistics(spec: WorldSpec, seed: int, num_scenes: int = NUM_STATISTICS) -> tuple[AnnotatedImage, ...]:
    """Annotations of the training split of a world, for POPE's frequencies."""
    scene_seed = split_seed("train", seed)
    return tuple(draw_scene(spec, scene_seed, index).annotation for index in range(num_scenes))


def held_out_conversations(spec: WorldSpec, seed: int, *, split: str = "test", num: int = 300) -> list[Conversation]:
    """Conversations of all kinds about scenes that nobody trained on, one a scene: text to measure perplexity on."""
    scene_seed = split_seed(split, seed)
    drawn = (draw_scene(spec, scene_seed, index).annotation for index in range(num))
    return [c for a in drawn for c in make_conversations(a, picture_rng(a.image.id, seed), CATEGORIES, num=1)]
