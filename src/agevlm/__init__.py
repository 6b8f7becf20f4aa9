"""AGE-VLM: small vision-language models that are taught where to look.

Five functions do most of the work: `load_model`, `look`, `evaluate`, `diagnose` and `train`. The public
names load when they are used. `import agevlm` makes the Auto classes of transformers know its models; the `agevlm`
command loads nothing but what it needs: its help does not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AgeVlmConfig": "agevlm.modeling.configuration_agevlm",
    "AgeVlmForConditionalGeneration": "agevlm.modeling.modeling_agevlm",
    "AgeVlmModel": "agevlm.modeling.modeling_agevlm",
    "AgeVlmProcessor": "agevlm.modeling.processing_agevlm",
    "ConcatVlmConfig": "agevlm.modeling.configuration_concat",
    "ConcatVlmForConditionalGeneration": "agevlm.modeling.modeling_concat",
    "ImageMemory": "agevlm.modeling.cross_attention",
    "diagnose": "agevlm.api",
    "evaluate": "agevlm.api",
    "load_model": "agevlm.api",
    "look": "agevlm.api",
    "train": "agevlm.api",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'agevlm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command() -> bool:
    """Whether this process is `agevlm` or `python -m agevlm.cli`; any `-m` is called "-m" while its package loads."""
    called = Path(*sys.argv[:1]).stem
    return called == "agevlm" or (called == "-m" and "agevlm.cli" in sys.orig_argv)


def _register() -> None:
    from agevlm.modeling import register

    register()


if not _is_command():
    _register()
