"""The decoder and its tokenizer, in the forms that people have them in: directories, hub ids, GGUF files.

Nothing here knows what the packaged checkpoints are called. The vision model's side is `vision.py`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_gguf_available

from .loading import load_whole, reading
from .versions import dequantised

GGUF = ".gguf"
_OTHER_GGUF = "name a whole GGUF file of a language model that transformers can convert, or its safetensors"


def load_language_model(source: str | PathLike[str]) -> PreTrainedModel:
    """The causal language model in a directory, under a hub id, or in a GGUF file, with every weight that it needs.

    A GGUF file is a path, or "organisation/name/file.gguf" on the hub; it needs the extra `gguf`. Its weights become
    plain ones in float32, so that the model trains and is saved as any other. What cannot be read is a ValueError.
    """
    if not is_gguf(source):
        check_gguf_named(source, "*.safetensors", "*.bin")
        return load_whole(AutoModelForCausalLM, source, takes_all=True)
    with _alone(source, "weights") as (place, file):
        options = {"named": fspath(source), "advice": _OTHER_GGUF, **dequantised(file)}
        model: PreTrainedModel = load_whole(AutoModelForCausalLM, place, **options)
    model.name_or_path = model.config._name_or_path = fspath(source)
    return model


def load_tokenizer(source: str | PathLike[str]) -> Any:
    """The tokenizer of a language model, from the same sources as `load_language_model`."""
    if not is_gguf(source):
        check_gguf_named(source, "tokenizer*", "vocab*", "*.model")
        with reading(source, "tokenizer"):
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    with _alone(source, "tokenizer") as (place, file), reading(source, "tokenizer", _OTHER_GGUF):
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, trust_remote_code=False)
    tokenizer.name_or_path = fspath(source)
    return tokenizer


def load_gguf_config(source: str | PathLike[str]) -> PreTrainedConfig:
    """The configuration of the language model in a GGUF file, of which nothing but the header is read."""
    with _alone(source, "configuration") as (place, file), reading(source, "configuration", _OTHER_GGUF):
        return AutoConfig.from_pretrained(place, gguf_file=file, trust_remote_code=False)


def is_gguf(source: str | PathLike[str]) -> bool:
    """Whether a language model is a GGUF file, by its name."""
    return fspath(source).lower().endswith(GGUF) and not Path(source).is_dir()


def check_gguf_named(source: str | PathLike[str], *wanted: str) -> None:
    """ValueError for a directory with GGUF files and none that is `wanted`: it is the file that has to be named."""
    path = Path(source)
    found = sorted(file for file in path.glob("*") if is_gguf(file)) if path.is_dir() else []
    if found and not any(any(path.glob(pattern)) for pattern in wanted):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(f"{source} holds the GGUF file {found[0].name}{more}: name the file, such as {found[0]}")


def split_hub_file(source: str | PathLike[str]) -> tuple[str, str] | None:
    """The hub id and the file in there of a GGUF file on the hub; None for all else."""
    parts = fspath(source).split("/", 2)
    if not is_gguf(source) or Path(source).exists() or len(parts) < 3 or not parts[0] or Path(parts[0]).is_dir():
        return None
    return f"{parts[0]}/{parts[1]}", parts[2]


@contextmanager
def _alone(source: str | PathLike[str], what: str) -> Iterator[tuple[str, str]]:
    """A directory with a GGUF file and nothing else, and its name in there. One on the hub is downloaded.

    Of whatever lies beside it transformers would take tokenizer and configuration.
    """
    if not is_gguf_available():
        raise ValueError(f"{source} is a GGUF file, which the package gguf reads: pip install 'agevlm[gguf]'")
    path, on_hub = Path(source), split_hub_file(source)
    if on_hub is not None:
        with reading(source, what, _OTHER_GGUF):
            path = Path(hf_hub_download(*on_hub))
    with tempfile.TemporaryDirectory(prefix="agevlm-", ignore_cleanup_errors=True) as place:
        _link(path.absolute(), Path(place) / path.name)
        yield place, path.name


def _link(path: Path, link: Path) -> None:
    """A link to a large file; a copy where the system has no links."""
    for make in (os.symlink, os.link):
        try:
            make(path, link)
        except (OSError, NotImplementedError):
            continue
        return
    shutil.copyfile(path, link)
