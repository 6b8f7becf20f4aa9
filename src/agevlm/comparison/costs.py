"""What each arm of a comparison costs: time of a training step, time to the first token of an answer, and memory.

Arms take turns within one run, so that a slow moment of the machine is shared; ratios are those of pairs that did the
same work one after the other. Weights do not matter to cost: networks are joined anew, as training joins them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agevlm.checkpoints import choose_device
from agevlm.comparison.first_token import FirstToken
from agevlm.comparison.recipe import ComparisonRecipe
from agevlm.data.images import open_image
from agevlm.training.arithmetic import autocast, choose_arithmetic
from agevlm.training.compiled import compile_layers
from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.recipe import Recipe, ScenesSource, StageRecipe
from agevlm.training.run import build_model, environment, open_source, stage_collator
from agevlm.training.timing import (
    Item,
    draw_batches,
    pixels_of,
    prepared,
    seconds,
    step_times,
    step_work,
    with_features,
)

TOKENS = (144, 576, 1024)  # image tokens that the vision model gives, before any pooling
KERNELS = ("eager", "sdpa")  # of attention
QUESTION = "is there a fish in the picture?"
NUM_BATCHES = 4  # different batches of a stage, gone through in turn
STEPS_AT_A_TIME = 2  # timed steps of an arm before the next arm's turn
QUESTIONS_AT_A_TIME = 5
MIN_SCENE_SIZE = 96  # pixels; smaller pictures are scenes made smaller

Progress = Callable[[str, int, int], None]  # name, done, in all
T = TypeVar("T")
Times = dict[str, list[float]]  # arm → seconds; number i of every arm is the same work


@dataclass(frozen=True)
class PictureSize:
    """Square pictures of `side` pixels, which give `num_tokens`; batches are `batch_ratio` times the recipe's."""

    num_tokens: int
    side: int
    batch_ratio: float


@dataclass(frozen=True)
class ArmNetwork:
    """The network of an arm, for pictures of one size."""

    arm: str
    recipe: Recipe
    model: Any
    processor: Any

    def stage(self, name: str) -> StageRecipe:
        """The stage of that name."""
        return next(stage for stage in self.recipe.stages if stage.name == name)

    @property
    def arithmetic(self) -> torch.dtype:
        """In which it trains."""
        return choose_arithmetic(self.recipe.dtype)

    @property
    def kernels(self) -> Sequence[str]:
        """Of attention, of which the arm takes the faster; compiled layers have the one that they train with."""
        return (self.model.config._attn_implementation,) if self.recipe.compile else KERNELS

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the vision model's feature map."""
        size, device = self.processor.image_processor.size, self.model.projector.weight.device
        with torch.no_grad():
            pixels = torch.zeros(1, 3, size["height"], size["width"], device=device)
            height, width = self.model.vision_features(pixels).shape[-2:]
        return int(height), int(width)


def measure_costs(
    recipe: ComparisonRecipe,
    *,
    arms: Sequence[str] = (),
    tokens: Sequence[int] = TOKENS,
    repetitions: int = 8,
    foundation: Path | None = None,
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """`costs` (arm → number of image tokens → figures), the `reference` of ratios, `settings` and `environment`.

    The reference is that of equal time, or the first arm. With `arms` only those are measured. Networks are joined from
    the models that the recipe names, or from the `foundation` directory of a comparison. An arm that is not there, or a
    number of image tokens that no square picture gives, is a ValueError.
    """
    if foundation is not None and not (foundation / "tiny-convnext" / "config.json").is_file():
        raise ValueError(f"{foundation} is no foundation: it has no tiny-convnext, see `agevlm scenes foundation`")
    recipes = {arm: recipe.recipe_of(arm, 0, foundation) for arm in recipe.choose_arms(arms)}
    wanted = recipe.equal_time.reference if recipe.equal_time else None
    reference = wanted if wanted in recipes else next(iter(recipes))
    sizes = _sizes(recipes[reference], tokens)
    total, load = len(sizes) * (len(measured_stages(recipes)) + 1), os.getloadavg()
    costs: dict[str, dict[str, Any]] = {arm: {} for arm in recipes}
    steps = itertools.count(1)
    for size in sizes:
        measured = _measure(recipes, size, repetitions, reference, lambda: progress("costs", next(steps), total))
        for arm, figures in measured.items():
            costs[arm][str(size.num_tokens)] = figures
    facts = {"num_cores": os.cpu_count(), "load_before": list(load), "load_after": list(os.getloadavg())}
    trained_in = str(choose_arithmetic(recipes[reference].dtype)).removeprefix("torch.")
    settings = {"repetitions": repetitions, "question": QUESTION, "training_dtype": trained_in}
    return {
        "costs": costs,
        "reference": reference,
        "settings": {**settings, "answering_dtype": "float32"},
        "environment": {**environment(), **facts},
    }


def _measure(
    recipes: Mapping[str, Recipe], size: PictureSize, repetitions: int, reference: str, done: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Arm → all figures for pictures of one size; `done` is called after each stage and after the answers."""
    networks = [_join(arm, recipe, size) for arm, recipe in recipes.items()]
    for network in networks:
        if network.recipe.compile:
            compile_layers(network.model)
    trained: dict[str, dict[str, Any]] = {arm: {} for arm in recipes}
    for stage in measured_stages(recipes):
        for arm, figures in _train(networks, stage, size.batch_ratio, repetitions, reference).items():
            trained[arm][stage] = figures
        done()
    del networks
    answered = _answer(recipes, size, repetitions, reference)
    done()
    return {arm: {"image_size": size.side, "train": trained[arm], **answered[arm]} for arm in recipes}


def measured_stages(recipes: Mapping[str, Recipe]) -> list[str]:
    """The stages worth measuring: those that any arm guides, and the last."""
    stages = [stage for recipe in recipes.values() for stage in recipe.stages]
    guided = {stage.name for stage in stages if stage.guidance is not None and stage.guidance.weight > 0}
    first = next(iter(recipes.values()))
    return [stage.name for stage in first.stages if stage.name in guided | {first.stages[-1].name}]


def compare_times(times: Times, reference: str) -> dict[str, dict[str, Any]]:
    """Arm → median seconds with quartiles, and the same of the ratios to the reference's time for the same work."""
    base = np.array(times[reference])
    return {arm: {**_spread(own), "ratio": _spread(np.array(own) / base)} for arm, own in times.items()}


def cost_tables(measured: Mapping[str, Any]) -> list[tuple[list[str], list[list[object]]]]:
    """Headings and rows of two tables, training and answering: milliseconds, and × the reference in brackets."""
    stages = next(iter(next(iter(measured["costs"].values())).values()))["train"]
    trained: list[list[object]] = []
    answered: list[list[object]] = []
    for arm, by_tokens in measured["costs"].items():
        for number, cost in by_tokens.items():
            steps = list(cost["train"].values())
            kept = steps[-1]["activation_bytes"] / steps[-1]["images_per_batch"] / 1e6
            times = [_short(step["seconds_per_step"], step["images_per_batch"]) for step in steps]
            trained.append([arm, number, *times, f"{kept:.1f}"])
            times = [_short(cost[name]["seconds"]) for name in ("first_token", "further_question")]
            answered.append([arm, number, *times, round(cost["memory"]["total_bytes"] / 1e3)])
    return [
        (["arm", "tokens", *(f"{name}, ms/image" for name in stages), "kept, MB/image"], trained),
        (["arm", "tokens", "first token, ms", "further question, ms", "cache, kB"], answered),
    ]


def _short(times: Mapping[str, Any], divisor: int = 1) -> str:
    return f"{1e3 * times['median'] / divisor:.1f} (×{times['ratio']['median']:.2f})"


def _spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "low": low, "high": high}


def _sizes(recipe: Recipe, tokens: Sequence[int]) -> list[PictureSize]:
    """The square pictures that give these numbers of image tokens. ValueError where there is none."""
    network = _join("", recipe)
    height, width = network.grid
    cell = network.processor.image_processor.size["height"] // height
    sizes = []
    for number in tokens:
        side = math.isqrt(max(number, 1))
        if side**2 != number:
            near = " or ".join(f"{s**2} ({s * cell} pixels)" for s in (side, side + 1))
            raise ValueError(f"no square picture gives {number} image tokens; the nearest are {near}")
        sizes.append(PictureSize(number, side * cell, math.sqrt(min(1.0, height * width / number))))
    return sizes


def _join(arm: str, recipe: Recipe, size: PictureSize | None = None) -> ArmNetwork:
    """The network of an arm; with a size, for pictures and scenes of that size."""
    if size is not None:
        recipe = _at_size(recipe, size.side)
    model, processor = build_model(recipe)
    if size is not None:
        processor.image_processor.size = {"height": size.side, "width": size.side}
    network = ArmNetwork(arm, recipe, model.to(choose_device()), processor)
    if size is not None and math.prod(network.grid) != size.num_tokens:
        raise ValueError(f"arm {arm}: its vision model gives {network.grid} tokens, not {size.num_tokens}")
    return network


def _at_size(recipe: Recipe, side: int) -> Recipe:
    """The same recipe with its scenes drawn as large as the pictures."""
    size = {"image_size": max(side, MIN_SCENE_SIZE)}
    data = {
        name: source.model_copy(update={"scenes": source.scenes.model_copy(update=size)})
        if isinstance(source, ScenesSource)
        else source
        for name, source in recipe.data.items()
    }
    return recipe.model_copy(update={"data": data})


def _rotated(items: Sequence[T], number: int) -> list[T]:
    start = number % len(items)
    return [*items[start:], *items[:start]]


def _train(
    networks: Sequence[ArmNetwork], stage_name: str, batch_ratio: float, repetitions: int, reference: str
) -> dict[str, dict[str, Any]]:
    """Arm → the figures of a step of one stage, with its batches made smaller by a factor."""
    figures: dict[str, dict[str, Any]] = {}
    batches: dict[str, list[dict[str, Any]]] = {}
    work: dict[tuple[str, str], dict[str, Any]] = {}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}  # by wall and by processor
    drawn: dict[str, list[list[Item]]] = {}
    stages = {network.arm: _smaller(network.stage(stage_name), batch_ratio) for network in networks}
    kernels = {network.arm: network.kernels for network in networks}
    with ExitStack() as stack:
        for network in networks:
            stage, dtype = stages[network.arm], network.arithmetic
            counts = stack.enter_context(prepared(network.model, stage))
            items = _draw(network, stage, drawn)
            batches[network.arm] = _collate(network, stage, items)
            vision = {"vision_seconds_per_image": _vision_seconds(network, items[0])}
            figures[network.arm] = {**_counts(stage, counts), **vision}
            with torch.compiler.set_stance("force_eager"):  # compiled graphs hide their products from the counter
                for kernel in dict.fromkeys((KERNELS[0], *kernels[network.arm])):  # of the first are the flops
                    network.model.set_attn_implementation(kernel)
                    work[network.arm, kernel] = step_work(network.model, stage, batches[network.arm][0], dtype)
            if network.recipe.compile:
                network.model.set_attn_implementation(*kernels[network.arm])
                step_times(network.model, stage, batches[network.arm], dtype)  # compiles for what lies ahead
        turns = [(network, kernel) for network in networks for kernel in kernels[network.arm]]
        for repetition in range(repetitions):
            for network, kernel in _rotated(turns, repetition):
                network.model.set_attn_implementation(kernel)
                start, of_arm = repetition * STEPS_AT_A_TIME, batches[network.arm]
                chosen = [of_arm[(start + step) % len(of_arm)] for step in range(STEPS_AT_A_TIME)]
                steps = step_times(network.model, stages[network.arm], [chosen[0], *chosen], network.arithmetic)
                times.setdefault((network.arm, kernel), []).extend(steps)
    for arm in figures:
        kernel = min(kernels[arm], key=lambda kernel: float(np.median([wall for wall, _ in times[arm, kernel]])))
        flops = {"flops": work[arm, KERNELS[0]]["flops"]}  # a fused kernel's are not counted
        figures[arm] |= {"attention": kernel, **work[arm, kernel], **flops}
    walls, processors = (
        {arm: [taken[part] for taken in times[arm, found["attention"]]] for arm, found in figures.items()}
        for part in (0, 1)
    )
    on_processor = compare_times(processors, reference)
    for arm, spread in compare_times(walls, reference).items():
        per_image = spread["median"] / figures[arm]["images_per_batch"]
        figures[arm] |= {"seconds_per_step": spread, "seconds_per_image": per_image}
        figures[arm]["processor_seconds_per_step"] = on_processor[arm]
    return figures


def _counts(stage: StageRecipe, counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {
        "images_per_batch": stage.images_per_batch,
        "questions_per_image": stage.questions_per_image,
        "parameters": sum(count["parameters"] for count in counts.values()),
        "trainable_parameters": sum(count["trainable"] for count in counts.values()),
    }


def _smaller(stage: StageRecipe, batch_ratio: float) -> StageRecipe:
    images = max(1, round(stage.images_per_batch * batch_ratio))
    return stage.model_copy(update={"images_per_batch": images, "steps": NUM_BATCHES, "gradient_accumulation_steps": 1})


def _draw(network: ArmNetwork, stage: StageRecipe, drawn: dict[str, list[list[Item]]]) -> list[list[Item]]:
    """The batches of a stage as training draws them; arms that read the same data share what is drawn."""
    recipe = network.recipe
    arms_own = {"trainable", "lora", "guidance", "learning_rate", "module_learning_rates", "weight_decay"}
    key = json.dumps([recipe.model_dump(mode="json")["data"], stage.model_dump(mode="json", exclude=arms_own)])
    if key not in drawn:
        names = [name for name, weight in stage.data.items() if weight]
        used = {name: SourceData(open_source(recipe.data[name], recipe.seed)) for name in names}
        drawn[key] = draw_batches(StageDataset(stage, used, seed=recipe.seed), NUM_BATCHES)
    return drawn[key]


def _collate(network: ArmNetwork, stage: StageRecipe, batches: list[list[Item]]) -> list[dict[str, Any]]:
    collate = stage_collator(network.recipe, stage, network.model, network.processor)
    if network.recipe.reads_features:
        batches = [with_features(items, network.model, network.processor) for items in batches]
    return [collate(items) for items in batches]


def _vision_seconds(network: ArmNetwork, items: list[Item]) -> float | None:
    """Seconds for each image of a pass of the vision model over a batch, where steps spare it; else None."""
    if not network.recipe.reads_features:
        return None
    pixels = pixels_of(items, network.processor).to(network.model.projector.weight.device)

    def see() -> Tensor:
        with autocast(network.arithmetic, pixels.device.type):
            return network.model.vision_features(pixels)

    return float(np.median([seconds(see) for _ in range(3)])) / len(pixels)


def _answer(
    recipes: Mapping[str, Recipe], size: PictureSize, repetitions: int, reference: str
) -> dict[str, dict[str, Any]]:
    """Arm → the figures of an answer's first token, in float32 and with transformers' own choice of attention."""
    asked = {}
    for arm, recipe in recipes.items():
        settings = recipe.model.model_copy(update={"attn_implementation": None})
        network = _join(arm, recipe.model_copy(update={"model": settings}), size)
        asked[arm] = FirstToken(network.model, network.processor, _picture(network.recipe), QUESTION)
    times: dict[str, Times] = {}
    for number in range(repetitions * QUESTIONS_AT_A_TIME):
        for arm in _rotated([*asked], number):
            for part, value in asked[arm].times().items():
                times.setdefault(part, {}).setdefault(arm, []).append(value)
    spreads = {part: compare_times(of_part, reference) for part, of_part in times.items()}
    return {arm: _with_times(first, {part: spreads[part][arm] for part in spreads}) for arm, first in asked.items()}


def _with_times(first: FirstToken, times: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    work = first.flops()
    return {
        "image_tokens": first.num_image_tokens,
        "text_tokens": first.num_text_tokens,
        "first_token": {
            "seconds": times["first"],
            "vision_seconds": times["vision"],
            "rest_seconds": times["rest"],
            "vision_flops": work["vision"],
            "rest_flops": work["rest"],
        },
        "further_question": {"seconds": times["further"], "flops": work["further"]},
        "memory": first.memory_bytes(),
    }


def _picture(recipe: Recipe) -> Image.Image:
    """The first picture of the recipe's first source that has one."""
    source = open_source(next(iter(recipe.data.values())), recipe.seed)
    samples = (source.sample(index, np.random.default_rng(0), None, 1) for index in range(len(source)))
    return open_image(next(image for sample in samples for image in sample.images))
