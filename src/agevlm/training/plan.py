"""What a run would take, before anything is paid for: parameters, operations, memory, hours and disk of each stage.

    plan_run(recipe, Machine(GPUS["h100"], num_gpus=8)) -> Plan

Networks are built on the meta device and steps run on tensors without contents, so a plan takes seconds and needs no
weights, no data and no GPU. What cannot be known then is assumed, and a plan says what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agevlm.modeling.interleaving import decoder_layers
from agevlm.modeling.joined import JoinedModel
from agevlm.training.plan_inputs import Reckoned, reckon
from agevlm.training.recipe import Recipe, StageRecipe
from agevlm.training.shapes import Shapes
from agevlm.training.stages import freeze_for_stage, parameter_groups
from agevlm.training.step_cost import (
    StepCost,
    StepShape,
    feature_shape,
    materialise,
    optimiser_bytes,
    step_cost,
    vision_flops,
)
from agevlm.training.trainer import images_per_process

GIB = 2**30
DEFAULT_MFU = 0.4  # share of the peak that training reaches: 0.3 to 0.5 for models of this size


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: operations a second of dense products, and bytes of memory."""

    name: str
    bfloat16_flops: float
    float32_flops: float
    memory_bytes: int

    def peak(self, dtype: torch.dtype) -> float:
        """Operations a second in a type."""
        return self.bfloat16_flops if dtype == torch.bfloat16 else self.float32_flops


def _gpus() -> dict[str, Gpu]:
    table = {  # dense bfloat16 and plain float32 in 10^12 operations a second, memory in GB, of the data sheets
        "b200": (2250, 75, 180),
        "h200": (989, 67, 141),
        "h100": (989, 67, 80),
        "h100-pcie": (756, 51, 80),
        "a100-80gb": (312, 19.5, 80),
        "a100-40gb": (312, 19.5, 40),
        "l40s": (362, 91.6, 48),
        "a10g": (70, 31, 24),
        "l4": (121, 30, 24),
        "rtx5090": (209, 105, 32),
        "rtx4090": (165, 82.6, 24),
        "rtx3090": (71, 35.6, 24),
    }
    return {name: Gpu(name, b * 1e12, f * 1e12, int(m * 1e9)) for name, (b, f, m) in table.items()}


GPUS = _gpus()


@dataclass(frozen=True)
class Machine:
    """What a run would train on. `mfu` is the share of a GPU's peak that training reaches: an assumption."""

    gpu: Gpu
    num_gpus: int = 1
    mfu: float = DEFAULT_MFU


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU while a stage trains. `gathered` are what is held beside a GPU's own: buckets, whole layers."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.gathered


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

    def fits(self, way: str) -> bool:
        """Whether every stage fits the GPU's memory when divided that way: ddp or fsdp."""
        return all(stage.memory[way].total <= self.machine.gpu.memory_bytes for stage in self.stages)

    def record(self) -> dict[str, Any]:
        """The plan as plain data, totals included."""
        content = asdict(self)
        for stage, written in zip(self.stages, content["stages"], strict=True):
            written |= {"parameters": stage.parameters, "trainable": stage.trainable}
            for way, memory in stage.memory.items():
                written["memory"][way]["total"] = memory.total
        return content | {"hours": self.hours, "fits": {way: self.fits(way) for way in self.stages[0].memory}}


@dataclass(frozen=True)
class Network:
    """What all stages share: parameters without adapters, the feature map of a picture, its tokens and operations."""

    num_parameters: int
    feature_shape: tuple[int, int, int]
    num_image_tokens: int
    vision_flops: int

    @classmethod
    def of(cls, recipe: Recipe, shapes: Shapes, image_size: tuple[int, int]) -> Network:
        """That of a recipe."""
        model = shapes.build(recipe.model)
        pool = getattr(model.config, "pool_size", 1)
        with FakeTensorMode():
            materialise(model)
            channels, height, width = feature_shape(model, image_size)
            flops = vision_flops(model, image_size)
        tokens = math.ceil(height / pool) * math.ceil(width / pool)
        return cls(sum(p.numel() for p in model.parameters()), (channels, height, width), tokens, flops)


def find_gpu(name: str) -> Gpu:
    """A GPU of the table. ValueError for one that is not in it."""
    if name not in GPUS:
        raise ValueError(f"no GPU {name!r}: expected one of {', '.join(GPUS)}")
    return GPUS[name]


def plan_run(recipe: Recipe, machine: Machine, text_len: int | None = None) -> Plan:
    """Plan a run of a recipe on a machine; rows of text have `text_len` tokens where given.

    ValueErrors: a batch that the GPUs cannot divide, those of `Shapes.of`, and a stage that trains what the network
    does not have.
    """
    shapes = Shapes.of(recipe.model)
    reckoned = reckon(recipe, shapes, text_len)
    dtype = torch.float32 if recipe.dtype == "float32" else torch.bfloat16
    narrow = dtype == torch.bfloat16 and shapes.language.config.dtype == torch.bfloat16
    network = Network.of(recipe, shapes, reckoned.image_size)
    stages = []
    for stage in recipe.stages:
        stages.append(_plan_stage(recipe, stage, shapes, machine, reckoned, network, dtype, narrow))
        narrow = narrow and "language_model" not in stage.modules
    whole = 4 * network.num_parameters
    features = _plan_features(network, machine, reckoned, dtype) if recipe.reads_features else None
    snapshots = (
        sum((stage.steps - 1) // recipe.snapshot_steps for stage in recipe.stages) if recipe.snapshot_steps else 0
    )
    checkpoints = len(stages) + 1 + snapshots
    newest = 2 * max(whole + stage.memory["ddp"].optimiser for stage in stages)  # one, while the next is written
    cache = features.bytes_per_image * (features.num_images or 0) if features else 0
    return Plan(
        name=recipe.name,
        machine=machine,
        dtype=str(dtype).removeprefix("torch."),
        stages=tuple(stages),
        features=features,
        checkpoint_bytes=whole,
        num_checkpoints=checkpoints,
        disk_bytes=checkpoints * whole + newest + cache,
        assumed=(*shapes.notes, *reckoned.notes, *_assumed(recipe, machine)),
    )


def _assumed(recipe: Recipe, machine: Machine) -> Iterator[str]:
    yield f"training reaches {machine.mfu:.0%} of the peak of a GPU's products (--mfu)"
    if recipe.dtype == "auto":
        yield "dtype: auto is bfloat16 on a GPU"


def _plan_stage(
    recipe: Recipe,
    stage: StageRecipe,
    shapes: Shapes,
    machine: Machine,
    reckoned: Reckoned,
    network: Network,
    dtype: torch.dtype,
    narrow: bool,
) -> StagePlan:
    model = shapes.build(recipe.model)
    counts = freeze_for_stage(model, stage)
    if narrow:
        _narrow(model)
    groups = parameter_groups(model, stage)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gathered = _gathered(model)
    text = reckoned.texts[stage.name]
    shape = StepShape(
        num_images=images_per_process(stage, machine.num_gpus),
        num_questions=stage.questions_per_image,
        text_len=text.text_len,
        num_supervised=text.num_supervised,
        num_guided=text.num_guided if stage.guidance else 0,
        image_size=reckoned.image_size,
        cached=recipe.reads_features,
    )
    cost = step_cost(model, stage, shape, dtype)
    flops = cost.flops * machine.num_gpus * stage.gradient_accumulation_steps
    whole = MemoryPlan(held, 4 * trained, optimiser_bytes(groups), 0, 0)
    samples = stage.steps * stage.images_per_batch * stage.gradient_accumulation_steps
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        modules=counts,
        shape=shape,
        flops_per_step=flops,
        hours=flops * stage.steps / (machine.num_gpus * machine.gpu.peak(dtype) * machine.mfu) / 3600,
        text_tokens=samples * stage.questions_per_image * text.text_len,
        image_tokens=samples * network.num_image_tokens,
        gradient_checkpointing=stage.gradient_checkpointing,
        memory=_divided(whole, cost, stage, machine.num_gpus, gathered),
    )


def _narrow(model: JoinedModel) -> None:
    """Hold the frozen linear layers of the language model in bfloat16, as `frozen_in_bfloat16` does."""
    for module in model.language_model.modules():
        if isinstance(module, torch.nn.Linear):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()


def _gathered(model: JoinedModel) -> int:
    """Bytes that FSDP holds beside a GPU's shard: what lies outside of layers, and two layers at a time."""
    layers = [*decoder_layers(model.language_model), *getattr(model, "cross_attention", ())]
    sizes = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers]
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    return whole - sum(sizes) + 2 * max(sizes)


def _divided(
    whole: MemoryPlan, cost: StepCost, stage: StageRecipe, num_gpus: int, gathered: int
) -> dict[str, MemoryPlan]:
    """The memory of one GPU: DDP holds all, and gradients once more in buckets; FSDP a part, and whole layers."""
    if stage.gradient_accumulation_steps > 1:  # gradients lie there while the next batch goes forward
        activations = cost.passing_bytes + cost.copied_bytes
    else:
        activations = max(cost.peak_bytes - whole.gradients, 0)
    if num_gpus == 1:
        return {"ddp": replace(whole, activations=activations)}
    parts = {name: math.ceil(getattr(whole, name) / num_gpus) for name in ("weights", "gradients", "optimiser")}
    return {
        "ddp": replace(whole, activations=activations, gathered=whole.gradients),
        "fsdp": replace(whole, **parts, activations=cost.passing_bytes, gathered=gathered),
    }


def _plan_features(network: Network, machine: Machine, reckoned: Reckoned, dtype: torch.dtype) -> FeaturePlan:
    number, flops = reckoned.total_images, network.vision_flops
    hours = None if number is None else number * flops / (machine.gpu.peak(dtype) * machine.mfu) / 3600
    return FeaturePlan(number, 2 * math.prod(network.feature_shape), flops, hours)
