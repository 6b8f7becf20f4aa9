"""Any vision-language model of transformers, seen in one way.

    model, processor ──▶ Vlm ──encode(texts, pictures)──▶ Inputs ──▶ answers, yes_no, log_probs
                          │                                 │
                          │ family: facts, from a table     ├─▶ read(positions, states, …) ──▶ Reading: rows of
                          │                                 │     attention, hidden states, queries and keys, logits
                          └──▶ views of a picture ──────────┴─▶ SeenPicture: image tokens, boxes, map(weights)

**What a family must say** is one thing, `views`: as which rectangles of a picture the model sees it, and how many
tokens lie over each, in their order. It is a function of sizes and settings, mostly under ten lines (`families.py`).
A family whose image tokens are no part of the text says two or three things more: which layers look, and at what.

**What the rest never knows**: resizing, padding, tiling, thumbnails, pixel shuffle, merging, special tokens; where in a
model its decoder is; which attention function it runs, and that eager attention was ever needed. Evaluation, maps,
similarity and diagnosis ask a `Vlm`.

- `attention.py`: rows of attention weights beside the fused kernel; knows modules and tensors
- `views.py`: boxes of pixels; knows numbers
- `families.py`: the table; knows families, and nothing runs there
- `inputs.py`: processor and facts laid beside each other
- `vlm.py`: the model asked; `maps.py`: maps of words, by attention or by occlusion
- `ways.py`: answers that hang on the picture, without training; by `contrast.py`, `steering.py`, `crop.py`

A model whose family is not in the table answers and is read all the same; boxes are missing, and `Vlm.note` says so.
"""

from agevlm.vlms.attention import AttentionUnreadableError
from agevlm.vlms.contrast import Contrast, noised
from agevlm.vlms.inputs import Inputs, Kept
from agevlm.vlms.maps import WordMap, attention_maps, maps_of, occlusion_map
from agevlm.vlms.views import SeenPicture, View
from agevlm.vlms.vlm import Answer, Reading, Vlm, YesNo
from agevlm.vlms.ways import WAYS, Asking, Row, Way, way_named

__all__ = [
    "WAYS",
    "Answer",
    "Asking",
    "AttentionUnreadableError",
    "Contrast",
    "Inputs",
    "Kept",
    "Reading",
    "Row",
    "SeenPicture",
    "View",
    "Vlm",
    "Way",
    "WordMap",
    "YesNo",
    "attention_maps",
    "maps_of",
    "noised",
    "occlusion_map",
    "way_named",
]
