"""What goes by one name in some of the versions of transformers that we take, and by another in others.

The cache of keys and values is `cache` from 5.24 on, `past_key_values` before; our methods are written with `cache`.
Checkpointing is of activations from 5.23 on, of gradients before. A GGUF file may stay quantised from the version on
that has `GgufConfig`. No other file asks which version runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

OLD_CACHE = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else OLD_CACHE


def takes_cache(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method written with the keyword `cache` that also takes it as `past_key_values`.

    Where transformers says `cache`, the old name warns as in its own models. Where it does not yet, both are taken, and
    the signature says the old name, for `generate` looks there.
    """
    if CACHE != OLD_CACHE:
        return deprecate_kwarg(OLD_CACHE, version="5.40.0", new_name=CACHE)(method)

    @wraps(method)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if OLD_CACHE in kwargs:
            if kwargs.get("cache") is not None:
                raise ValueError(f"the cache is given twice, as cache and {OLD_CACHE}: pass one of them")
            kwargs["cache"] = kwargs.pop(OLD_CACHE)
        return method(*args, **kwargs)

    signature = inspect.signature(method)
    names = [p.replace(name=OLD_CACHE) if p.name == "cache" else p for p in signature.parameters.values()]
    renamed.__signature__ = signature.replace(parameters=names)  # type: ignore[attr-defined]
    return renamed


def checkpoint_activations(model: Any, enable: bool, *, use_reentrant: bool = False) -> None:
    """Let a model keep no activations inside its layers, and compute them again going backward; or let it keep them.

    Reentrant checkpointing needs transformers 5.23: earlier ones checkpoint a layer together with its hooks.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enable:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": use_reentrant})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def dequantised(gguf_file: str) -> dict[str, Any]:
    """What `from_pretrained` has to hear to make plain weights of a GGUF file."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):  # then there is no other way
        return {"gguf_file": gguf_file}
    return {"gguf_file": gguf_file, "quantization_config": transformers.GgufConfig(dequantize=True)}
