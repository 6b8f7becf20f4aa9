"""The decoder and its tokenizer, in the forms that people have them in: directories, hub ids, GGUF files.

Nothing here knows what the packaged checkpoints are called. The vision model's side is `vision.py`.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
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
    place, file = _split(source)
    if file is None:
        return load_whole(AutoModelForCausalLM, source, takes_all=True)
    return load_whole(AutoModelForCausalLM, place, named=fspath(source), advice=_OTHER_GGUF, **dequantised(file))


def load_tokenizer(source: str | PathLike[str]) -> Any:
    """The tokenizer of a language model, from the same sources as `load_language_model`."""
    place, file = _split(source)
    if file is None:
        with reading(source, "tokenizer"):
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    with reading(source, "tokenizer", _OTHER_GGUF):
        return AutoTokenizer.from_pretrained(place, gguf_file=file, trust_remote_code=False)


def _split(source: str | PathLike[str]) -> tuple[str, str | None]:
    """Where a model is, and its file in there if that is a GGUF file."""
    text = fspath(source)
    if not text.lower().endswith(GGUF):
        return text, None
    if not is_gguf_available():
        raise ValueError(f"{text} is a GGUF file, which the package gguf reads: pip install 'agevlm[gguf]'")
    if Path(text).is_file():
        return str(Path(text).parent), Path(text).name
    organisation, name, file = text.split("/", 2)
    return f"{organisation}/{name}", file
