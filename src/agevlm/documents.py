"""JSON and YAML that people bring along: parsed, or one line that names the file. Writes nothing.

A parser of its own has no limits: texts nested ten thousand deep, aliases that double ten times, numbers of a million
digits and pipes that nobody writes to end in whatever the machine, or the user, runs out of first. Here they end like
every other damaged text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

MAX_YAML_LEN = 1_000_000  # characters: recipes have thousands
MAX_YAML_NODES = 100_000  # keys, values and items, those of aliases counted wherever they stand
MAX_NUMBER_LEN = 300  # characters of a number in YAML
NO_TEXT = "halves of letters, or private characters that are taken (U+10FDF0 to U+10FE7F)"
_NO_TEXT = re.compile("[\ud800-\udfff\U0010fdf0-\U0010fe7f]")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Strict(BaseModel):
    """Settings that refuse keys that they do not know, numbers that are none, and texts that are none (see `is_text`).

    The string below a key is its description in the reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _texts_are_text(cls, value: Any) -> Any:
        if (text := first_broken_text(value)) is not None:
            raise ValueError(f"{text[:80]!r} has {NO_TEXT}; correct it")
        return value


def open_file(path: str | Path) -> BinaryIO:
    """Open a file of others to read its bytes. What is there and is no regular file is a ValueError, not waited for."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is a directory, a pipe or a device, and a file was expected")
    return path.open("rb")


def read_bytes(path: str | Path) -> bytes:
    """The content of a file of others. Errors as in `open_file`, and OSError."""
    with open_file(path) as file:
        return file.read()


def read_json(path: str | Path, advice: str = "") -> Any:
    """The content of a JSON file; `advice` says in errors what to do. Errors as in `parse_json`, and OSError."""
    return parse_json(read_bytes(path), str(path), advice)


def parse_json(text: str | bytes, name: str, advice: str = "") -> Any:
    """The content of a JSON text. One that is no JSON, or nested too deep, is a ValueError that begins with `name`."""
    try:
        return json.loads(text)
    except RecursionError:
        fault = "it is nested too deep"
    except ValueError as error:  # not JSON, not UTF-8, a number of more digits than Python reads
        fault = str(error)
    raise ValueError(f"{name}: not valid JSON ({fault}){f'; {advice}' if advice else ''}")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Errors as in `parse_yaml`, and OSError."""
    return parse_yaml(read_bytes(path), str(path))


def parse_yaml(text: str | bytes, name: str) -> Any:
    """The content of a YAML text of plain values. Anything else is a ValueError that begins with `name`.

    So are texts of more than `MAX_YAML_LEN` characters or `MAX_YAML_NODES` values.
    """
    try:
        content = text.decode("utf-8") if isinstance(text, bytes) else text
        if len(content) > MAX_YAML_LEN:
            raise ValueError(f"it has {len(content)} characters, the most are {MAX_YAML_LEN}")
        return yaml.load(content, _Loader)
    except RecursionError:
        fault = "it is nested too deep"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        fault = f"{place}{error.problem or error.context}"
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError, TypeError, KeyError) as error:
        fault = " ".join(str(error).split())  # a date or a number that is none makes PyYAML raise anything
    raise ValueError(f"{name} is not YAML: {fault}")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which counts what a text stands for, and takes no key twice and no endless number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.num_nodes = 0
        self.sizes: dict[int, int] = {}  # of the nodes that are whole, by their identity

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, is_alias = self.num_nodes, self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self.sizes:
            raise yaml.composer.ComposerError(None, None, "an alias stands inside what it means", mark)
        self.num_nodes += self.sizes[id(node)] if is_alias else 1
        if not is_alias:
            self.sizes[id(node)] = self.num_nodes - before
        if self.num_nodes > MAX_YAML_NODES:
            raise yaml.composer.ComposerError(None, None, f"it stands for more than {MAX_YAML_NODES} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                fault = f"the key {key.value[:60]!r} is there twice"
                raise yaml.composer.ComposerError(None, None, fault, key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_scalar(self, node: Any) -> Any:
        if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LEN:
            fault = f"a number of {len(node.value)} characters, the most are {MAX_NUMBER_LEN}"
            raise yaml.constructor.ConstructorError(None, None, fault, node.start_mark)
        return super().construct_scalar(node)


def is_text(value: str) -> bool:
    """Whether a string is text that can be written and asked.

    Escapes of JSON and bytes of a command line can be half a letter, which UTF-8 has not; and the private characters
    from U+10FDF0 to U+10FE7F stand for others on the way to a tokenizer (see `data/literals.py`).
    """
    return value.isascii() or _NO_TEXT.search(value) is None


def first_broken_text(value: Any) -> str | None:
    """The first string inside nested lists and mappings that is no text, see `is_text`; None where all are."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            if not is_text(part):
                return part
        elif isinstance(part, Path):
            waiting.append(str(part))
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
    return None
