"""Rows of attention weights without eager attention: the fused kernel runs, only asked rows are computed in the open.

`agevlm_rows` is an attention function of transformers' `AttentionInterface`. It gives what `sdpa` gives, and of the
layers that a `RowReader` watches it keeps softmax(query · key) of the K asked positions: K × N numbers for each head,
where eager attention keeps N × N. Masks, sliding windows, grouped heads, scaling and soft-capping are the model's own.
A `Steering` in force changes the logits of some rows, and what these find, in the same way and at the same cost.

Knows modules and tensors, and no family, picture or text.
"""

# Shapes: R rows of text, T queries, N keys, K asked positions, H heads, G key heads, D head width.

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IMPLEMENTATION = "agevlm_rows"
_CHUNK = 256  # queries at a time where the fused kernel cannot run
_UNREADABLE = ("position_bias", "s_aux")  # arguments that change the weights in ways that are not followed here


class AttentionUnreadableError(ValueError):
    """The attention of a model cannot be read; occlusion maps still can be made."""


@dataclass
class RowReader:
    """Keeps the weights of `positions` (R, K) in the attention modules of `layer_of`, by the number of their layer.

    Of several calls the first counts: a generation's first is that over the prompt. A position of -1 is a filler: its
    row is zeros. `weights[layer]` is (R, H, K, N) in float32. `queries` and `keys`
    are what the kernel got, kept only where `keep_states` asks for them: (R, H, T, D) and (R, G, N, D).
    """

    layer_of: Mapping[nn.Module, int]
    positions: Tensor
    keep_states: bool = False
    weights: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)

    def read(self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, **settings: Any) -> None:
        """Keep the asked rows of a call of an attention function, if its module is watched and it is the first."""
        layer = self.layer_of.get(module)
        if layer is None or layer in self.weights:
            return
        self.weights[layer] = rows_of(query, key, mask, self.positions, **settings)
        if self.keep_states:
            self.queries[layer], self.keys[layer] = query, key


@dataclass
class Steering:
    """Changes where some queries of the attention modules in `layer_of` look.

    `change` gets logits (R, H, K, N), soft-capped and not yet masked, and gives others. In the first call of a layer,
    that over the prompt, they are those of `positions` (R, K), which may repeat one; in later calls, in which an answer
    is being written, those of all queries. `steered` are the layers that were met. A `RowReader` in force keeps the
    weights of these layers as they are without the change.
    """

    layer_of: Mapping[nn.Module, int]
    positions: Tensor
    change: Callable[[Tensor], Tensor]
    steered: set[int] = field(default_factory=set)

    def changed(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        attended_RTHD: Tensor,
        **settings: Any,
    ) -> Tensor:
        """What all queries of a call found (R, T, H, D), with the steered ones' in place."""
        layer = self.layer_of.get(module)
        if layer is None:
            return attended_RTHD
        positions_RK = self.positions.to(query.device)
        if layer in self.steered:
            positions_RK = torch.arange(query.shape[2], device=query.device).expand(len(query), -1)
        self.steered.add(layer)
        weights_RHKN = rows_of(query, key, mask, positions_RK, change=self.change, **settings)
        found_RKHD = (weights_RHKN.to(value.dtype) @ _for_each_head(value, query)).transpose(1, 2)
        index_RKHD = positions_RK[:, :, None, None].expand_as(found_RKHD)
        return attended_RTHD.scatter(1, index_RKHD, found_RKHD.to(attended_RTHD.dtype))


_READER: ContextVar[RowReader | None] = ContextVar("agevlm_row_reader", default=None)
_STEERING: ContextVar[Steering | None] = ContextVar("agevlm_steering", default=None)
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def reading(reader: RowReader, holder: Any) -> Iterator[RowReader]:
    """Run the attention that the configuration of `holder` itself names (not its parts') through `agevlm_rows`.

    The configuration is changed, and put back at the end, whatever happens. Threads read one after another: one that
    puts it back would leave another, which reads the same model, without rows.
    """
    with _holding(_READER, reader, holder):
        yield reader


@contextmanager
def steering(steering: Steering, holder: Any) -> Iterator[Steering]:
    """As `reading`, for a steering; the two go together."""
    with _holding(_STEERING, steering, holder):
        yield steering


@contextmanager
def unsteered() -> Iterator[None]:
    """Let no steering count for a while: for a pass about something else within a generation."""
    token = _STEERING.set(None)
    try:
        yield
    finally:
        _STEERING.reset(token)


@contextmanager
def _holding(variable: ContextVar[Any], value: Any, holder: Any) -> Iterator[None]:
    _register()
    with _ONE_AT_A_TIME:
        before, token = holder.config._attn_implementation, variable.set(value)
        try:
            holder.set_attn_implementation({"": IMPLEMENTATION})
            yield
        finally:
            variable.reset(token)
            holder.set_attn_implementation({"": before})


def rows_of(
    query_RHTD: Tensor,
    key_RGND: Tensor,
    mask: Tensor | None,
    positions_RK: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool = False,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Softmax weights (R, H, K, N) in float32 of the queries at `positions_RK`; zeros where the position is -1.

    `mask` broadcasts to (R, H, T, N): True where a key may be seen, or what is added to the logits. `is_causal` counts
    where there is no mask: a query sees the keys up to its own number. `change` changes the logits before they are
    masked.
    """
    positions_RK = positions_RK.to(query_RHTD.device)
    index_R1K1 = positions_RK.clamp(min=0)[:, None, :, None]
    asked_RHKD = query_RHTD.take_along_dim(index_R1K1, dim=2).float()
    logits_RHKN = _logits(asked_RHKD, key_RGND.float(), scaling, softcap)
    if change is not None:
        logits_RHKN = change(logits_RHKN)
    if mask is not None:
        mask_RHTN = mask[..., : key_RGND.shape[2]].expand(len(query_RHTD), -1, -1, -1)
        logits_RHKN = _masked(logits_RHKN, mask_RHTN.take_along_dim(index_R1K1, dim=2))
    elif is_causal:
        seen_R1KN = torch.arange(key_RGND.shape[2], device=key_RGND.device) <= index_R1K1
        logits_RHKN = _masked(logits_RHKN, seen_R1KN)
    return logits_RHKN.softmax(-1).masked_fill(positions_RK[:, None, :, None] < 0, 0.0)


def _logits(query_RHTD: Tensor, key_RGND: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """Logits (R, H, T, N): head h looks at the keys of group h // (H / G)."""
    scaling = query_RHTD.shape[-1] ** -0.5 if scaling is None else scaling
    grouped_RGXD = query_RHTD.reshape(len(query_RHTD), key_RGND.shape[1], -1, query_RHTD.shape[-1])
    logits = (grouped_RGXD * scaling) @ key_RGND.transpose(2, 3)
    logits_RHTN = logits.view(*query_RHTD.shape[:3], key_RGND.shape[2])
    return logits_RHTN if softcap is None else (logits_RHTN / softcap).tanh() * softcap


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits + mask.to(logits.dtype)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `sdpa` gives, called as transformers' attention functions are; a reader in force gets its rows.

    Soft-capped attention, which the fused kernel lacks, runs over a few queries at a time.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    settings: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "is_causal": causal}
    reader, steered = _READER.get(), _STEERING.get()
    watched = [one.layer_of for one in (reader, steered) if one is not None]
    if any(module in layers for layers in watched) and any(kwargs.get(name) is not None for name in _UNREADABLE):
        raise AttentionUnreadableError(f"{type(module).__name__} biases its attention, which cannot be read")
    if reader is not None:
        reader.read(module, query, key, attention_mask, **settings)
    if softcap is not None:
        attended = _attend_in_chunks(query, key, value, attention_mask, settings)
    else:
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if steered is not None:
        attended = steered.changed(module, query, key, value, attention_mask, attended, **settings)
    return attended, None


def _for_each_head(value_RGND: Tensor, query_RHTD: Tensor) -> Tensor:
    """The values (R, H, N, D) of every head."""
    return value_RGND.repeat_interleave(query_RHTD.shape[1] // value_RGND.shape[1], dim=1)


def _attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: Mapping[str, Any]
) -> Tensor:
    """Attention in the open, `_CHUNK` queries at a time: (R, T, H, D)."""
    chunks = []
    value_RHND = _for_each_head(value, query)
    for positions_K in torch.arange(query.shape[2], device=query.device).split(_CHUNK):
        weights = rows_of(query, key, mask, positions_K.expand(len(query), -1), **settings)
        chunks.append(weights.to(value.dtype) @ value_RHND)
    return torch.cat(chunks, dim=2).transpose(1, 2)


def _register() -> None:
    """Make the function known to transformers, with the mask that `sdpa` takes; twice does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
