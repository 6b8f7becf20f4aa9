"""Gated cross-attention from text to images, and the image memory: keys and values computed once for each image.

Knows neither the decoder nor which text sees which image: `interleaving.py` does.

Letters: B batch, T text tokens, K asked text tokens, I images, N image tokens of an image, S its keys (N, and one more
with the null token), H heads, G key/value heads, D head width, W model width, P numbers in a place code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_agevlm import AgeVlmConfig
from .vision import POSITION_CODE_SIZE


@dataclass(frozen=True)
class ImageMemory:
    """What the cross-attention layers keep of images, for any number of questions about them.

    `keys` and `values` hold one tensor (num_images, num_key_value_heads, S, head_dim) for each cross-attention layer;
    `grid` is (height, width) of the image tokens. With `null_token`, S is one more than the grid's cells and the last
    key and value are the null token's. Made by `encode_images`; stale once the weights change.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    grid: tuple[int, int]
    null_token: bool = False

    def __len__(self) -> int:
        return self.keys[0].shape[0]

    @property
    def device(self) -> torch.device:
        """Where the keys and values are."""
        return self.keys[0].device

    def select(self, indices: Tensor | Sequence[int] | slice) -> ImageMemory:
        """The memory of the images at `indices`, in that order, repeats allowed."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, dtype=torch.long, device=self.device)
        return replace(
            self, keys=tuple(key[indices] for key in self.keys), values=tuple(value[indices] for value in self.values)
        )

    def to(self, *args: Any, **kwargs: Any) -> ImageMemory:
        """The memory on another device or in another dtype; arguments as for `Tensor.to`."""
        return replace(
            self,
            keys=tuple(key.to(*args, **kwargs) for key in self.keys),
            values=tuple(value.to(*args, **kwargs) for value in self.values),
        )

    @classmethod
    def cat(cls, memories: Sequence[ImageMemory]) -> ImageMemory:
        """One memory of all images, in order. ValueError where grids, null tokens or depths differ, or for none."""
        shapes = {(memory.grid, memory.null_token, len(memory.keys)) for memory in memories}
        if len(shapes) != 1:
            raise ValueError(
                f"only memories of one model and grid can be joined, got (grid, null token, layers) {shapes}"
            )
        if len(memories) == 1:
            return memories[0]
        return replace(
            memories[0],
            keys=tuple(torch.cat(layer) for layer in zip(*(memory.keys for memory in memories), strict=True)),
            values=tuple(torch.cat(layer) for layer in zip(*(memory.values for memory in memories), strict=True)),
        )


def attention_weights(
    query_BHTD: Tensor, key_BGSD: Tensor, mask_B1TS: Tensor | None = None, scaling: float = 1.0
) -> Tensor:
    """Softmax weights (B, H, T, S) in float32, computed explicitly. `mask` is True where a key may be seen.

    Keys times queries and not queries times keys: the gradient of the keys then has the layout of the keys, and the
    kernel's is added to it without a copy.
    """
    batch, heads, length, width = query_BHTD.shape
    groups, num_keys = key_BGSD.shape[1:3]
    with torch.autocast(query_BHTD.device.type, enabled=False):
        query = query_BHTD.float().reshape(batch, groups, heads // groups * length, width)
        scores = (key_BGSD.float() @ (query * scaling).transpose(2, 3)).transpose(2, 3)
    scores = scores.reshape(batch, heads, length, num_keys)
    if mask_B1TS is not None:
        scores = scores.masked_fill(~mask_B1TS, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in the open, called as transformers' attention functions are; (B, T, H, D) and float32 weights."""
    weights_BHTS = attention_weights(query, key, attention_mask, scaling)
    batch, heads, length, num_keys = weights_BHTS.shape
    groups = value.shape[1]
    attended = weights_BHTS.to(value.dtype).view(batch, groups, heads // groups * length, num_keys) @ value
    return attended.view(batch, heads, length, -1).transpose(1, 2), weights_BHTS


def take_rows(states_BTX: Tensor, rows_BK: Tensor) -> Tensor:
    """Rows of a tensor (B, T, …) by their numbers (B, K), as (B, K, …): whole rows laid end to end, no slow gather."""
    start_B1 = states_BTX.shape[1] * torch.arange(len(rows_BK), device=rows_BK.device)[:, None]
    return states_BTX.flatten(0, 1).index_select(0, (start_B1 + rows_BK).flatten()).unflatten(0, rows_BK.shape)


class RMSNorm(nn.RMSNorm):
    """torch's, but the weight follows the dtype of what it norms, which autocast may have changed."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Normed over the last dimension."""
        return F.rms_norm(hidden, self.normalized_shape, self.weight.to(hidden.dtype), self.eps)


class CrossAttention(nn.Module):
    """Grouped-query attention from text to image tokens, with normalised queries and keys, never causal.

    The code of each token's place is added to the values (and to the keys, if so configured) by a learned linear map:
    without it attention passes on what it finds, and never where.
    """

    is_causal = False

    def __init__(self, config: AgeVlmConfig):
        super().__init__()
        width, self.head_dim = config.text_config.hidden_size, config.cross_attention_head_dim
        self.config = config
        self.num_heads, self.num_groups = config.cross_attention_heads, config.cross_attention_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_groups  # transformers' name: queries for each key
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.num_groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.num_groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        if config.image_positions != "none":
            self.value_position_proj = nn.Linear(POSITION_CODE_SIZE, self.num_groups * self.head_dim, bias=False)
        if config.image_positions == "keys_and_values":
            self.key_position_proj = nn.Linear(POSITION_CODE_SIZE, self.num_groups * self.head_dim, bias=False)
        if config.null_token:
            self.null_key = nn.Parameter(torch.zeros(self.num_groups, self.head_dim))
            self.null_value = nn.Parameter(torch.zeros(self.num_groups, self.head_dim))

    def encode(self, tokens_INW: Tensor, positions_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (I, G, S, D) of image tokens, the null token's last."""
        keys, values = self.k_proj(tokens_INW), self.v_proj(tokens_INW)
        if self.config.image_positions != "none":
            values = values + self.value_position_proj(positions_NP)
        if self.config.image_positions == "keys_and_values":
            keys = keys + self.key_position_proj(positions_NP)
        key_IGSD, value_IGSD = self._split(keys), self._split(values)
        if self.config.null_token:
            key_IGSD = self._append(key_IGSD, self.null_key)
            value_IGSD = self._append(value_IGSD, self.null_value)
        return self.k_norm(key_IGSD).to(value_IGSD.dtype), value_IGSD

    def forward(
        self,
        hidden_BTW: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask_B1TS: Tensor | None = None,
        asked_BK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the text finds (B, T, W), and the weights (B, H, K, S) of the asked tokens, if any are asked for.

        The attention itself runs on the configured kernel. The asked rows are taken from the eager weights;
        beside any other kernel they, and only they, are computed in the open.
        """
        batch, length = hidden_BTW.shape[:2]
        query_BTHD = self.q_norm(self.q_proj(hidden_BTW).view(batch, length, self.num_heads, self.head_dim))
        query_BTHD = query_BTHD.to(key_BGSD.dtype)
        kernel = self._implementation(mask_B1TS)
        asked_BHKS = None
        if asked_BK is not None and kernel != "eager":  # first, so that their keys' gradient is added to the kernel's
            asked_BHKS = self._weights(query_BTHD, key_BGSD, mask_B1TS, asked_BK)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention)
        attended_BTHD, weights_BHTS = attend(
            self, query_BTHD.transpose(1, 2), key_BGSD, value_BGSD, mask_B1TS, scaling=self.scaling, is_causal=False
        )
        if asked_BK is not None and kernel == "eager":
            asked_BHK = asked_BK[:, None].expand(-1, self.num_heads, -1)
            asked_BHKS = take_rows(weights_BHTS.flatten(0, 1), asked_BHK.flatten(0, 1)).unflatten(0, (batch, -1))
        return self.o_proj(attended_BTHD.reshape(batch, length, -1)), asked_BHKS

    def _weights(self, query_BTHD: Tensor, key: Tensor, mask_B1TS: Tensor | None, asked_BK: Tensor) -> Tensor:
        mask_B1KS = None if mask_B1TS is None else take_rows(mask_B1TS.squeeze(1), asked_BK)[:, None]
        return attention_weights(take_rows(query_BTHD, asked_BK).transpose(1, 2), key, mask_B1KS, self.scaling)

    def _implementation(self, mask: Tensor | None) -> str:
        """The configured kernel, or sdpa where a mask is needed that flash and flex attention do not take."""
        configured = self.config._attn_implementation
        takes_masks = "flash" not in configured and "flex" not in configured
        return configured if mask is None or takes_masks else "sdpa"

    def _split(self, projected_INA: Tensor) -> Tensor:
        return projected_INA.unflatten(-1, (self.num_groups, self.head_dim)).transpose(1, 2)

    @staticmethod
    def _append(tokens_IGND: Tensor, null_GD: Tensor) -> Tensor:
        null_IG1D = null_GD[None, :, None].expand(tokens_IGND.shape[0], -1, -1, -1)
        return torch.cat([tokens_IGND, null_IG1D.to(tokens_IGND.dtype)], dim=2)


class GatedMlp(nn.Module):
    """The SiLU-gated MLP of the decoders of the day."""

    def __init__(self, width: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate_size, bias=False)
        self.up_proj = nn.Linear(width, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, width, bias=False)

    def forward(self, hidden_BTW: Tensor) -> Tensor:
        """Each token by itself: (B, T, W) to (B, T, W)."""
        return self.down_proj(F.silu(self.gate_proj(hidden_BTW)) * self.up_proj(hidden_BTW))


class GatedCrossAttentionLayer(GradientCheckpointingLayer):
    """Cross-attention and an MLP, each behind a tanh gate; with the gates at 0 the text passes unchanged.

    Tokens that see no image pass unchanged through both branches, whatever the gates.
    """

    def __init__(self, config: AgeVlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.config = config
        self.attn_norm = RMSNorm(width, eps=config.rms_norm_eps)
        self.cross_attn = CrossAttention(config)
        self.attn_gate = nn.Parameter(torch.full((), config.attn_gate_init))
        self.mlp_norm = RMSNorm(width, eps=config.rms_norm_eps)
        self.mlp = GatedMlp(width, config.cross_attention_intermediate_size)
        self.mlp_gate = nn.Parameter(torch.full((), config.mlp_gate_init))

    def encode(self, tokens_INW: Tensor, positions_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of image tokens, as `CrossAttention.encode`."""
        return self.cross_attn.encode(tokens_INW, positions_NP)

    def forward(
        self,
        hidden_BTW: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        sees_BT: Tensor,
        mask_B1TS: Tensor | None = None,
        asked_BK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The text after looking (B, T, W), and the weights (B, H, K, S) of the asked tokens in float32, or None.

        `sees` is True for tokens that see an image; the others may have any finite mask. `asked` holds indices of text
        tokens; the weights of those that see no image are 0.
        """
        sees_BT1 = sees_BT[..., None]
        found, weights_BHKS = self.cross_attn(self.attn_norm(hidden_BTW), key_BGSD, value_BGSD, mask_B1TS, asked_BK)
        found = torch.where(sees_BT1, found * self.attn_gate.tanh().view(()), 0.0)  # a broken picture's may be NaN
        hidden_BTW = hidden_BTW + found.to(hidden_BTW.dtype)
        mlp_gate_BT1 = torch.where(sees_BT1, self.mlp_gate.tanh().view(()), 0.0)  # FSDP's gates have a dimension
        thought = self.mlp(self.mlp_norm(hidden_BTW)) * mlp_gate_BT1
        hidden_BTW = hidden_BTW + thought.to(hidden_BTW.dtype)
        if weights_BHKS is not None:
            weights_BHKS = torch.where(take_rows(sees_BT, asked_BK)[:, None, :, None], weights_BHKS, 0.0)
        return hidden_BTW, weights_BHKS
