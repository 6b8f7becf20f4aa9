"""Guidance: the attention of object words and the masks of objects → a loss."""

from agevlm.guidance.losses import GUIDANCE_LOSSES, guidance_loss

__all__ = ["GUIDANCE_LOSSES", "guidance_loss"]
