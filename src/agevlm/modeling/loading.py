"""Weights that are whole or refused: `from_pretrained` of transformers, which by itself makes up what is missing.

Nothing here knows where checkpoints lie or what they are called.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .foreign_files import check_files

_MAX_NAMED = 3  # tensors named in an error
_OF_OLDER_RELEASES = ("rotary_emb.inv_freq", "position_ids", "attn.bias", "attn.masked_bias")  # computed by now
_AGAIN = "copy or train the checkpoint again"


def load_whole(
    kind: Any,
    source: str | PathLike[str],
    *,
    may_lack: str | None = None,
    takes_all: bool = False,
    named: str | None = None,
    advice: str = _AGAIN,
    **options: Any,
) -> Any:
    """The model of a checkpoint by `kind.from_pretrained`, with every weight that it needs, each a finite number.

    Weights with `may_lack` in their names may be missing, and start as new ones do. With `takes_all` there may be no
    weights that the network does not ask for, but for those that transformers knows to be harmless. A checkpoint whose
    weights are missing, too many, of other shapes than its configuration says, stored as integers, not finite or not to
    be read is a ValueError that names it (as `named`, where that is not `source`) and the weights, and ends with
    `advice`. Code that a checkpoint brings along is never run.
    """
    name = named or source
    with reading(name, "weights", advice):
        model, found = kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)
        cast = _stored_as_integers(source, model)
    missing = sorted(name for name in found["missing_keys"] if may_lack is None or may_lack not in name)
    if missing:
        raise ValueError(f"{name} lacks the weights {_named(missing)}: {advice}")
    if takes_all and (unasked := sorted(n for n in found["unexpected_keys"] if not n.endswith(_OF_OLDER_RELEASES))):
        raise ValueError(f"the weights {_named(unasked)} in {name} are none that its config.json asks for: {advice}")
    if cast:
        raise ValueError(f"the weights {_named(cast)} in {name} are stored as integers: {advice}")
    if broken := not_finite(model):
        raise ValueError(f"the weights {_named(broken)} in {name} are not finite: {advice}")
    return model


def check_shapes(kind: Any, source: str | PathLike[str], config: Any) -> None:
    """ValueError where weights in a directory have other shapes than its `config` says; only headers are read.

    transformers notices too, after it has taken memory for all that the configuration says. For checkpoints whose
    weights are named as those of the model.
    """
    with reading(source, "configuration"), torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = kind.from_config(config, trust_remote_code=False)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for path in sorted(Path(source).glob("*.safetensors")):
        with reading(source, "weights"), safe_open(path, "pt") as file:
            known = sorted({*file.keys()} & expected.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in known}
        for name, shape in found.items():
            if shape != expected[name]:
                says = f"its config.json says {expected[name]}"
                raise ValueError(f"the weight {name} in {source} has the shape {shape}, {says}: {_AGAIN}")


def _stored_as_integers(source: str | PathLike[str], model: PreTrainedModel) -> list[str]:
    """Weights in the files of a directory that are integers or booleans, and floating point in the model.

    transformers renames some weights as it reads them: the last two parts of a name tell.
    """
    floating = {_end(name) for name, weight in model.state_dict().items() if weight.is_floating_point()}
    found = []
    for path in sorted(Path(source).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if _end(name) in floating and file.get_slice(name).get_dtype().startswith(("I", "U", "BOOL")):
                    found.append(name)
    return found


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


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

    It ends with `advice`, what to do about it. The files of a directory are looked at first, see `check_files`.
    """
    try:
        check_files(source)
        yield
    except MemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(f"the {what} in {source} cannot be read ({error}): {advice}") from error
    except Exception as error:  # a damaged file makes transformers, tokenizers and json raise anything
        fault = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        if "trust_remote_code=True" in str(error):
            fault = "it is read by code that it brings along, which is never run"
        raise ValueError(f"the {what} in {source} cannot be read ({fault}): {advice}") from error


def _named(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
