"""JSON and YAML of others: texts that eat memory or the stack end in a line that names them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agevlm.documents import MAX_YAML_LEN, first_broken_text, open_file, parse_json, parse_yaml, read_json, read_yaml

LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join(['*a' + str(n)] * 10)}]\n" for n in range(10))


def test_plain_texts_are_read_and_aliases_stand_for_what_they_name() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "r") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    assert parse_json(b'{"a": [1, null]}', "r") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (LAUGHS, "stands for more than 100000 values"),
        ("&a [*a]", "an alias stands inside what it means"),
        ("[" * 50_000, "nested too deep"),
        ("x" * (MAX_YAML_LEN + 1), "characters"),
        ("a: " + "9" * 5000, "line 1, column 4: a number of 5000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: 1" + ":59" * 100_000, "a number of 300001 characters"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11: the key 'c' is there twice"),
        ("a: 2026-99-99", "month must be in"),
        (b"a: \xff", "codec can't decode"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: [", "line 1, column 5"),
    ],
    ids=[
        "laughs",
        "itself",
        "deep",
        "long",
        "digits",
        "hex",
        "sexagesimal",
        "twice",
        "date",
        "bytes",
        "object",
        "open",
    ],
)
def test_yaml_that_is_none_or_too_much_is_refused_at_once(text: str | bytes, fault: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"^recipe\.yaml is not YAML: ") as caught:
        parse_yaml(text, "recipe.yaml")
    assert fault in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "9" * 5000, b"\xff", "{", ""], ids=["deep", "digits", "bytes", "cut", "empty"]
)
def test_json_that_is_none_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^x\.json: not valid JSON \(.*\); copy it again$"):
        parse_json(text, "x.json", "copy it again")


def test_half_a_letter_is_found_wherever_it_stands() -> None:
    assert first_broken_text({"a": ["b", {"c": "\ud83d"}]}) == "\ud83d"
    assert first_broken_text({"\udcff": 1}) == "\udcff"
    assert first_broken_text({"a": ["b", {"c": "🐟"}], "d": 1}) is None


@pytest.mark.parametrize("character", ["\U0010fdf0", "\U0010fe7f"])
def test_characters_that_stand_for_others_are_no_text(character: str) -> None:
    assert first_broken_text({"a": [Path(f"x{character}")]}) == f"x{character}"


@pytest.mark.parametrize("read", [open_file, read_json, read_yaml])
def test_pipes_and_devices_are_refused_and_not_waited_for(read: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match=f"^{path}: is a directory, a pipe or a device"):
            read(path)
