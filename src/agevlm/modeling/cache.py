"""What the running transformers calls the cache of keys and values: `cache` from 5.24 on, `past_key_values` before.

Our methods are written with `cache`; here alone it is known what the libraries around them say. It is no cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

OLD = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else OLD


def takes_cache(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method written with the keyword `cache` that also takes it as `past_key_values`.

    Where transformers says `cache`, the old name warns as in its own models. Where it does not yet, both are taken, and
    the signature says the old name, for `generate` looks there.
    """
    if CACHE != OLD:
        return deprecate_kwarg(OLD, version="5.40.0", new_name=CACHE)(method)

    @wraps(method)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if OLD in kwargs:
            if kwargs.get("cache") is not None:
                raise ValueError(f"the cache is given twice, as cache and {OLD}: pass one of them")
            kwargs["cache"] = kwargs.pop(OLD)
        return method(*args, **kwargs)

    signature = inspect.signature(method)
    names = [p.replace(name=OLD) if p.name == "cache" else p for p in signature.parameters.values()]
    renamed.__signature__ = signature.replace(parameters=names)  # type: ignore[attr-defined]
    return renamed
