"""Any vision-language model, seen in one way."""

from agevlm.vlms.vlm import Vlm

__all__ = ["Vlm"]
