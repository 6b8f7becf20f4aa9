"""Any vision-language model, seen in one way."""

from agevlm.vlms.maps import WordMap, attention_maps, maps_of, occlusion_map
from agevlm.vlms.vlm import Answer, AttentionUnreadableError, Reading, Vlm, YesNo

__all__ = [
    "Answer",
    "AttentionUnreadableError",
    "Reading",
    "Vlm",
    "WordMap",
    "YesNo",
    "attention_maps",
    "maps_of",
    "occlusion_map",
]
