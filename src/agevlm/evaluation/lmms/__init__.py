"""The plug-in for lmms-eval: `lmms_eval --model agevlm --model_args pretrained=NAME` asks any vision-language model.

lmms-eval finds `manifest` by the entry point group `lmms_eval.models` and calls it whatever model is asked for, so
nothing is loaded here; the model is in `model.py`.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval must know: the name, and where the class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="agevlm", chat_class_path="agevlm.evaluation.lmms.model.AgeVlmChat")
