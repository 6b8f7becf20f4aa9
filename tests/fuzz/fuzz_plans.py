"""What is done to a valid input: plans drawn by Hypothesis, and their application to bytes and to nested values.

A plan is plain data, so that it can be sent to another process, printed, and kept as a test.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

LONG = "a" * 20_000
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31 - 1, 2**31, -(2**31), 2**63, 10**22, 10**30, 10**400,
    0.5, -0.0, 1e-320, 1e308, -1e308, math.inf, -math.inf, math.nan,
    "", " ", "\n", "\0", "a", "0", "-1", "1e999", "\ud83d", "\udcff", "\u202e", "é" * 40, "🐟", "\U0010fdf0", "\ue000",
    LONG,
    "../../x", "/etc/passwd", "a/../../b", "C:\\x", "..", ".", "a" * 300,
    "<image>", "</s>", "<|im_start|>", "<|end|>", "<script>alert(1)</script>", "{{ 7*7 }}",
    "{% for x in y %}", "$x^2$", "%s",
    [], [[]], [None], {}, {"a": 1}, [1, "a", None], {"": {}}, [[[[[]]]]], [0] * 5000, b"", b"\xff\xfe",
)  # fmt: skip


@dataclass(frozen=True)
class Op:
    """One change. `where` in [0, 1) says at which place of those that there are, `other` at a second one."""

    kind: str
    where: float
    other: float = 0.0
    value: Any = None


@dataclass(frozen=True)
class Plan:
    """Which file of an input is changed (`file` in [0, 1)), how, and what is chosen of its target's options."""

    file: float
    as_bytes: bool
    ops: tuple[Op, ...]
    choice: int = 0
    text: str = field(default="", compare=False)


_SHARES = st.integers(0, 2**16 - 1).map(lambda number: number / 2**16)  # floats would mostly be 0
_VALUES = st.one_of(
    st.sampled_from(NASTY), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=12), st.binary(max_size=8)
)
_STRUCTURE = st.builds(
    Op, st.sampled_from(("set", "set", "set", "delete", "copy", "wrap", "rename", "repeat")), _SHARES, _SHARES, _VALUES
)
_BYTES = st.builds(
    Op, st.sampled_from(("flip", "flip", "cut", "insert", "repeat")), _SHARES, _SHARES, st.binary(max_size=16)
)
_TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([v for v in NASTY if isinstance(v, str)]), min_size=1, max_size=4).map(" ".join),
    st.sampled_from(
        ("\ud83d" * 3, "a" * 100_000, "is there a fish? " * 3000, "\u0301" * 2000, "<image>" * 50, "\t\n " * 20)
    ),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan of one to three changes, two in three of them to the values of a file, else to its bytes."""
    as_bytes = draw(st.integers(0, 2)) == 0
    ops = draw(st.lists(_BYTES if as_bytes else _STRUCTURE, min_size=1, max_size=3))
    return Plan(draw(_SHARES), as_bytes, tuple(ops), draw(st.integers(0, 63)), draw(_TEXTS))


def change_bytes(data: bytes, plan: Plan) -> bytes:
    """The bytes of a file after a plan."""
    changed = bytearray(data)
    for op in plan.ops:
        at, other = int(op.where * len(changed)), int(op.other * len(changed))
        if op.kind == "flip" and changed:
            changed[at] = op.value[0] if op.value else changed[at] ^ 0xFF
        elif op.kind == "cut":
            del changed[min(at, other) : None if op.other < 0.5 else max(at, other)]
        elif op.kind == "insert":
            changed[at:at] = op.value
        elif op.kind == "repeat":
            changed[at:at] = bytes(changed[at : at + 64]) * (1 + int(op.other * 50))
    return bytes(changed)


def change_values(content: Any, plan: Plan) -> Any:
    """Nested lists and mappings after a plan; what was given stays as it is."""
    root = [copy.deepcopy(content)]
    for op in plan.ops:
        found = list(_places(root))
        holder, key = found[int(op.where * len(found))]
        source, source_key = found[int(op.other * len(found))]
        if op.kind == "delete" and holder is not root:
            del holder[key]
        elif op.kind == "copy":
            holder[key] = copy.deepcopy(source[source_key])
        elif op.kind == "wrap":
            holder[key] = [holder[key]]
        elif op.kind == "rename" and isinstance(holder, dict):
            holder[str(op.value)[:40]] = holder.pop(key)
        elif op.kind == "repeat" and isinstance(holder, list) and holder is not root:
            holder.extend([copy.deepcopy(holder[key])] * (1 + int(op.other * 20)))
        else:
            holder[key] = copy.deepcopy(op.value)
    return root[0]


def _places(value: Any) -> Any:
    """Every (container, key) inside a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
