"""What every network here is joined from: a decoder left whole, a vision backbone, a projector between their widths.

How the decoder comes to see the image tokens is each network's own: by cross-attention in `modeling_agevlm.py`, in
front of the text in `modeling_concat.py`.

Letters: R rows of text, T text tokens, I images, C channels, (h, w) the grid, W model width.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig

from .interleaving import decoder_layers
from .language import load_language_model
from .supervision import Head, label_log_probs, mean_loss
from .vision import build_backbone, joined_features, load_backbone


class JoinedModel(PreTrainedModel):
    """A decoder, a vision backbone, the projector, and the embedding of the placeholder.

    `language_model` is a whole causal language model of transformers, `vision_model` a backbone with a feature map.
    Both may be given as built; otherwise they are made from the configuration.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: PreTrainedConfig,
        language_model: PreTrainedModel | None = None,
        vision_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.vision_model = vision_model or build_backbone(config.vision_config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        self.projector = nn.Linear(sum(self.vision_model.channels), config.text_config.hidden_size)
        self.image_token_embedding = nn.Parameter(torch.zeros(config.text_config.hidden_size))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range or module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, JoinedModel):
            init.zeros_(module.image_token_embedding)

    @classmethod
    def from_backbones(
        cls,
        language_model: str | PathLike[str] | PreTrainedModel,
        vision_model: str | PathLike[str] | PreTrainedModel,
        **config_overrides: Any,
    ) -> Self:
        """Join a decoder and a vision backbone into a new model whose own modules are yet to be trained.

        Each is a directory, a hub id or a model object; a language model may be a GGUF file, a vision model
        `timm/NAME`. An object is taken over, not copied; its weights and dtype stay. A vision checkpoint may be of a
        plain model (ConvNextModel, …); its last stage gives the features unless its configuration names others
        (`out_features`), which are joined to one grid. `config_overrides` are fields of the model's configuration.
        Text without images stays the decoder's to the last bit.
        """
        if not isinstance(language_model, PreTrainedModel):
            language_model = load_language_model(language_model)
        if not isinstance(vision_model, PreTrainedModel):
            vision_model = load_backbone(vision_model)
        if not hasattr(vision_model, "channels"):
            raise ValueError(
                f"{type(vision_model).__name__} gives no feature maps: pass its directory or hub id instead"
            )
        decoder_layers(language_model)
        config = _joined_config(cls.config_class, language_model, vision_model, config_overrides)
        for part in (language_model, vision_model):
            _mark_initialised(part)
        model = cls(config, language_model=language_model, vision_model=vision_model)
        for name, part in model.named_children():
            if name not in ("language_model", "vision_model"):
                part.to(device=language_model.device, dtype=language_model.dtype)
        model.image_token_embedding.data = _mean_embedding(language_model.get_input_embeddings())
        if model.can_generate() and getattr(language_model, "generation_config", None) is not None:
            model.generation_config = copy.deepcopy(language_model.generation_config)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's own table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder's own head."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The decoder without its head."""
        return self.language_model.get_decoder()

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], *args: Any, **kwargs: Any) -> None:
        """As for any model; a name for all parts passes by a vision model without attention."""
        if isinstance(attn_implementation, str) and not getattr(self.vision_model, "has_attentions", True):
            attn_implementation = {"": attn_implementation, "text_config": attn_implementation}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a vision model without trainable parameters stays in evaluation mode."""
        super().train(mode)
        if mode and not self._trains_vision:
            self.vision_model.eval()
        return self

    @property
    def _trains_vision(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_model.parameters())

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """The vision model's feature maps, joined to one (I, C, h, w), of images (I, 3, height, width).

        It may be kept and passed as `image_features` while the vision model is frozen; then no graph is recorded.
        """
        with nullcontext() if self._trains_vision else torch.no_grad():
            pixel_values = pixel_values.to(self.vision_model.dtype)
            return joined_features(self.vision_model, pixel_values, self.config.vision_grid, at_once=self.training)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """Embeddings (R, T, W): the decoder's, and the model's own at placeholders, which may lie outside its table."""
        is_image_RT = input_ids == self.config.image_token_id
        embeds_RTW = self.get_input_embeddings()(input_ids.masked_fill(is_image_RT, 0))
        return torch.where(is_image_RT[..., None], self.image_token_embedding.to(embeds_RTW.dtype), embeds_RTW)

    def _said(
        self,
        head: Head,
        hidden_RTW: Tensor,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None,
        logits_to_keep: int | Tensor | None,
    ) -> dict[str, Tensor]:
        """The fields of an output that a head makes of the last hidden states of the text."""
        if logits_to_keep is None and not (self.training and labels is not None):
            logits_to_keep = 0
        if labels is None:
            return {"logits": head(hidden_RTW, logits_to_keep=logits_to_keep)}
        log_probs_RT = label_log_probs(head, hidden_RTW, labels)
        said = {"loss": mean_loss(log_probs_RT, labels, num_items_in_batch), "label_log_probs": log_probs_RT}
        if logits_to_keep is not None:
            said["logits"] = head(hidden_RTW, logits_to_keep=logits_to_keep)
        return said


def _joined_config(
    config_class: type[PreTrainedConfig],
    language_model: PreTrainedModel,
    vision_model: PreTrainedModel,
    fields: dict[str, Any],
) -> PreTrainedConfig:
    """The configuration of a new model around two others, which keep their dtype and attention kernels."""
    text, vision = language_model.config, vision_model.config
    kernels = {
        "": text._attn_implementation,
        "text_config": text._attn_implementation,
        "vision_config": vision._attn_implementation,
    }
    config = config_class(text_config=text, vision_config=vision, **{"attn_implementation": kernels} | fields)
    config.dtype = language_model.dtype
    config.text_config._name_or_path = config.vision_config._name_or_path = ""  # a path says nothing elsewhere
    return config


def _mark_initialised(part: PreTrainedModel) -> None:
    """Keep the weights of a model that becomes a part of a new one."""
    for module in part.modules():
        module._is_hf_initialized = True


def _mean_embedding(table: nn.Module, num_tokens: int = 4096) -> Tensor:
    """The mean embedding of the first tokens as the table gives them (some scale them): where a new token may start."""
    with torch.no_grad():
        ids = torch.arange(min(num_tokens, table.weight.shape[0]), device=table.weight.device)
        return table(ids).mean(dim=0)
