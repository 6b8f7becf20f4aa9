"""What one step of a stage takes, worked out without doing it: operations and memory, on tensors that are shapes alone.

The network of `shapes.py` runs forward and backward under torch's FakeTensorMode, by its own code and in the arithmetic
of training. Every product is counted by torch's formulas, and every storage from the operation that makes it to the
moment that nothing holds it any more.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from agevlm.modeling.joined import JoinedModel
from agevlm.modeling.supervision import Head, token_log_probs
from agevlm.modeling.versions import checkpoint_activations
from agevlm.training.arithmetic import autocast
from agevlm.training.recipe import StageRecipe


@dataclass(frozen=True)
class StepShape:
    """The sizes of the batch that one process sees at a time.

    `num_images` pictures of `image_size` (height, width) pixels, `num_questions` rows of `text_len` tokens about each;
    of a row, `num_supervised` tokens are learned and `num_guided` positions are guided.
    """

    num_images: int
    num_questions: int
    text_len: int
    num_supervised: int
    num_guided: int
    image_size: tuple[int, int]

    @property
    def num_rows(self) -> int:
        """Rows of text."""
        return self.num_images * self.num_questions


@dataclass(frozen=True)
class StepCost:
    """Operations of the products of a forward and a backward pass, and bytes held at most beside what stays.

    What stays are weights and the optimiser's state. `peak_bytes` are all else, gradients included. `passing_bytes` are
    it without gradients: what is kept for the backward pass, and what is being worked on. `uncopied_bytes` are these
    without autocast's copies of weights.
    """

    flops: int
    peak_bytes: int
    passing_bytes: int
    uncopied_bytes: int


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _sdpa_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape))


_FORMULAS = {  # those of torch, and two fused kernels that it has none for
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


class _Watch(TorchDispatchMode):
    """Counts operations of products, and notes when each storage comes and goes.

    `copies` are those of parameters in another type. torch's FlopCounterMode is not used here: it keeps the graph of
    what is computed again going backward, and with it the memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self.flops = 0
        self.events: list[tuple[int, int]] = []  # storage, bytes that come or go
        self.copies: set[int] = set()
        self._sizes: list[int] = []
        self._numbers: dict[int, int] = {}
        self._own = {parameter.untyped_storage()._cdata for parameter in parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=made))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._own:
            self.copies.add(self.number(made))
        return made

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage, which was made in here."""
        return self._numbers[tensor.untyped_storage()._cdata]

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._numbers or key in self._own:
            return
        number = self._numbers[key] = len(self._sizes)
        self._sizes.append(storage.nbytes())
        self.events.append((number, self._sizes[number]))
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        number = self._numbers.pop(key)
        self.events.append((number, -self._sizes[number]))

    def peak(self, without: Set[int] = frozenset()) -> int:
        """The most bytes at a time, some storages aside."""
        now = most = 0
        for number, change in self.events:
            if number not in without:
                now += change
                most = max(most, now)
        return most


@dataclass(frozen=True)
class VisionCost:
    """What the frozen vision model makes of a picture, and takes for it: (C, h, w), operations, bytes at most."""

    features: tuple[int, int, int]
    flops: int
    peak_bytes: int


def vision_cost(model: JoinedModel, image_size: tuple[int, int], dtype: torch.dtype) -> VisionCost:
    """What a picture of `image_size` (height, width) pixels takes of a network on the meta device, which is used up."""
    with FakeTensorMode():
        materialise(model.requires_grad_(False).eval())
        with _Watch(model.parameters()) as watch, autocast(dtype):
            channels, height, width = model.vision_features(torch.empty(1, 3, *image_size)).shape[1:]
    return VisionCost((int(channels), int(height), int(width)), watch.flops, watch.peak())


def step_cost(
    model: JoinedModel, stage: StageRecipe, shape: StepShape, dtype: torch.dtype, features: tuple[int, int, int] | None
) -> StepCost:
    """What a step takes of a network on the meta device, frozen for a stage; the network is used up.

    `dtype` is that of products, as in training. `features` (C, h, w) are given of a picture in place of its pixels.
    """
    with FakeTensorMode():
        materialise(model)
        if stage.gradient_checkpointing:
            checkpoint_activations(model, True)
        model.train()
        inputs = _inputs(stage, shape, features)
        with _Watch(model.parameters()) as watch, _losses_of(model, shape):
            with autocast(dtype):
                outputs = model(**inputs, use_cache=False)
                loss = outputs.loss + _guidance(outputs)
            del outputs
            loss.backward()
        gradients = {watch.number(p.grad) for p in model.parameters() if p.grad is not None}
    return StepCost(watch.flops, watch.peak(), watch.peak(gradients), watch.peak(gradients | watch.copies))


def materialise(model: nn.Module) -> None:
    """Turn a network on the meta device, in place, into one of fake tensors on the CPU; what was shared stays shared.

    To be called within FakeTensorMode.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _inputs(stage: StageRecipe, shape: StepShape, features: tuple[int, int, int] | None) -> dict[str, Any]:
    rows, length = shape.num_rows, shape.text_len
    inputs: dict[str, Any] = {
        "input_ids": torch.zeros(rows, length, dtype=torch.long),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "labels": torch.zeros(rows, length, dtype=torch.long),
        "images_seen": torch.ones(rows, length, dtype=torch.long),
        "image_index": torch.zeros(rows, 1, dtype=torch.long),
        "rows_per_image": shape.num_questions,
    }
    if features is not None:
        inputs["image_features"] = torch.empty(shape.num_images, *features)
    else:
        inputs["pixel_values"] = torch.empty(shape.num_images, 3, *shape.image_size)
    if shape.num_guided and stage.guidance is not None and stage.guidance.weight:
        inputs["attention_rows"] = torch.zeros(rows, min(shape.num_guided, length), dtype=torch.long)
    return inputs


@contextmanager
def _losses_of(model: JoinedModel, shape: StepShape) -> Iterator[None]:
    """Let the model take the last tokens of each row for the supervised ones: labels have no values here."""

    def said(head: Head, hidden_RTW: Tensor, labels_RT: Tensor, *args: Any) -> dict[str, Tensor]:
        last = slice(-shape.num_supervised - 1, -1)
        hidden_SW = hidden_RTW[:, last].flatten(0, 1)
        log_probs_S = token_log_probs(head, hidden_SW, labels_RT[:, last].flatten())
        return {"loss": -log_probs_S.sum(), "label_log_probs": log_probs_S}

    model._said = said  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del model._said


def _guidance(outputs: Any) -> Tensor | float:
    """A stand-in for the guidance loss: it reads the asked rows, whose attention is what guidance costs."""
    weights = getattr(outputs, "row_weights", None)
    return 0.0 if weights is None else sum(layer.clamp(min=1e-6).log().sum() for layer in weights)


def optimiser_bytes(groups: list[dict[str, Any]]) -> int:
    """Bytes that the optimiser keeps, of groups as `parameter_groups` makes them: two numbers a weight, Muon one."""
    return sum(4 * math.prod(p.shape) * (1 if group["muon"] else 2) for group in groups for p in group["params"])
