"""The summary of a comparison, for a reader with one minute: a table, three plots, what holds and what does not."""

from __future__ import annotations

from functools import partial

from agevlm.comparison.analyses import attention_picture
from agevlm.comparison.claims import judge
from agevlm.comparison.document import Block, Page, Plot, Section, Table, Text
from agevlm.comparison.plots import Row, arms_of, interval_plot
from agevlm.comparison.readings import (
    ERROR,
    NOTHING,
    Nested,
    Reading,
    error_ratio,
    percent,
    reading,
    section,
    titles,
    written,
)
from agevlm.comparison.sections import curves_block, verdicts_table

_SHORT = {  # a figure beside the error, its heading and its digits
    "pope.adversarial.false_yes_ratio": ("false yes", 3),
    "pointing.accuracy": ("pointing", 3),
    "text_perplexity.after": ("text perplexity", 2),
}


def overview(content: Nested, attention: bytes | None) -> Page:
    """The summary page of a comparison whose arms are each compared with each other; `attention` is an encoded PNG."""
    words = section(content, "page")
    about = [Text(words["about"])] if words.get("about") else []
    sections = [*_claims(content), *_curves(content), *_attention(attention)]
    told = " ".join([*_errs(content), *_noted(content), *_counted(content)])
    return Page(title_of(content), told, [*about, *_errors(content), _table(content)], sections)


def title_of(content: Nested) -> str:
    """The title of a study's page: that of its recipe, or else its name."""
    return str(section(content, "page").get("title") or str(content.get("name", "comparison")).capitalize())


def verdict(content: Nested) -> str:
    """The recipe's note, and how many of the claims hold."""
    return " ".join([*_noted(content), *_counted(content)])


def _noted(content: Nested) -> list[str]:
    """What a reader of these figures must know first: the note of the file, if it has one."""
    return [f"**{note}**"] if (note := content.get("note")) else []


def _counted(content: Nested) -> list[str]:
    parts, found = list[str](), judge(content)
    for added, when in ((False, "made beforehand"), (True, "added later")):
        known = [one for one in found if one.claim.added == added and one.holds is not None]
        if known:
            parts.append(f"Of {len(known)} claims {when}, {sum(bool(one.holds) for one in known)} hold.")
    if missing := sum(one.holds is None for one in found):
        parts.append(f"{missing} {'was' if missing == 1 else 'were'} not measured.")
    return parts


def _errs(content: Nested) -> list[str]:
    """How often unguided and guided arms err, from the least to the most; nothing where one kind was not measured.

    Where an interval of the one kind meets one of the other, the difference is said not to be clear.
    """
    unguided, guided = (_errors_of(content, guided=guided) for guided in (False, True))
    if not unguided or not guided:
        return []
    told = [
        "POPE’s adversarial questions are half about things that are there, half about absent ones that usually come "
        f"with them. Unguided arms answer {_span([error.mean for error in unguided])} of them wrongly, guided ones "
        f"{_span([error.mean for error in guided])}."
    ]
    reaches = [_reach(unguided), _reach(guided)]
    if max(low for low, _ in reaches) <= min(high for _, high in reaches):
        ends = " and ".join(_span(list(reach)) for reach in reaches)
        told.append(f"That is no clear difference: the intervals are {ends}.")
    return [f"**{' '.join(told)}**"]


def _errors_of(content: Nested, *, guided: bool) -> list[Reading]:
    known = section(content, "described")
    arms = [arm for arm in titles(content) if arm in known and bool(known[arm]["guided"]) == guided]
    return [error for arm in arms if (error := reading(content, f"arms.{arm}.{ERROR}"))]


def _reach(errors: list[Reading]) -> tuple[float, float]:
    """From the lowest to the highest end of the intervals, as far as an error can be."""
    lows = [0.0 if error.low is None else error.low for error in errors]
    highs = [1.0 if error.high is None else error.high for error in errors]
    return max(min(lows), 0.0), min(max(highs), 1.0)


def _span(errors: list[float]) -> str:
    shares = sorted({f"{100 * error:.0f}" for error in errors}, key=float)
    return f"{' to '.join((shares[0], shares[-1]) if len(shares) > 1 else shares)} %"


def _errors(content: Nested) -> list[Block]:
    drawn = arms_of(content)
    found = {arm: reading(content, f"arms.{arm}.{ERROR}") for arm in drawn}
    rows = [Row(drawn[arm], error) for arm, error in found.items() if error]
    if not rows:
        return []
    lines = _wanted(content)
    text = "Dots are seeds, the stroke is their mean; bands and brackets hold its 95 % interval."
    text += " Dashed is what was claimed beforehand." if lines else ""
    draw = partial(interval_plot, rows, "adversarial error (lower is better)", lines=lines, from_zero=True)
    return [Plot("error", "Adversarial error of every arm", draw), Text(text)]


def _wanted(content: Nested) -> dict[str, float]:
    """What errors were claimed beforehand to stay below: a share of another arm's."""
    names, lines = titles(content), dict[str, float]()
    for one in judge(content):
        if one.claim.kind == "error_ratio" and not one.claim.added and one.against in names:
            other = reading(content, f"arms.{one.against}.{ERROR}")
            if other:
                lines[f"{100 * one.claim.bound:.0f} % of {names[one.against]}"] = one.claim.bound * other.mean
    return lines


def _table(content: Nested) -> Table:
    names, baseline = titles(content), section(content, "page").get("baseline")
    columns = {
        name: told for name, told in _SHORT.items() if any(reading(content, f"arms.{arm}.{name}") for arm in names)
    }
    headers = ["arm", "adversarial error", *(label for label, _ in columns.values())]
    rows = [
        [
            title,
            written(reading(content, f"arms.{arm}.{ERROR}")),
            *(_mean(reading(content, f"arms.{arm}.{name}"), digits) for name, (_, digits) in columns.items()),
        ]
        for arm, title in names.items()
    ]
    if baseline in names:
        headers.append(f"error over that of {names[baseline]}")
        rows = [[*row, percent(error_ratio(content, arm, baseline))] for row, arm in zip(rows, names, strict=True)]
    return Table(headers, rows)


def _mean(found: Reading | None, digits: int) -> str:
    return f"{found.mean:.{digits}f}" if found else NOTHING


def _claims(content: Nested) -> list[Section]:
    """What holds and what does not: the claims made beforehand, or all where every one was added."""
    found = [one for one in judge(content) if one.holds is not None]
    told = [one for one in found if not one.claim.added] or found
    parts = {"What holds": [one for one in told if one.holds], "What does not": [one for one in told if not one.holds]}
    return [Section(title, [verdicts_table(part, telling=False)]) for title, part in parts.items() if part]


def _curves(content: Nested) -> list[Section]:
    if not any(section(content, "curves").values()):
        return []
    return [Section("Along the training", [curves_block(content)])]


def _attention(png: bytes | None) -> list[Section]:
    if png is None:
        return []
    text = (
        "Where each arm looks for the asked thing; a green answer is right, a red one wrong. Pointing: the share of "
        "asked words whose attention is highest on their thing."
    )
    return [Section("Where the arms look", [attention_picture(png), Text(text)])]
