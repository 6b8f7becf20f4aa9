"""What a run would take, before anything is paid for: parameters, operations, memory, hours and disk of each stage.

    plan_run(recipe, Machine(GPUS["h100"], num_gpus=8)) -> Plan

Networks are built on the meta device and steps run on tensors without contents, so a plan takes seconds, at a billion
parameters a minute, and needs no weights, no data and no GPU. What cannot be known is assumed, and said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from agevlm.modeling.interleaving import decoder_layers
from agevlm.modeling.joined import JoinedModel
from agevlm.training.arithmetic import frozen_linear
from agevlm.training.plan_inputs import Reckoned, reckon
from agevlm.training.recipe import Recipe, StageRecipe
from agevlm.training.shapes import Shapes
from agevlm.training.stages import freeze_for_stage, parameter_groups
from agevlm.training.step_cost import StepCost, StepShape, VisionCost, optimiser_bytes, step_cost, vision_cost
from agevlm.training.trainer import images_per_process

DEFAULT_MFU = 0.4  # share of the peak that training reaches: 0.3 to 0.5 for models of this size
PLANNED_RATIO = 0.9  # of a GPU's memory; the rest is left to CUDA, and to blocks that the allocator holds beside


@dataclass(frozen=True)
class Gpu:
    """A GPU: operations a second of dense products, of its data sheet, and bytes of memory, as nvidia-smi tells."""

    name: str
    bfloat16_flops: float
    float32_flops: float
    memory_bytes: int

    def peak(self, dtype: torch.dtype) -> float:
        """Operations a second in a type."""
        return self.bfloat16_flops if dtype == torch.bfloat16 else self.float32_flops

    def fit(self, num_bytes: int) -> Literal["yes", "tight", "no"]:
        """Whether a plan's bytes fit: "yes" within nine tenths of its memory, "tight" within all of it, else "no"."""
        if num_bytes <= PLANNED_RATIO * self.memory_bytes:
            return "yes"
        return "tight" if num_bytes <= self.memory_bytes else "no"


def _gpus() -> dict[str, Gpu]:
    table = {  # dense bfloat16 and plain float32 in 10^12 operations a second, of the data sheets; memory in MiB
        "b200": (2250, 75, 183359),
        "h200": (989, 67, 143771),
        "h100": (989, 67, 81559),
        "h100-pcie": (756, 51, 81559),
        "a100-80gb": (312, 19.5, 81251),  # newer drivers tell 81920
        "a100-40gb": (312, 19.5, 40960),
        "l40s": (362, 91.6, 46068),
        "a10g": (70, 31, 23028),
        "l4": (121, 30, 23034),
        "rtx5090": (209, 105, 32607),
        "rtx4090": (165, 82.6, 24564),
        "rtx3090": (71, 35.6, 24576),
    }
    return {name: Gpu(name, b * 1e12, f * 1e12, m * 2**20) for name, (b, f, m) in table.items()}


GPUS = _gpus()


def find_gpu(name: str) -> Gpu:
    """A GPU of the table, its name in any case. ValueError for one that is not in it."""
    if name.lower() not in GPUS:
        raise ValueError(f"no GPU {name!r}: expected one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


@dataclass(frozen=True)
class Machine:
    """What a run would train on. `mfu` is the share of a GPU's peak that training reaches: an assumption."""

    gpu: Gpu
    num_gpus: int = 1
    mfu: float = DEFAULT_MFU


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU while a stage trains.

    `activations` are what is kept for the backward pass and what is being worked on; `gathered` what is held beside a
    GPU's own: DDP's buckets, whole layers of FSDP. `total` is the most at a time: as activations go, gradients come.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    gathered: int
    total: int


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes. `memory` is that of one GPU by the way of dividing: ddp, fsdp."""

    name: str
    steps: int
    modules: dict[str, dict[str, int]]
    shape: StepShape
    flops_per_step: int
    hours: float
    text_tokens: int
    image_tokens: int
    gradient_checkpointing: bool
    memory: dict[str, MemoryPlan]

    @property
    def parameters(self) -> int:
        """Of all modules."""
        return sum(count["parameters"] for count in self.modules.values())

    @property
    def trainable(self) -> int:
        """Parameters that train."""
        return sum(count["trainable"] for count in self.modules.values())


@dataclass(frozen=True)
class FeaturePlan:
    """The feature maps that are computed before the first stage. `num_images` of None: not known."""

    num_images: int | None
    bytes_per_image: int
    flops_per_image: int
    hours: float | None


@dataclass(frozen=True)
class Plan:
    """What a run takes, all stages together. `assumed` says what could not be known."""

    name: str
    machine: Machine
    dtype: str
    stages: tuple[StagePlan, ...]
    features: FeaturePlan | None
    checkpoint_bytes: int
    num_checkpoints: int
    disk_bytes: int
    assumed: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Of training, and of the feature maps before it; not of evaluation."""
        return sum(stage.hours for stage in self.stages) + ((self.features and self.features.hours) or 0.0)

    @property
    def peak(self) -> float:
        """Operations a second of one GPU, in the type that is planned."""
        return self.machine.gpu.peak(getattr(torch, self.dtype))

    def fits(self, way: str) -> bool:
        """Whether every stage fits nine tenths of the GPU's memory when divided that way: ddp or fsdp."""
        return all(self.machine.gpu.fit(stage.memory[way].total) == "yes" for stage in self.stages)

    def record(self) -> dict[str, Any]:
        """The plan as plain data, totals included."""
        content = asdict(self)
        for stage, written in zip(self.stages, content["stages"], strict=True):
            written |= {"parameters": stage.parameters, "trainable": stage.trainable}
        return content | {"hours": self.hours, "fits": {way: self.fits(way) for way in self.stages[0].memory}}


@dataclass(frozen=True)
class _Network:
    """What all stages share: configurations, arithmetic, parameters without adapters, what a picture takes."""

    shapes: Shapes
    dtype: torch.dtype
    num_parameters: int
    vision: VisionCost
    num_image_tokens: int

    @classmethod
    def of(cls, recipe: Recipe, shapes: Shapes, image_size: tuple[int, int]) -> _Network:
        """That of a recipe."""
        dtype = torch.float32 if recipe.dtype == "float32" else torch.bfloat16
        model = shapes.build(recipe.model)
        number, pool = sum(p.numel() for p in model.parameters()), getattr(model.config, "pool_size", 1)
        vision = vision_cost(model, image_size, dtype)
        tokens = math.prod(math.ceil(side / pool) for side in vision.features[1:])
        return cls(shapes, dtype, number, vision, tokens)


def plan_run(recipe: Recipe, machine: Machine, text_len: int | None = None) -> Plan:
    """Plan a run of a recipe on a machine; rows of text have `text_len` tokens where given.

    ValueErrors: a batch that the GPUs cannot divide, those of `Shapes.of`, and a stage that trains what the network
    does not have.
    """
    shapes = Shapes.of(recipe.model)
    reckoned = reckon(recipe, shapes, text_len)
    network = _Network.of(recipe, shapes, reckoned.image_size)
    narrow = network.dtype == torch.bfloat16 and shapes.language.config.dtype == torch.bfloat16
    stages: list[StagePlan] = []
    for stage in recipe.stages:
        stages.append(_plan_stage(recipe, stage, network, machine, reckoned, narrow))
        narrow = narrow and "language_model" not in stage.modules
    features = _plan_features(network, machine, reckoned) if recipe.reads_features else None
    whole, checkpoints = 4 * network.num_parameters, _num_checkpoints(recipe)
    newest = 2 * max(whole + stage.memory["ddp"].optimiser for stage in stages)  # one, while the next is written
    cache = features.bytes_per_image * (features.num_images or 0) if features else 0
    return Plan(
        name=recipe.name,
        machine=machine,
        dtype=str(network.dtype).removeprefix("torch."),
        stages=tuple(stages),
        features=features,
        checkpoint_bytes=whole,
        num_checkpoints=checkpoints,
        disk_bytes=checkpoints * whole + newest + cache,
        assumed=(*shapes.notes, *reckoned.notes, *_assumed(recipe, machine)),
    )


def _num_checkpoints(recipe: Recipe) -> int:
    """Models that a run leaves: of each stage, at the end, and snapshots."""
    every = recipe.snapshot_steps
    return len(recipe.stages) + 1 + sum((stage.steps - 1) // every for stage in recipe.stages if every)


def _assumed(recipe: Recipe, machine: Machine) -> Iterator[str]:
    yield f"training reaches {machine.mfu:.0%} of the peak of a GPU's products (--mfu)"
    if recipe.dtype == "auto":
        yield "dtype: auto is bfloat16 on a GPU"


def _plan_stage(
    recipe: Recipe, stage: StageRecipe, network: _Network, machine: Machine, reckoned: Reckoned, narrow: bool
) -> StagePlan:
    model = network.shapes.build(recipe.model)
    counts = freeze_for_stage(model, stage)
    if narrow:  # as `frozen_in_bfloat16` does
        for parameter in frozen_linear(model.language_model):
            parameter.data = parameter.data.bfloat16()
    text = reckoned.texts[stage.name]
    shape = StepShape(
        num_images=images_per_process(stage, machine.num_gpus),
        num_questions=stage.questions_per_image,
        text_len=text.text_len,
        num_supervised=text.num_supervised,
        num_guided=text.num_guided,
        image_size=reckoned.image_size,
    )
    held = _Held.by(model, stage)
    cost = _step_cost(model, stage, shape, network, recipe.reads_features)
    flops = cost.flops * machine.num_gpus * stage.gradient_accumulation_steps
    samples = stage.steps * stage.images_per_batch * stage.gradient_accumulation_steps
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        modules=counts,
        shape=shape,
        flops_per_step=flops,
        hours=_hours(flops * stage.steps, machine, network.dtype),
        text_tokens=samples * stage.questions_per_image * text.text_len,
        image_tokens=samples * network.num_image_tokens,
        gradient_checkpointing=stage.gradient_checkpointing,
        memory=_memory(held, cost, machine.num_gpus, accumulates=stage.gradient_accumulation_steps > 1),
    )


def _step_cost(model: JoinedModel, stage: StageRecipe, shape: StepShape, network: _Network, cached: bool) -> StepCost:
    """What a step takes; a frozen vision model runs before all else and leaves nothing but its feature maps."""
    if "vision_model" in stage.trainable:
        return step_cost(model, stage, shape, network.dtype, None)
    vision, number = network.vision, shape.num_images
    cost = step_cost(model, stage, shape, network.dtype, vision.features)
    if cached:
        return cost
    peak = number * vision.peak_bytes
    return StepCost(
        flops=cost.flops + number * vision.flops,
        peak_bytes=max(cost.peak_bytes, peak),
        passing_bytes=max(cost.passing_bytes, peak),
        uncopied_bytes=max(cost.uncopied_bytes, peak),
    )


def _hours(flops: float, machine: Machine, dtype: torch.dtype) -> float:
    return flops / (machine.num_gpus * machine.gpu.peak(dtype) * machine.mfu) / 3600


@dataclass(frozen=True)
class _Held:
    """Bytes that stay on a GPU that has all, and what FSDP holds beside its part: what lies outside, and two layers."""

    weights: int
    gradients: int
    optimiser: int
    gathered: int

    @classmethod
    def by(cls, model: JoinedModel, stage: StageRecipe) -> _Held:
        """Those of a network that is frozen for a stage."""
        layers = [*decoder_layers(model.language_model), *getattr(model, "cross_attention", ())]
        sizes = [_bytes(layer.parameters()) for layer in layers]
        weights = _bytes(model.parameters())
        gradients = _bytes(p for p in model.parameters() if p.requires_grad)
        state = optimiser_bytes(parameter_groups(model, stage))
        return cls(weights, gradients, state, weights - sum(sizes) + 2 * max(sizes))


def _bytes(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _memory(held: _Held, cost: StepCost, num_gpus: int, *, accumulates: bool) -> dict[str, MemoryPlan]:
    """The memory of one GPU: DDP holds all, and gradients once more in buckets; FSDP a part, and whole layers."""
    moving = held.gradients + cost.passing_bytes if accumulates else max(cost.peak_bytes, held.gradients)
    buckets = held.gradients if num_gpus > 1 else 0
    total = held.weights + held.optimiser + moving + buckets
    found = {"ddp": MemoryPlan(held.weights, held.gradients, held.optimiser, cost.passing_bytes, buckets, total)}
    if num_gpus > 1:  # autocast's copies are the layers that are gathered
        weights, gradients, state = (math.ceil(n / num_gpus) for n in (held.weights, held.gradients, held.optimiser))
        total = weights + gradients + state + cost.uncopied_bytes + held.gathered
        found["fsdp"] = MemoryPlan(weights, gradients, state, cost.uncopied_bytes, held.gathered, total)
    return found


def _plan_features(network: _Network, machine: Machine, reckoned: Reckoned) -> FeaturePlan:
    number, vision = reckoned.total_images, network.vision
    one = replace(machine, num_gpus=1)  # the main process computes them
    hours = None if number is None else _hours(number * vision.flops, one, network.dtype)
    return FeaturePlan(number, 2 * math.prod(vision.features), vision.flops, hours)
