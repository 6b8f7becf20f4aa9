"""What a step of a stage costs, on batches of its own data and through the trainer that trains it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from agevlm.data.images import open_image
from agevlm.data.schema import Sample
from agevlm.modeling.versions import checkpoint_activations
from agevlm.training.dataset import StageDataset
from agevlm.training.recipe import StageRecipe
from agevlm.training.stages import freeze_for_stage, merge_adapters
from agevlm.training.trainer import StageTrainer, training_arguments

Item = tuple[Sample, NDArray[np.float16] | None]


def seconds(work: Callable[[], Any]) -> float:
    """The wall-clock time of one call, the accelerator's part included."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the products in a piece of work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def synchronise() -> None:
    """Wait for what an accelerator still has to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def draw_batches(data: StageDataset, num_batches: int) -> list[list[Item]]:
    """The items of the first batches of a stage, as training draws them."""
    size = data.stage.images_per_batch
    return [[data[batch * size + item] for item in range(size)] for batch in range(num_batches)]


def pixels_of(items: Sequence[Item], processor: Any) -> Tensor:
    """The pictures (I, 3, height, width) of items, as the vision model takes them."""
    pictures = [open_image(image) for sample, _ in items for image in sample.images]
    return processor.image_processor(pictures, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def with_features(items: Sequence[Item], model: Any, processor: Any) -> list[Item]:
    """The same items, one picture or more in each, with feature maps of the pictures as a cache would give them."""
    device = next(model.vision_model.parameters()).device
    features = model.vision_features(pixels_of(items, processor).to(device)).to("cpu", torch.float16)
    parts = features.split([len(sample.images) for sample, _ in items])
    return [(sample, part.numpy()) for (sample, _), part in zip(items, parts, strict=True)]


@contextmanager
def prepared(model: Any, stage: StageRecipe) -> Iterator[dict[str, dict[str, int]]]:
    """A model ready for a stage, and the counts of `freeze_for_stage`; adapters are merged afterwards."""
    counts = freeze_for_stage(model, stage)
    if stage.gradient_checkpointing:
        checkpoint_activations(model, True)
    try:
        yield counts
    finally:
        if stage.gradient_checkpointing:
            checkpoint_activations(model, False)
        if stage.lora:
            merge_adapters(model)


def step_times(
    model: nn.Module, stage: StageRecipe, batches: Sequence[dict[str, Any]], dtype: torch.dtype
) -> list[tuple[float, float]]:
    """Train on collated batches, one step each, and give (wall, processor) seconds of each step but the first.

    A step is that of `StageTrainer`: forward, losses, backward, clipping and update. The model must be prepared for the
    stage; its weights change.
    """
    ends: list[tuple[float, float]] = []

    def on_step(record: dict[str, Any]) -> None:
        synchronise()
        ends.append((time.perf_counter(), time.process_time()))

    # an item is a batch
    changes = {"steps": len(batches), "images_per_batch": 1, "gradient_accumulation_steps": 1}
    with tempfile.TemporaryDirectory() as directory:
        arguments = training_arguments(
            stage.model_copy(update=changes),
            Path(directory),
            seed=0,
            dtype=dtype,
            num_workers=0,
            save_steps=len(batches),
        )
        StageTrainer(
            model=model,
            args=replace(arguments, save_strategy="no"),
            train_dataset=list(batches),
            data_collator=lambda items: dict(items[0]),
            stage=stage,
            on_step=on_step,
            files={},
        ).train()
    return [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in pairwise(ends)]


def step_work(model: nn.Module, stage: StageRecipe, batch: dict[str, Any], dtype: torch.dtype) -> dict[str, int | None]:
    """What one step takes beside time: `flops`, `activation_bytes` and, where there is CUDA, `peak_bytes`.

    `flops` are those of its products, forward and backward; attention counts where it is eager. `activation_bytes` are
    what the forward pass keeps for the backward pass, parameters aside and autocast's copies of them included: the same
    on every machine. `peak_bytes` are what the device held at most beyond what lay there before; None without CUDA.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved.detach()

    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with saved_tensors_hooks(pack, lambda saved: saved):
        num_flops = flops(lambda: step_times(model, stage, [batch], dtype))
    peak = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else None
    return {"flops": num_flops, "activation_bytes": sum(kept.values()), "peak_bytes": peak}
