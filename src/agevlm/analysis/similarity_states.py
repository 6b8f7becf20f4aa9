"""What the layers that look at images hold while a model reads texts about pictures, in one form for both networks.

Read by hooks in one ordinary pass, so the models know nothing of it:

- layers: in an AGE-VLM each cross-attention layer, and the decoder's last; in concatenation each decoder layer;
- image tokens: in an AGE-VLM what its layers make keys and values of, the output of `projector`, the same for all; in
  concatenation the output of the layer at the image positions;
- text: the output of the layer at the text positions; of a cross-attention layer, gates and residual included;
- queries: in an AGE-VLM `cross_attn.q_norm(q_proj(...))`; in concatenation `self_attn.q_proj(...)` at the text
  positions, through `q_norm` if there is one;
- keys: in an AGE-VLM `ImageMemory.keys`, normalised, without the null token; in concatenation `self_attn.k_proj(...)`
  at the image positions, through `k_norm` if there is one.

Outputs of decoder layers are taken before the decoder's final norm. Queries and keys are taken before the rotary
embedding, which cross-attention does not have: with it, they would tell how far a word stands from an image token.
"""

# Shapes: I pictures, E texts about each, T text tokens, X tokens of a sequence, N image tokens, W model width, H heads,
# G key heads, D head width, R = I * E rows of text.

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from agevlm.modeling.interleaving import decoder_layers
from agevlm.modeling.modeling_concat import ConcatVlmForConditionalGeneration


@dataclass(frozen=True)
class LayerStates:
    """One layer, numbered in the stack of all layers, in one pass. The decoder's last may look at no image.

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


def read_states(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, list[LayerStates]]:
    """`label_log_probs` (R, T) and the states of the layers, first to last, in one pass of `model` over `inputs`.

    Rows are image-major, with `rows_per_image`, `pixel_values` and `labels` among the inputs.
    """
    read = _concat_states if isinstance(model, ConcatVlmForConditionalGeneration) else _cross_states
    return read(model, inputs)


def _cross_states(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, list[LayerStates]]:
    decoder, places = decoder_layers(model.language_model), model.config.cross_attention_layers
    modules: dict[Hashable, nn.Module] = {"image": model.projector, "last": decoder[-1]}
    for place, layer in zip(places, model.cross_attention, strict=True):
        modules |= {("text", place): layer, ("query", place): layer.cross_attn.q_norm}
    with _outputs_of(modules) as seen:
        output = model(**inputs, use_cache=False, logits_to_keep=1)
    image_INW, memory = seen["image"], output.image_memory
    num_tokens = memory.grid[0] * memory.grid[1]
    rows = (len(memory), inputs["rows_per_image"], inputs["input_ids"].shape[1])
    states = [
        LayerStates(
            layer=place,
            image=image_INW,
            text=seen["text", place].reshape(*rows, -1),
            query=seen["query", place].reshape(*rows, *seen["query", place].shape[-2:]),
            key=key_IGSD[:, :, :num_tokens],
            scaling=layer.cross_attn.scaling,
        )
        for place, layer, key_IGSD in zip(places, model.cross_attention, memory.keys, strict=True)
    ]
    last = LayerStates(len(decoder) + len(places) - 1, image_INW, seen["last"].reshape(*rows, -1))
    return output.label_log_probs, [*states, last]


def _concat_states(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, list[LayerStates]]:
    layers = decoder_layers(model.language_model)
    modules: dict[Hashable, nn.Module] = {}
    for number, layer in enumerate(layers):
        query, key = (_projection(layer, name) for name in ("q_proj", "k_proj"))
        modules |= {("text", number): layer, ("query", number): query, ("key", number): key}
    with _outputs_of(modules) as seen:
        output = model(**inputs, use_cache=False, logits_to_keep=1)
    front = output.image_memory.tokens.shape[1]
    rows = (len(output.image_memory), inputs["rows_per_image"], inputs["input_ids"].shape[1])
    states = []
    for number, layer in enumerate(layers):
        attention: Any = layer.self_attn
        states_IXW = seen["text", number]
        query_IXHD = _heads(seen["query", number], attention, "q_norm")
        key_IXGD = _heads(seen["key", number], attention, "k_norm")
        states.append(
            LayerStates(
                layer=number,
                image=states_IXW[:, :front],
                text=states_IXW[:, front:].reshape(*rows, -1),
                query=query_IXHD[:, front:].reshape(*rows, *query_IXHD.shape[-2:]),
                key=key_IXGD[:, :front].transpose(1, 2),
                scaling=attention.scaling,
            )
        )
    return output.label_log_probs, states


def _projection(layer: nn.Module, name: str) -> nn.Module:
    projection = getattr(getattr(layer, "self_attn", None), name, None)
    if projection is None:
        raise ValueError(
            f"{type(layer).__name__} has no self_attn.{name}, so its queries and keys cannot be read: "
            "use a decoder built like Llama, Qwen3 or Gemma 3"
        )
    return projection


def _heads(projected_IXA: Tensor, attention: Any, norm: str) -> Tensor:
    """A projection split into heads (I, X, H, D), normed where the attention norms each head."""
    split_IXHD = projected_IXA.unflatten(-1, (-1, attention.head_dim))
    return getattr(attention, norm)(split_IXHD) if hasattr(attention, norm) else split_IXHD


@contextmanager
def _outputs_of(modules: Mapping[Hashable, nn.Module]) -> Iterator[dict[Hashable, Tensor]]:
    """What each module gives in the pass under this context; of several outputs the first."""
    seen: dict[Hashable, Tensor] = {}

    def keep(name: Hashable) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
