"""The file of figures: how it is written so that it stays small and git can follow it, and how it is read back.

Nothing is computed here. What a reader can tell from what stands beside it is left out: the number of a figure's seeds,
its seeds where they are all that its arms ran with, an interval that is null or the one from `low` to `high`, and the
values of a difference, which are those of its arms, one minus the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agevlm.comparison.readings import Nested, section
from agevlm.files import write_beside

_LINE = 240  # characters: what fits stands in one line
_INTERVALS = ("bootstrap", "t", "t_groups")

Runs = Mapping[str, list[int]]  # arm → seeds


def write_figures(content: Nested, path: Path) -> None:
    """Write a comparison's figures as JSON: numbers with six digits, a figure a line. Same content, same bytes."""
    text = "\n".join(_lines(compact(content), ""))
    with write_beside(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_figures(path: Path) -> Nested:
    """Read a file of figures. One that `agevlm compare run` did not write is a ValueError that names it."""
    content = read_object(path)
    if not section(content, "arms") or not section(content, "runs"):
        raise ValueError(f"{path} holds no runs of arms: it is not what `agevlm compare run` writes")
    return content


def read_object(path: Path) -> Nested:
    """Read a file that holds a JSON object; anything else is a ValueError that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a file of figures is an object")
    return content


def compact(value: Any, runs: Runs | None = None, seeds: frozenset[int] | None = None) -> Any:
    """The same content without what stands in it twice.

    `runs` are the seeds of every arm in the part that the value is of, `seeds` those of the arms that it is about.
    """
    if isinstance(value, float):
        rounded = float(f"{value:.6g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, list | tuple):
        return [compact(item, runs, seeds) for item in value]
    if not isinstance(value, Mapping):
        return value
    if _is_figure(value):
        return _compact_figure(value, seeds)
    runs = value.get("runs", runs)
    found = {}
    for key, part in value.items():
        own = frozenset(runs[key]) if runs and isinstance(part, Mapping | list) and key in runs else None
        found[key] = compact(part, runs, own if seeds is None else seeds if own is None else seeds & own)
    if "differences" in found:
        found["differences"] = _without_values(found["differences"])
    return found


def _is_figure(value: Any) -> bool:
    return isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys()


def _compact_figure(figure: Nested, seeds: frozenset[int] | None) -> Nested:
    found = {key: compact(value) for key, value in figure.items() if key != "num_seeds"}
    for name in _INTERVALS:
        if found.get(name) in (None, [found["low"], found["high"]]):
            found.pop(name, None)
    if seeds is not None and found.get("seeds") == sorted(seeds):
        del found["seeds"]
    return found


def _without_values(differences: Nested) -> Nested:
    if _is_figure(differences):
        return {key: value for key, value in differences.items() if key != "values"}
    return {key: _without_values(part) for key, part in differences.items()}


def _lines(value: Any, indent: str) -> list[str]:
    """JSON in lines: a mapping or a list of mappings that does not fit into one takes one for each of its parts."""
    whole = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    nested = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))
    if not nested or len(whole) <= _LINE:
        return [whole]
    mapping = isinstance(value, Mapping)
    parts = []
    for key, part in value.items() if mapping else enumerate(value):
        first, *rest = _lines(part, indent + " ")
        name = json.dumps(key, ensure_ascii=False) + ":" if mapping else ""
        parts.append("\n".join([f"{indent} {name}{first}", *rest]))
    inside = ",\n".join(parts).split("\n")
    return ["{" if mapping else "[", *inside, indent + ("}" if mapping else "]")]
