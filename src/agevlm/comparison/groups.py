"""Sweeps and ablations on a comparison's page: a table for each group of arms, set against the first one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from agevlm.comparison.claims import ADVERSARIAL, GUIDED, difference
from agevlm.comparison.document import Block, Plot, Section, Table, Text
from agevlm.comparison.plots import Row, interval_plot
from agevlm.comparison.readings import NOTHING, Nested, Reading, reading, section, signed, written
from agevlm.comparison.sections import titles

_FIGURES = (
    ("pope.adversarial.auroc", "AUROC, adversarial", 3),
    ("pope.random.accuracy", "random", 3),
    ("pointing.accuracy", "pointing", 3),
    ("counting.accuracy", "counting", 3),
    ("colour.accuracy", "colour", 3),
    ("location.accuracy", "location", 3),
    ("text_perplexity.after", "perplexity after", 2),
)


def groups_section(content: Nested, title: str, intro: str, plot: str | None = None) -> Section | None:
    """A table for each group: adversarial accuracy, the difference to the group's first arm, and other figures.

    The best adversarial accuracy of a group is **strong**, a figure ▲ or ▼ where its paired difference to that of the
    first arm is clear of 0; an arm that was chosen for the comparison has a mark. `plot` names a picture of all groups.
    """
    names, chosen = titles(content), set(content.get("chosen", ()))
    groups = {name: [arm for arm in arms if arm in names] for name, arms in section(content, "groups").items()}
    groups = {name: arms for name, arms in groups.items() if arms}
    if not groups:
        return None
    blocks: list[Block] = [Text(intro)]
    if plot:
        blocks.append(Plot(plot, f"{title}: adversarial accuracy", partial(_draw, content, groups, names)))
    blocks += [_table(content, name, arms, names, chosen) for name, arms in groups.items()]
    return Section(title, blocks)


def winner(content: Nested, arms: Sequence[str]) -> str | None:
    """The arm with the highest adversarial accuracy, the first of equals; None where none was measured."""
    found = {arm: score.mean for arm in arms if (score := reading(content, f"arms.{arm}.{ADVERSARIAL}"))}
    return max(found, key=found.__getitem__) if found else None


def _table(content: Nested, caption: str, arms: Sequence[str], names: dict[str, str], chosen: set[str]) -> Table:
    best, first = winner(content, arms), arms[0]
    headers = ["arm", "seeds", "adversarial", "minus the first", *(label for _, label, _ in _FIGURES)]
    rows = []
    for arm in arms:
        score = reading(content, f"arms.{arm}.{ADVERSARIAL}")
        seeds = str(len(score.values)) if score else NOTHING
        found = f"**{written(score)}**" if arm == best else written(score)
        gained = difference(content, arm, first)
        gap = "" if arm == first else _with_sign(signed(gained), gained)
        figures = [
            _with_sign(written(reading(content, f"arms.{arm}.{name}"), digits), difference(content, arm, first, name))
            for name, _, digits in _FIGURES
        ]
        rows.append([names[arm] + (" ✓ chosen" if arm in chosen else ""), seeds, found, gap, *figures])
    return Table(headers, rows, caption)


def _with_sign(text: str, gap: Reading | None) -> str:
    """The text, with a triangle up or down where a difference is clear of 0."""
    if gap is None or not gap.clear_of_zero:
        return text
    return f"{text} {'▲' if gap.mean > 0 else '▼'}"


def _draw(content: Nested, groups: dict[str, list[str]], names: dict[str, str], theme: Any) -> Any:
    """The first arm once, and the others group by group, each group in a colour."""
    first = next(iter(groups.values()))[0]
    places = [(number, title, arm) for number, (title, arms) in enumerate(groups.items()) for arm in arms]
    rows = [_row(content, first, names[first], 0)]
    rows += [_row(content, arm, f"{title}: {names[arm]}", number) for number, title, arm in places if arm != first]
    known = [row for row in rows if row]
    lines = {GUIDED.get(first, names[first]): rows[0].found.mean} if rows[0] else None
    return interval_plot(known, "adversarial accuracy", lines=lines, theme=theme)


def _row(content: Nested, arm: str, title: str, number: int) -> Row | None:
    found = reading(content, f"arms.{arm}.{ADVERSARIAL}")
    return Row(arm, title, found, number) if found else None
