"""The files of a checkpoint in a directory, looked at before a reader of them runs: kinds, names, numbers, sizes.

What transformers and torch do with an infinity, with a billion layers or with a name that leads elsewhere is to go on.
Nothing here knows models, and no tensor is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

MAX_LAYERS = 512  # of one kind that a configuration asks for; the deepest language models have 126
MAX_TEMPLATE = 100_000  # bytes of a chat template
CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
"""The configurations that transformers reads in a directory."""

_GENERATION, _TEMPLATE = "generation_config.json", "chat_template.jinja"
_LAYERS = re.compile(r"(^|_)(layers?|depths?|stages|blocks)$")
_UNLIMITED = "time_step_limit"  # of Mamba: from 0 to infinity where there is none
_GENERATION_NUMBERS = (
    "do_sample",
    "guidance_scale",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_cache",
)


def check_files(directory: str | PathLike[str]) -> None:
    """ValueError that names the first file of a directory which no reader should see.

    One that is neither a file nor a directory (a pipe, a device), an index of weights that names others outside, a
    chat template beyond `MAX_TEMPLATE`, a configuration with a number that is none or with more than `MAX_LAYERS`
    layers, a generation configuration of other types. A configuration that is no JSON is left to its reader, but for
    that of generation, which transformers goes on without. What is no directory passes.
    """
    place = Path(directory)
    if not place.is_dir():
        return
    for path in sorted(place.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError(f"{path.name} is no regular file")
        if path.name.endswith(".index.json"):
            _check_index(path)
        if path.name == _TEMPLATE and path.stat().st_size > MAX_TEMPLATE:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, the most are {MAX_TEMPLATE}")
    for name in CONFIGURATIONS:
        if (place / name).is_file():
            _check_configuration(place / name)


def _check_index(path: Path) -> None:
    for name in json.loads(path.read_bytes())["weight_map"].values():
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ValueError(f"{path.name} names the weights {name}, which lie outside")


def _check_configuration(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if path.name == _GENERATION:
            raise ValueError(f"{path.name}: not valid JSON ({error})") from error
        return
    for key, value in _numbers(content):
        if math.isnan(value) or (math.isinf(value) and key != _UNLIMITED):
            raise ValueError(f"{key} in {path.name} is {value}, and a number was expected")
        if value > MAX_LAYERS and _LAYERS.search(key):
            raise ValueError(f"{key} in {path.name} is {value}, and the most are {MAX_LAYERS}")
    if path.name == _GENERATION:
        _check_generation(content)


def _numbers(content: Any) -> Iterator[tuple[str, int | float]]:
    """All numbers of a JSON content, each with the key that it stands below."""
    waiting = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            written = value.get("__float__")  # as transformers writes what JSON has no number for
            waiting += value.items() if written is None else [(key, float(written))]
        elif isinstance(value, list):
            waiting += ((key, item) for item in value)
        elif isinstance(value, int | float):
            yield key, value


def _check_generation(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{_GENERATION} is no mapping")
    for key, value in content.items():
        if key.endswith("_token_id"):
            ids = value if isinstance(value, list) else [value]
            right = value is None or all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
        else:
            right = key not in _GENERATION_NUMBERS or isinstance(value, int | float | None)
        if not right:
            raise ValueError(f"{key} in {_GENERATION} is {value!r:.80}, and a number was expected")
