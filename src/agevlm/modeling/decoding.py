"""Answers token by token in one compiled graph: what Python spends on each token goes away.

Training compiles in a way of its own. Four things make the graph fast and soon ready, and hold while an answer is made:

- Each kind of layer is a region of the graph that is compiled once and not once a layer.
- Products with a single row go through general matrix kernels, in bfloat16 far below the speed of memory. They are
  written as sums, which the compiler makes loops of; the head, much the largest, is one call of a matrix-vector kernel.
- So is attention of a single token, whose kernel is made for many: as sums, and without copies of shared keys.
- torch checks once an answer, and not once a token, that the graph still fits.
"""

# Letters: B rows, H heads, G key/value heads, S keys, D head width.

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, wraps
from types import MethodType
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .interleaving import decoder_layers
from .versions import CACHE

MAX_GRAPHS = 64  # of a kind of model: dtypes, lengths of the cache, numbers of rows
LENGTH_STEP = 256  # tokens by which a cache grows: every length is a graph of its own
LARGE = 16_384  # features given out from which on a call costs a product nothing
ATTENTION = "sums_for_one_token"  # its name among the kernels


def check_compiler() -> None:
    """Raise ValueError where torch.compile would find no C++ compiler."""
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(
            "compiling wants a C++ compiler, and none was found: install g++ or clang, or set compile=false "
            "(compiled=False of generate)"
        ) from error


def cache_length(num_tokens: int) -> int:
    """The length of a cache for so many tokens."""
    return -(-num_tokens // LENGTH_STEP) * LENGTH_STEP


@contextmanager
def compiled_decoding(model: Any) -> Iterator[None]:
    """In here a forward pass of a single token a row is one compiled graph, once for each length of a cache.

    Longer passes run as they are written. Wants a static cache with full attention in every layer, else ValueError. On
    a CPU, no C++ compiler is a ValueError. Not for several threads at once.
    """
    if model.device.type == "cpu":
        check_compiler()
    settings = torch._dynamo.config.patch(specialize_float=True, recompile_limit=MAX_GRAPHS)
    with ExitStack() as stack:
        stack.enter_context(settings)
        for part in (model.language_model, model.cross_attention):
            stack.enter_context(_single_rows(part))
        for config in (model.config, model.language_model.config):
            stack.enter_context(_single_tokens(config))
        for layer in (*decoder_layers(model.language_model), *model.cross_attention):
            if "forward" not in vars(layer):  # one that has been replaced already stays as it is
                stack.enter_context(_replaced(layer, MethodType(_region(type(layer).forward), layer)))
        stack.enter_context(_replaced(model, _in_one_graph(model)))
        yield


@torch.library.custom_op("agevlm::large_product", mutates_args=())
def _large_product(matrix: Tensor, row: Tensor) -> Tensor:
    return torch.mv(matrix, row)


@_large_product.register_fake
def _(matrix: Tensor, row: Tensor) -> Tensor:
    return row.new_empty(matrix.shape[0])


class _SingleRowLinear(nn.Linear):
    """A linear layer that knows when it is given one row."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if input.numel() != self.in_features:
            return super().forward(input)
        product = _large_product if self.out_features >= LARGE else torch.mv
        output = product(self.weight, input.flatten())
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


def _single_token_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one token a row (B, H, 1, D) written as sums, (B, 1, H, D); of more tokens as sdpa."""
    batch, heads, length, width = query.shape
    if length != 1 or kwargs.get("position_bias") is not None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = key.shape[1]
    query_BGh1D = query.view(batch, groups, heads // groups, 1, width)
    scores_BGhS = (query_BGh1D.float() * key[:, :, None].float()).sum(-1) * (
        width**-0.5 if scaling is None else scaling
    )
    if attention_mask is not None:  # (B, 1, 1, S), True where a key is seen or what is added to its score
        mask = attention_mask[..., : key.shape[2]]
        is_seen = mask.dtype == torch.bool
        scores_BGhS = scores_BGhS.masked_fill(~mask, -torch.inf) if is_seen else scores_BGhS + mask
    found_BGhD = (scores_BGhS.softmax(-1)[..., None] * value[:, :, None].float()).sum(-2)
    return found_BGhD.to(query.dtype).view(batch, 1, heads, width), None


AttentionInterface.register(ATTENTION, _single_token_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def _single_tokens(config: Any) -> Iterator[None]:
    """A model with this configuration attends by `_single_token_attention` for a while, if it does so by sdpa."""
    kernel = config._attn_implementation
    if kernel == "sdpa":
        config._attn_implementation = {"": ATTENTION}  # its own, not that of its parts
    try:
        yield
    finally:
        config._attn_implementation = {"": kernel}


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module with another forward for a while."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _in_one_graph(model: Any) -> Callable[..., Any]:
    """The model's forward, compiled for single tokens."""
    plain = type(model).forward
    compiled, checked = _compiled(plain), False

    @wraps(plain)  # generate looks at the names of what it takes
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        given = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        if given is None or given.shape[1] != 1:
            return plain(model, *args, **kwargs)
        if checked:  # in an answer nothing changes that the graph hangs on
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                return compiled(model, *args, **kwargs)
        _check_cache(kwargs.get(CACHE))
        checked = True
        return compiled(model, *args, **kwargs)

    return forward


@lru_cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, dynamic=False)


@lru_cache
def _region(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's code as a part of graphs that comes again."""
    region: Callable[..., Any] = torch.compiler.nested_compile_region(forward)
    return region


def _check_cache(cache: Any) -> None:
    """A window of text keeps numbers of its own from token to token, which the graph would hang on."""
    for number, layer in enumerate(getattr(cache, "layers", None) or [None]):
        if type(layer) is not StaticLayer:
            raise ValueError(
                f"compiled answers want full attention and a static cache in every layer, and layer {number} has "
                f"{type(layer).__name__}: generate without compiled=True"
            )
