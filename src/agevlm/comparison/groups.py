"""A study of groups, such as sweeps and ablations: a table for each group of arms, set against its first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from agevlm.comparison.document import Block, Plot, Section, Table, Text
from agevlm.comparison.plots import Arm, Row, arms_of, interval_plot, steps_plot
from agevlm.comparison.readings import (
    ADVERSARIAL,
    ERROR,
    NOTHING,
    Nested,
    Reading,
    difference,
    reading,
    section,
    signed,
    titles,
    written,
)

_FIGURES = {  # a figure, its heading and its digits
    ADVERSARIAL: ("adversarial", 3),
    "pope.adversarial.auroc": ("AUROC, adversarial", 3),
    "pope.random.accuracy": ("random", 3),
    "pointing.accuracy": ("pointing", 3),
    "counting.accuracy": ("counting", 3),
    "colour.accuracy": ("colour", 3),
    "location.accuracy": ("location", 3),
    "text_perplexity.after": ("perplexity after", 2),
}
_LEGEND = (
    "“Minus the first” is the paired difference to the first arm of the group. ▲ and ▼ are figures above and below the "
    "first arm’s, the difference clear of 0. Bold is the best adversarial accuracy of a group: perhaps by chance, "
    "where its difference is not clear of 0."
)

Groups = Mapping[str, Sequence[str]]  # title → arms


def is_grouped(content: Nested) -> bool:
    """Whether the arms are compared in several groups, and not each with each other."""
    return len(section(content, "groups")) > 1


def groups_section(content: Nested) -> Section | None:
    """A table for each group, and the plot that the study's page asks for.

    The best adversarial accuracy of a group is **strong**, a figure ▲ or ▼ where its paired difference to that of the
    first arm is clear of 0; an arm that was settled on has a mark.
    """
    names = titles(content)
    groups = {name: [arm for arm in arms if arm in names] for name, arms in section(content, "groups").items()}
    groups = {name: arms for name, arms in groups.items() if arms}
    if not groups:
        return None
    blocks: list[Block] = [*_plots(content, groups), Text(_LEGEND)]
    return Section("Group by group", blocks + [_table(content, name, arms, names) for name, arms in groups.items()])


def winner(content: Nested, arms: Sequence[str]) -> str | None:
    """The arm with the highest adversarial accuracy, the first of equals; None where none was measured."""
    found = {arm: score.mean for arm in arms if (score := reading(content, f"arms.{arm}.{ADVERSARIAL}"))}
    return max(found, key=found.__getitem__) if found else None


def _table(content: Nested, caption: str, arms: Sequence[str], names: Mapping[str, str]) -> Table:
    best, first = winner(content, arms), arms[0]
    paired, chosen = section(content, "page").get("paired", [ADVERSARIAL]), content.get("chosen", ())
    headers = ["arm", "seeds"]
    for name, (label, _) in _FIGURES.items():
        headers += [label, "minus the first"] if name in paired else [label]
    rows = []
    for arm in arms:
        seeds = str(len(section(content, "runs").get(arm, ())))
        row = [names[arm] + (" ✓ chosen" if arm in chosen else ""), seeds]
        for name, (_, digits) in _FIGURES.items():
            figure = written(reading(content, f"arms.{arm}.{name}"), digits)
            gap = difference(content, arm, first, name) if arm != first else None
            if name in paired:
                row += [f"**{figure}**" if arm == best and name == ADVERSARIAL else figure, _gap(arm, first, gap)]
            else:
                row.append(figure + _sign(gap))
        rows.append(row)
    return Table(headers, rows, caption)


def _gap(arm: str, first: str, gap: Reading | None) -> str:
    if arm == first:
        return ""
    return signed(gap) + _sign(gap) if gap else NOTHING


def _sign(gap: Reading | None) -> str:
    """A triangle up or down where a difference is clear of 0."""
    return "" if gap is None or not gap.clear_of_zero else " ▲" if gap.mean > 0 else " ▼"


def _plots(content: Nested, groups: Groups) -> list[Block]:
    kind, name = section(content, "page").get("plot"), str(content.get("name"))
    if kind == "groups":
        rows = _rows(content, groups)
        first = {row.arm.title: row.found.mean for row in rows[:1]}  # dashed, for all others to be read against
        draw = partial(interval_plot, rows, "adversarial accuracy", lines=first)
        return [Plot(name, "Adversarial accuracy, group by group", draw), Text("Colours mark the groups.")]
    if kind == "steps" and (lines := _lines(content, groups)):
        text = (
            "Lines join runs of one arm that differ in their steps. Dashed: where a line begins, for the arms in focus."
        )
        plot = Plot(
            name, "Adversarial error against the steps of training", partial(steps_plot, lines, _levels(content))
        )
        return [plot, Text(text)]
    return []


def _rows(content: Nested, groups: Groups) -> list[Row]:
    """The first arm once, and the others group by group, each group in a colour."""
    names, first = titles(content), next(iter(groups.values()))[0]
    drawn = [(first, Arm(names[first], 0))]
    for number, (title, arms) in enumerate(groups.items()):
        drawn += [(arm, Arm(f"{title}: {names[arm]}", number)) for arm in arms if arm != first]
    found = ((arm, reading(content, f"arms.{name}.{ADVERSARIAL}")) for name, arm in drawn)
    return [Row(arm, score) for arm, score in found if score]


def _lines(content: Nested, groups: Groups) -> list[tuple[Arm, list[tuple[float, Reading]]]]:
    """The groups whose arms differ in their steps, in order of these: the error of each."""
    drawn, lines = arms_of(content), []
    for arms in groups.values():
        steps = {arm: float(section(content, f"described.{arm}").get("steps", 0)) for arm in arms}
        if len(set(steps.values())) == len(arms) > 1:
            errors = [
                (steps[arm], reading(content, f"arms.{arm}.{ERROR}")) for arm in sorted(arms, key=steps.__getitem__)
            ]
            lines.append((drawn[arms[0]], [(x, error) for x, error in errors if error]))
    return lines


def _levels(content: Nested) -> list[Row]:
    focus, drawn = section(content, "page").get("focus", ()), arms_of(content)
    found = ((arm, reading(content, f"arms.{arm}.{ERROR}")) for arm in focus if arm in drawn)
    return [Row(drawn[arm], error) for arm, error in found if error]
