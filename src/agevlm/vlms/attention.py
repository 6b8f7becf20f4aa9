"""Rows of attention weights without eager attention: the fused kernel runs, only asked rows are computed in the open.

`agevlm_rows` is an attention function of transformers' `AttentionInterface`. It gives what `sdpa` gives, and of the
layers that a `RowReader` watches it keeps softmax(query · key) of the K asked positions: K × N numbers for each head,
where eager attention keeps N × N. Masks, sliding windows, grouped heads, scaling and soft-capping are the model's own.

Knows modules and tensors, and no family, picture or text.
"""

# Shapes: R rows of text, T queries, N keys, K asked positions, H heads, G key heads, D head width.

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
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


_READER: ContextVar[RowReader | None] = ContextVar("agevlm_row_reader", default=None)
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def reading(reader: RowReader, holder: Any) -> Iterator[RowReader]:
    """Run the attention that the configuration of `holder` itself names (not its parts') through `agevlm_rows`.

    The configuration is changed, and put back at the end, whatever happens. Threads read one after another: one that
    puts it back would leave another, which reads the same model, without rows.
    """
    _register()
    with _ONE_AT_A_TIME:
        before, token = holder.config._attn_implementation, _READER.set(reader)
        try:
            holder.set_attn_implementation({"": IMPLEMENTATION})
            yield reader
        finally:
            _READER.reset(token)
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
) -> Tensor:
    """Softmax weights (R, H, K, N) in float32 of the queries at `positions_RK`; zeros where the position is -1.

    `mask` broadcasts to (R, H, T, N): True where a key may be seen, or what is added to the logits. `is_causal` counts
    where there is no mask: a query sees the keys up to its own number.
    """
    positions_RK = positions_RK.to(query_RHTD.device)
    index_R1K1 = positions_RK.clamp(min=0)[:, None, :, None]
    asked_RHKD = query_RHTD.take_along_dim(index_R1K1, dim=2).float()
    logits_RHKN = _logits(asked_RHKD, key_RGND.float(), scaling, softcap)
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
    reader = _READER.get()
    if reader is not None:
        if module in reader.layer_of and any(kwargs.get(name) is not None for name in _UNREADABLE):
            raise AttentionUnreadableError(f"{type(module).__name__} biases its attention, which cannot be read")
        reader.read(module, query, key, attention_mask, scaling=scaling, softcap=softcap, is_causal=causal)
    if softcap is not None:
        return _attend_in_chunks(query, key, value, attention_mask, scaling, softcap, causal), None
    attended, _ = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )
    return attended, None


def _attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float, causal: bool
) -> Tensor:
    """Attention in the open, `_CHUNK` queries at a time: (R, T, H, D)."""
    chunks = []
    value_RHND = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    for positions_K in torch.arange(query.shape[2], device=query.device).split(_CHUNK):
        positions_RK = positions_K.expand(len(query), -1)
        weights = rows_of(query, key, mask, positions_RK, scaling=scaling, softcap=softcap, is_causal=causal)
        chunks.append(weights.to(value.dtype) @ value_RHND)
    return torch.cat(chunks, dim=2).transpose(1, 2)


def _register() -> None:
    """Make the function known to transformers, with the mask that `sdpa` takes; twice does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
