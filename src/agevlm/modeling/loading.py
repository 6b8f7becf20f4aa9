"""Weights that are whole or refused: `from_pretrained` of transformers, which by itself makes up what is missing.

Nothing here knows where checkpoints lie or what they are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

_MAX_NAMED = 3  # tensors named in an error
_AGAIN = "copy or train the checkpoint again"


def load_whole(
    kind: Any,
    source: str | PathLike[str],
    *,
    may_lack: str | None = None,
    named: str | None = None,
    advice: str = _AGAIN,
    **options: Any,
) -> Any:
    """The model of a checkpoint by `kind.from_pretrained`, with every weight that it needs, each a finite number.

    Weights with `may_lack` in their names may be missing, and start as new ones do. A checkpoint whose weights are
    missing, of other shapes than its configuration says, not finite or not to be read is a ValueError that names it (as
    `named`, where that is not `source`) and the weights, and ends with `advice`.
    """
    name = named or source
    with reading(name, "weights", advice):
        model, found = kind.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(name for name in found["missing_keys"] if may_lack is None or may_lack not in name)
    if missing:
        raise ValueError(f"{name} lacks the weights {_named(missing)}: {advice}")
    if broken := not_finite(model):
        raise ValueError(f"the weights {_named(broken)} in {name} are not finite: {advice}")
    return model


def check_shapes(kind: Any, source: str | PathLike[str], config: Any) -> None:
    """ValueError where weights in a directory have other shapes than its `config` says; only headers are read.

    transformers notices too, after it has taken memory for all that the configuration says. For checkpoints whose
    weights are named as those of the model.
    """
    with reading(source, "configuration"), torch.device("meta"):
        model = kind.from_config(config)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for path in sorted(Path(source).glob("*.safetensors")):
        with reading(source, "weights"), safe_open(path, "pt") as file:
            known = sorted({*file.keys()} & expected.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in known}
        for name, shape in found.items():
            if shape != expected[name]:
                says = f"its config.json says {expected[name]}"
                raise ValueError(f"the weight {name} in {source} has the shape {shape}, {says}: {_AGAIN}")


def not_finite(model: PreTrainedModel) -> list[str]:
    """The names of weights with a NaN or an infinity: one pass over the memory of each, and no copy.

    Statistics that a checkpoint keeps beside its weights, such as those of batch norms, count among them.
    """
    saved = model.state_dict().keys()
    weights = chain(model.named_parameters(), ((name, kept) for name, kept in model.named_buffers() if name in saved))
    return [name for name, weight in weights if not math.isfinite(_spread(weight.detach()))]


def _spread(weight: torch.Tensor) -> float:
    """A number that is finite where all of a tensor are: its least and its greatest, which a NaN becomes as well."""
    if weight.device.type == "meta" or not weight.is_floating_point() or not weight.numel():
        return 0.0
    least, greatest = torch.aminmax(weight)
    return float(least.float()) * 0.0 + float(greatest.float())


@contextmanager
def reading(source: str | PathLike[str], what: str, advice: str = _AGAIN) -> Iterator[None]:
    """Whatever reading a part of a checkpoint raises becomes a ValueError that names both, a full memory excepted.

    It ends with `advice`, what to do about it.
    """
    try:
        yield
    except MemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(f"the {what} in {source} cannot be read ({error}): {advice}") from error
    except Exception as error:  # a damaged file makes transformers, tokenizers and json raise anything
        fault = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise ValueError(f"the {what} in {source} cannot be read ({fault}): {advice}") from error


def _named(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
