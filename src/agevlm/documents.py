"""JSON and YAML that people bring along: parsed, or one line that names the file. Writes nothing.

A parser of its own has no limits: texts nested ten thousand deep, aliases that double ten times and numbers of a
million digits end in whatever the machine runs out of first. Here they end like every other damaged text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

MAX_YAML_LEN = 1_000_000  # characters: recipes have thousands
MAX_YAML_NODES = 100_000  # keys, values and items, those of aliases counted wherever they stand
_SURROGATES = re.compile("[\ud800-\udfff]")


class Strict(BaseModel):
    """Settings that refuse keys that they do not know, and numbers that are none.

    The string below a key is its description in the reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def read_json(path: str | Path, advice: str = "") -> Any:
    """The content of a JSON file; `advice` says in errors what to do. Errors as in `parse_json`, and OSError."""
    return parse_json(Path(path).read_bytes(), str(path), advice)


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
    return parse_yaml(Path(path).read_bytes(), str(path))


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
    """PyYAML's safe loader, which counts what a text stands for."""

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


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: escapes of JSON and bytes of a command line can be half a letter."""
    return _SURROGATES.search(value) is None


def first_broken_text(value: Any) -> str | None:
    """The first string inside nested lists and mappings that is no text, see `is_text`; None where all are."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            if not is_text(part):
                return part
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
    return None
