"""The layers of a decoder in half of the calls of torch: where a model is small, a call costs as much as its work.

What is fused: norms of root mean squares, gated MLPs (ours and those of transformers that are written alike), the
self-attention of Llama and its way through the layers. A module is fused where that gives the same on a trial; all
others stay as they are. Parameters keep their names and shapes; those that are used together lie together in memory.
"""

# Shapes: W model width.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel, eager_attention_forward

from agevlm.modeling.versions import CACHE

Forward = Callable[..., Any]
_NEEDED = {"inputs_embeds", "position_ids"}


def fuse(model: nn.Module) -> int:
    """Let modules of a model in float32 be computed in fewer calls; how many there were.

    The weights may be moved, with `to`, before and not after; the model is for inference from then on.
    """
    found = 0
    for module in model.modules():
        fused = _fused(module)
        if fused is not None:
            module.forward = fused
            found += 1
    return found


@torch.no_grad()
def _fused(module: Any) -> Forward | None:
    """A module's forward in fewer calls; None for a module of another kind, or where the results are not the same."""
    weights = list(module.parameters())
    if not weights or any(weight.dtype != torch.float32 for weight in weights):
        return None
    if isinstance(module, LlamaAttention) and _projects(module, "q_proj", "k_proj", "v_proj", "o_proj"):
        return _same(module, _attention(module), *_attention_trial(module))
    if isinstance(module, LlamaModel):
        return _same(module, _decoder(module), **_decoder_trial(module))
    if _projects(module, "gate_proj", "up_proj", "down_proj"):
        return _same(module, _gated_mlp(module), _trial(module.gate_proj.weight))
    epsilon = module.eps if isinstance(module, nn.RMSNorm) else getattr(module, "variance_epsilon", None)
    if isinstance(epsilon, float) and len(weights) == 1:
        return _same(module, _norm(weights[0], epsilon), _trial(weights[0]))
    return None


def _same(module: nn.Module, fused: Forward, *trial: Any, **named: Any) -> Forward | None:
    both = module(*trial, **named), fused(*trial, **named)
    expected, found = (made if isinstance(made, Tensor) else made[0] for made in both)
    return fused if (expected - found).abs().max() <= 1e-5 * expected.abs().max() else None


def _projects(module: nn.Module, *names: str) -> bool:
    return all(type(getattr(module, name, None)) is nn.Linear for name in names)


def _trial(weight: Tensor) -> Tensor:
    """States (1, 3, W) of which a norm makes something else, row by row."""
    width = weight.shape[-1]
    return torch.linspace(-3, 3, 3 * width, device=weight.device).sin_().view(1, 3, width)


def _norm(weight_W: Tensor, epsilon: float) -> Forward:
    """By the length of states, which is the root of their mean square but for √W: hypot(length, √(W ε)) has both."""
    width = weight_W.numel()
    floor, scaled_W = torch.tensor(math.sqrt(width * epsilon), device=weight_W.device), weight_W * math.sqrt(width)

    def forward(hidden: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        return (hidden * torch.hypot(length, floor).reciprocal_()).mul_(scaled_W)

    return forward


def _gated_mlp(module: Any) -> Forward:
    """Both projections of a token at once. One that is gated otherwise than by SiLU fails the trial."""
    weight, bias = _together([module.gate_proj, module.up_proj])
    down = module.down_proj

    def forward(hidden: Tensor) -> Tensor:
        gate, up = F.linear(hidden, weight, bias).chunk(2, dim=-1)
        return F.linear(F.silu(gate).mul_(up), down.weight, down.bias)

    return forward


def _attention(module: Any) -> Forward:
    """Queries, keys and values at once, queries and keys turned at once; the kernel is the configured one."""
    weight, bias = _together([module.q_proj, module.k_proj, module.v_proj])
    num_queries, num_keys = (part.out_features // module.head_dim for part in (module.q_proj, module.k_proj))
    num_turned, out = num_queries + num_keys, module.o_proj

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = hidden_states.shape
        projected = F.linear(hidden_states, weight, bias).view(batch, length, -1, module.head_dim).transpose(1, 2)
        turned, values = projected[:, :num_turned], projected[:, num_turned:]
        cos, sin = (part[:, None] for part in position_embeddings)
        low, high = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat((-high, low), dim=-1).mul_(sin)
        queries, keys = turned[:, :num_queries], turned[:, num_queries:]
        cache = kwargs.pop(CACHE, None)
        if cache is not None:
            keys, values = cache.update(keys, values, module.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
        found, weights = attend(
            module, queries, keys, values, attention_mask, dropout=0.0, scaling=module.scaling, **kwargs
        )
        return F.linear(found.reshape(batch, length, -1), out.weight, out.bias), weights

    return forward


def _attention_trial(module: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    hidden = _trial(module.q_proj.weight)
    half = torch.outer(torch.arange(3), torch.linspace(1, 0.1, module.head_dim // 2)).to(hidden.device)
    angles = torch.cat((half, half), dim=-1)[None]
    return hidden, (angles.cos(), angles.sin())


def _decoder(module: Any) -> Forward:
    """Straight through the layers where no mask is needed and nothing is asked but the last states."""
    whole = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args or not _needs_no_mask(module, kwargs):
            return whole(*args, **kwargs)
        hidden = kwargs.pop("inputs_embeds")
        places = module.rotary_emb(hidden, position_ids=kwargs["position_ids"])
        for layer in module.layers:
            hidden = layer(hidden, position_embeddings=places, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=module.norm(hidden), **{CACHE: kwargs.get(CACHE)})

    return forward


def _needs_no_mask(module: Any, given: Mapping[str, Any]) -> bool:
    """Whether rows without padding are read from their beginning on, or by one token more, by a causal kernel."""
    names = {name for name, value in given.items() if value is not None}
    if not _NEEDED <= names <= _NEEDED | {CACHE, "use_cache", "image_context"}:
        return False
    cache = given.get(CACHE)
    if module.config._attn_implementation != "sdpa" or (given.get("use_cache") and cache is None):
        return False
    return given["inputs_embeds"].shape[1] == 1 or cache is None or cache.get_seq_length() == 0


def _decoder_trial(module: Any) -> dict[str, Any]:
    hidden = _trial(module.embed_tokens.weight)
    return {"inputs_embeds": hidden, "position_ids": torch.arange(3, device=hidden.device)[None], "use_cache": False}


def _together(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of projections of the same states as one; each part's own becomes a view of it."""
    return _laid_together([part.weight for part in parts]), (
        None if parts[0].bias is None else _laid_together([part.bias for part in parts])
    )


def _laid_together(tensors: Sequence[Any]) -> Tensor:
    whole = torch.cat([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, whole.split([len(tensor) for tensor in tensors]), strict=True):
        tensor.data = view
    return whole
