"""The network: configuration, vision, cross-attention, model, processor. Imports torch and transformers, nothing else.

The folder speaks transformers' interfaces throughout; `register` tells the Auto classes of it.
"""

from __future__ import annotations


def register() -> None:
    """Let transformers' Auto classes know our networks and backbones. Twice does no harm."""
    from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from .configuration_agevlm import AgeVlmConfig
    from .configuration_concat import ConcatVlmConfig
    from .efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig
    from .modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmModel
    from .modeling_concat import ConcatVlmForConditionalGeneration
    from .processing_agevlm import AgeVlmProcessor
    from .vit_backbone import VitBackbone, VitBackboneConfig

    AutoConfig.register(AgeVlmConfig.model_type, AgeVlmConfig, exist_ok=True)
    AutoModel.register(AgeVlmConfig, AgeVlmModel, exist_ok=True)
    AutoModelForImageTextToText.register(AgeVlmConfig, AgeVlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(AgeVlmConfig, AgeVlmProcessor, exist_ok=True)
    AutoConfig.register(ConcatVlmConfig.model_type, ConcatVlmConfig, exist_ok=True)
    AutoModelForImageTextToText.register(ConcatVlmConfig, ConcatVlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ConcatVlmConfig, AgeVlmProcessor, exist_ok=True)
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoBackbone.register(EfficientNetLiteConfig, EfficientNetLiteBackbone, exist_ok=True)
    AutoConfig.register(VitBackboneConfig.model_type, VitBackboneConfig, exist_ok=True)
    AutoBackbone.register(VitBackboneConfig, VitBackbone, exist_ok=True)
