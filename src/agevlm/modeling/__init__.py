"""The network: configuration, vision, cross-attention, model, processor. Imports torch and transformers, nothing else.

The folder speaks transformers' interfaces throughout; `register` tells the Auto classes of it.
"""

from __future__ import annotations


def register() -> None:
    """Let AutoConfig, AutoModel, AutoModelForImageTextToText and AutoProcessor know AGE-VLM. Twice does no harm."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from .configuration_agevlm import AgeVlmConfig
    from .modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmModel
    from .processing_agevlm import AgeVlmProcessor

    AutoConfig.register(AgeVlmConfig.model_type, AgeVlmConfig, exist_ok=True)
    AutoModel.register(AgeVlmConfig, AgeVlmModel, exist_ok=True)
    AutoModelForImageTextToText.register(AgeVlmConfig, AgeVlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(AgeVlmConfig, AgeVlmProcessor, exist_ok=True)
