"""What the layers of a model hold while it reads texts about one picture, in one form for every family.

- layers: those that look at pictures, and the last;
- image tokens: of cross-attention what its layers make keys of, the same for all; else the output of the layer where
  the image tokens stand;
- text: the output of the layer at the text positions; of a cross-attention layer, gates and residual included;
- queries and keys: of looking layers, before the rotary embedding, which cross-attention does not have: with it, they
  would tell how far a word stands from an image token. Missing where a decoder's cannot be read.

Outputs of layers are taken before the decoder's final norm. Which tensors these are, `agevlm.vlms` knows.
"""

# Shapes: I pictures, E texts about each, T text tokens, X positions of the decoder, N image tokens, W model width,
# H heads, G key heads, D head width.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agevlm.vlms import Inputs, Reading, Vlm


@dataclass(frozen=True)
class LayerStates:
    """One layer, numbered in the stack of all layers, in one pass. The last may look at no image.

    Then it has no queries and keys. A logit of this layer is `scaling` times the product of query and key.
    """

    layer: int
    image: Tensor  # (I, N, W)
    text: Tensor  # (I, E, T, W)
    query: Tensor | None = None  # (I, E, T, H, D)
    key: Tensor | None = None  # (I, G, N, D)
    scaling: float = 1.0

    @property
    def looks(self) -> bool:
        """Whether this layer looks at images."""
        return self.query is not None


def measured_layers(vlm: Vlm) -> list[int]:
    """The numbers of the layers that are measured: those that look at pictures, and the last."""
    return sorted({*vlm.looking, len(vlm.layers) - 1})


def read_pass(vlm: Vlm, inputs: Inputs, num_logits: int = 1) -> Reading:
    """One pass with the states of the measured layers, and queries and keys where the decoder's can be read."""
    states = [number + 1 for number in measured_layers(vlm)]
    return vlm.read(inputs, states=states, projections=_projects(vlm), num_logits=num_logits)


def _projects(vlm: Vlm) -> bool:
    """Whether every looking layer with self-attention has projections of its own for queries and keys."""
    attentions = [getattr(vlm.layers[number], "self_attn", None) for number in vlm.looking]
    return all(hasattr(a, "q_proj") and hasattr(a, "k_proj") for a in attentions if a is not None)


def states_of(
    vlm: Vlm, inputs: Inputs, reading: Reading, rows: Sequence[int], image: Tensor | None
) -> Iterator[LayerStates]:
    """The states of the measured layers, first to last, in some rows of a pass, all about one and the same picture.

    `image` (N, W) are the states of a kept picture in cross-attention, None where the pass itself has them.
    """
    front, chosen = inputs.num_front, list(rows)
    columns = inputs.pictures[chosen[0]][0].columns
    if image is None and reading.image_states is not None:
        states = reading.image_states
        image = states.reshape(len(inputs.texts), -1, states.shape[-1])[chosen[0], columns]
    for number in measured_layers(vlm):
        state_EXW = reading.states[number + 1][chosen]
        seen_NW = state_EXW[0, columns] if image is None else image
        plain = LayerStates(number, seen_NW[None], state_EXW[None, :, front:])
        query = reading.queries.get(number)
        if query is None:
            yield plain
            continue
        query_EHTD = query[chosen][:, :, front:]
        key_GND = reading.keys[number][chosen[0]][:, columns]
        yield LayerStates(
            number,
            plain.image,
            plain.text,
            query_EHTD.transpose(1, 2)[None],
            key_GND[None],
            _scaling(vlm.layers[number], query.shape[-1]),
        )


def _scaling(layer: Any, head_width: int) -> float:
    """What the product of query and key is multiplied with."""
    found = (getattr(module, "scaling", None) for module in layer.modules())
    return float(next((value for value in found if isinstance(value, float)), head_width**-0.5))
