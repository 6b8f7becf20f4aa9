"""Answers with compiled layers: what Python spends on each token goes away. Training compiles in a way of its own.

A layer is compiled once for all layers of its kind, so it waits seconds and not minutes. Two things stand in the way of
that, and are taken out of it while an answer is made: a layer that asks a cache by its own number would be compiled
number by number, so it is given its own part of the cache; and products with a single row go through general matrix
kernels, in bfloat16 far below the speed of memory, so they are written as sums, which the compiler makes loops of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from transformers.cache_utils import StaticLayer

from .interleaving import decoder_layers
from .versions import CACHE

MAX_GRAPHS = 64  # of one layer's code: kinds of layers, dtypes, one row of text and several


def check_compiler() -> None:
    """Raise ValueError where torch.compile would find no C++ compiler."""
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(
            "compiling wants a C++ compiler, and none was found: install g++ or clang, or set compile=false "
            "(compiled=False of generate)"
        ) from error


@contextmanager
def compiled_decoding(model: Any) -> Iterator[None]:
    """In here the decoder's and the cross-attention's layers run compiled where they are given a single token.

    Longer passes run as they are written. Wants a static cache with full attention in every layer, else ValueError.
    Layers whose `forward` has been replaced already are left alone. On a CPU, no C++ compiler is a ValueError.
    """
    if model.device.type == "cpu":
        check_compiler()
    decoder = decoder_layers(model.language_model)
    settings = torch._dynamo.config.patch(  # a layer's number must not be part of its graph, numbers of a config must
        allow_unspec_int_on_nn_module=True, specialize_float=True, recompile_limit=MAX_GRAPHS
    )
    with ExitStack() as stack:
        stack.enter_context(settings)
        for part in (model.language_model, model.cross_attention):
            stack.enter_context(_single_rows(part))
        for number, layer in enumerate(decoder):
            stack.enter_context(_replaced(layer, number))
        for layer in model.cross_attention:
            stack.enter_context(_replaced(layer))
        yield


class _PartOfCache:
    """What a layer of a cache keeps, asked as the whole cache is asked."""

    def __init__(self, layer: StaticLayer) -> None:
        self.layer = layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values of the layer, the new ones among them."""
        return self.layer.update(key_states, value_states)


class _SingleRowLinear(nn.Linear):
    """A linear layer that knows when it is given one row."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if input.numel() != self.in_features:
            return super().forward(input)
        output = torch.mv(self.weight, input.flatten())
        output = output if self.bias is None else output + self.bias
        return output.view(*input.shape[:-1], -1)


@contextmanager
def _single_rows(part: nn.Module) -> Iterator[None]:
    """The plain linear layers of a module as `_SingleRowLinear` for a while."""
    linear = [module for module in part.modules() if type(module) is nn.Linear]
    for module in linear:
        module.__class__ = _SingleRowLinear
    try:
        yield
    finally:
        for module in linear:
            module.__class__ = nn.Linear


@contextmanager
def _replaced(layer: nn.Module, number: int | None = None) -> Iterator[None]:
    """A layer's forward compiled for single tokens; `number` is that of a decoder layer in the cache."""
    if "forward" in vars(layer):
        yield
        return
    plain = type(layer).forward
    compiled = _compiled(plain)

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden_states.shape[1] != 1:
            return plain(layer, hidden_states, *args, **kwargs)
        if number is not None:
            kwargs[CACHE] = _PartOfCache(_layer_of(kwargs.get(CACHE), number))
        return compiled(layer, hidden_states, *args, **kwargs)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@lru_cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The code of a kind of layers, compiled for every length of a cache."""
    return torch.compile(forward, dynamic=True)


def _layer_of(cache: Any, number: int) -> StaticLayer:
    layers = getattr(cache, "layers", ())
    layer = layers[number] if number < len(layers) else None
    if type(layer) is not StaticLayer:
        raise ValueError(
            f"compiled answers want full attention and a static cache in every layer, and layer {number} has "
            f"{type(layer).__name__}: generate without compiled=True"
        )
    return layer
