"""EfficientNet-Lite as a backbone of transformers: a small convolutional network with feature maps at several strides.

The architecture is that of TensorFlow's EfficientNet-Lite 0 to 4: EfficientNet (Tan and Le 2019, arXiv 1905.11946)
without squeeze and excitation, with ReLU6 for swish, its stem and its head of fixed widths. No classifier. Weights come
from `agevlm import-backbone`.

Letters: I images, C channels, h and w the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput


@dataclass(frozen=True)
class _Stage:
    """Blocks of one width; the first of them has the stride."""

    depth: int
    kernel_size: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_WIDTH_STEP = 8  # widths are multiples of it


class EfficientNetLiteConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of `EfficientNetLiteBackbone`.

    The feature maps go by the names `stem`, `stage1` to `stage7` and `head`; their strides are 2; 2, 4, 8, 16, 16, 32,
    32; and 32.

    Args:
        width_coefficient, depth_coefficient: of the stages' widths and depths. The published networks have (1.0, 1.0),
            (1.0, 1.1), (1.1, 1.2), (1.2, 1.4) and (1.4, 1.8).
        stem_size, head_size: channels of the first and the last convolution.
        batch_norm_eps, batch_norm_momentum: of the batch norms, the momentum as torch counts it.
        out_features, out_indices: which feature maps are given; by default the head's.
    """

    model_type = "efficientnet_lite"

    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    stem_size: int = 32
    head_size: int = 1280
    num_channels: int = 3
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if min(self.width_coefficient, self.depth_coefficient) <= 0:
            raise ValueError(
                f"width_coefficient={self.width_coefficient} and depth_coefficient={self.depth_coefficient} must be "
                "above 0"
            )
        self.stage_names = ["stem", *(f"stage{number + 1}" for number in range(len(_STAGES))), "head"]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """The channels of the seven stages."""
        return [_rounded(stage.width * self.width_coefficient) for stage in _STAGES]

    @property
    def depths(self) -> list[int]:
        """The blocks of the seven stages; the first and the last are not scaled."""
        scaled = [math.ceil(stage.depth * self.depth_coefficient) for stage in _STAGES]
        return [_STAGES[0].depth, *scaled[1:-1], _STAGES[-1].depth]


def _rounded(width: float) -> int:
    """The nearest multiple of the step, at least one step, and at least 90 % of the width."""
    rounded = max(_WIDTH_STEP, int(width + _WIDTH_STEP / 2) // _WIDTH_STEP * _WIDTH_STEP)
    return rounded + _WIDTH_STEP if rounded < 0.9 * width else rounded


class _ConvNorm(nn.Module):
    """A convolution with TensorFlow's "same" padding, batch norm, and ReLU6 where it is wanted."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        channels: tuple[int, int],
        kernel_size: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        groups = channels[0] if depthwise else 1
        self.conv = nn.Conv2d(*channels, kernel_size, stride=stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.activation = activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        conv = self.conv
        kernel_size, stride = conv.kernel_size[0], conv.stride[0]
        vertical, horizontal = (_same_padding(side, kernel_size, stride) for side in hidden_states.shape[-2:])
        padding = (vertical[0], horizontal[0])
        if padding != (vertical[1], horizontal[1]):  # a convolution of torch pads both ends alike
            hidden_states, padding = F.pad(hidden_states, (*horizontal, *vertical)), (0, 0)
        weight, bias = (conv.weight, None) if self.norm.training else self._folded()
        hidden_states = F.conv2d(hidden_states, weight, bias, stride, padding, groups=conv.groups)
        if self.norm.training:
            hidden_states = self.norm(hidden_states)
        return F.relu6(hidden_states, inplace=True) if self.activation else hidden_states

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution that does what convolution and norm do: a pass over the map less."""
        norm, weight = self.norm, self.conv.weight
        assert norm.running_mean is not None
        assert norm.running_var is not None
        exact = torch.promote_types(weight.dtype, torch.float32)
        scale = norm.weight.to(exact) * (norm.running_var.to(exact) + norm.eps).rsqrt()
        bias = norm.bias.to(exact) - norm.running_mean.to(exact) * scale
        return (weight * scale[:, None, None, None]).to(weight.dtype), bias.to(weight.dtype)


def _same_padding(side: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Rows in front and behind such that ceil(side / stride) come out; an odd one goes behind."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel_size - side, 0)
    return total // 2, total - total // 2


class _Block(nn.Module):
    """An inverted bottleneck: wider by a pointwise convolution, a depthwise one, narrow again without activation."""

    def __init__(
        self, config: EfficientNetLiteConfig, channels: tuple[int, int], kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = channels[0] * expansion
        self.expand = _ConvNorm(config, (channels[0], inner)) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(config, (inner, inner), kernel_size, stride, depthwise=True)
        self.project = _ConvNorm(config, (inner, channels[1]), activation=False)
        self.is_residual = stride == 1 and channels[0] == channels[1]

    def forward(self, hidden_states: Tensor) -> Tensor:
        changed = self.project(self.depthwise(self.expand(hidden_states)))
        return hidden_states + changed if self.is_residual else changed


class EfficientNetLiteBackbone(BackboneMixin, PreTrainedModel):
    """EfficientNet-Lite up to its last convolution; gives the feature maps that `out_features` names.

    Pixels are normalised with the mean 127/255 and the deviation 128/255. Any size goes; one that 32 divides has cells
    of equal size.
    """

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    _no_split_modules = ("_Block",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.num_features = [config.stem_size, *config.hidden_sizes, config.head_size]
        self.stem = _ConvNorm(config, (config.num_channels, config.stem_size), kernel_size=3, stride=2)
        widths = [config.stem_size, *config.hidden_sizes]
        self.stages = nn.ModuleList(
            _blocks(config, stage, depth, (widths[number], widths[number + 1]))
            for number, (stage, depth) in enumerate(zip(_STAGES, config.depths, strict=True))
        )
        self.head = _ConvNorm(config, (widths[-1], config.head_size))
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Feature maps of images (I, 3, height, width), each (I, C, h, w), in the order of `out_features`.

        `output_hidden_states` gives all of them, beside those that were asked for.
        """
        pixel_values = pixel_values.to(memory_format=torch.channels_last)  # half the time on a CPU
        hidden_states = [self.stem(pixel_values)]
        for layer in (*self.stages, self.head):
            hidden_states.append(layer(hidden_states[-1]))
        named = dict(zip(self.stage_names, hidden_states, strict=True))
        output = BackboneOutput(
            feature_maps=tuple(named[name] for name in self.out_features),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output


def _blocks(config: EfficientNetLiteConfig, stage: _Stage, depth: int, channels: tuple[int, int]) -> nn.Sequential:
    first = _Block(config, channels, stage.kernel_size, stage.stride, stage.expansion)
    wide = (channels[1], channels[1])
    return nn.Sequential(
        first, *(_Block(config, wide, stage.kernel_size, 1, stage.expansion) for _ in range(depth - 1))
    )


__all__ = ["EfficientNetLiteBackbone", "EfficientNetLiteConfig"]
