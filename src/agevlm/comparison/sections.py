"""Sections on the arms of a comparison: what each is, what it can do, how they differ, how they came there.

Each function takes the content of a file of figures and gives a section, or None where the file has nothing for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from agevlm.comparison.claims import Verdict, judge
from agevlm.comparison.document import Block, Plot, Section, Table, Text
from agevlm.comparison.plots import arms_of, curves_plot
from agevlm.comparison.readings import (
    ADVERSARIAL,
    NOTHING,
    Nested,
    difference,
    error_ratio,
    marked,
    percent,
    reading,
    section,
    titles,
    written,
)

Columns = Sequence[tuple[str, str]]  # a figure's name and its heading

HALLUCINATION: Columns = (
    ("pope.adversarial.accuracy", "adversarial"),
    ("pope.popular.accuracy", "popular"),
    ("pope.random.accuracy", "random"),
    ("pope.adversarial.false_yes_ratio", "false yes, adversarial"),
    ("pope.adversarial.recall", "recall"),
    ("pope.adversarial.yes_ratio", "yes ratio, adversarial"),
    ("pope.adversarial.f1", "F1, adversarial"),
    ("pope.adversarial.auroc", "AUROC, adversarial"),
    ("biased.pope.adversarial.accuracy", "adversarial, scenes like the training’s"),
)
SKILLS: Columns = (
    ("counting.accuracy", "counting"),
    ("colour.accuracy", "colour"),
    ("presence.colour.accuracy", "coloured presence"),
    ("relation.accuracy", "spatial relation"),
    ("location.accuracy", "location"),
)
LOOKING: Columns = (
    ("pointing.accuracy", "pointing"),
    ("pointing.ceiling", "of perfect attention on its grid"),
    ("attention.mass", "attention in the mask"),
    ("attention.iou", "IoU with the mask"),
    ("null_token.auroc", "null token, AUROC"),
)
DESCRIBED = (
    "image tokens",
    "null token",
    "guided in",
    "answers guided",
    "language model trains in",
    "rate",
    "rate constant in",
    "steps",
)
"""The headings of what `described` says."""


def arms_section(content: Nested) -> Section | None:
    """What each arm is."""
    names, found = titles(content), section(content, "described")
    rows = [[names[arm], *described(found[arm])] for arm in names if arm in found]
    text = (
        "All arms start from the same foundations and read the same data in the same order. The rate is that of the "
        "last stage; those of the others go with it. It falls in the course of a stage, or stays."
    )
    return Section("What each arm is", [Text(text), Table(["arm", *DESCRIBED], rows)]) if rows else None


def described(arm: Nested) -> list[str]:
    """What an arm is, from its description in the file of figures (`ComparisonRecipe.describe`)."""
    size = arm["pool_size"]
    before = "before the text" + (f", {size} × {size} pooled" if size > 1 else "")
    return [
        before if arm["architecture"] == "concat" else "read by cross-attention",
        "yes" if arm["null_token"] else "no",
        ", ".join(arm["guided"]) or "no stage",
        "yes" if arm["answers_guided"] else "no",
        ", ".join(arm["language_model"]) or "no stage",
        f"{arm['learning_rates'][-1]:g}",
        ", ".join(arm.get("steady", [])) or "no stage",
        str(arm["steps"]),
    ]


def claims_section(content: Nested) -> Section | None:
    """Every claim, what was wanted, what was measured, and whether it holds."""
    found = judge(content)
    if not found:
        return None
    intro = (
        "What was wanted was written down before anything was measured, but for claims with †, which were added later. "
        "A claim about the errors of two arms holds if their ratio meets it and their paired difference is clear of 0. "
        "Every other one holds if the mean meets it. What the interval adds stands beside."
    )
    more = section(content, "page").get("claims")
    texts = [Text(text) for text in (intro, more) if text]
    return Section("Every claim", [*texts, verdicts_table(found)])


def verdicts_table(found: Sequence[Verdict], *, telling: bool = True) -> Table:
    """Claims with what was wanted and measured, and with `telling` whether each holds."""
    rows = [
        [one.what + (" †" if one.claim.added else ""), one.wanted, one.measured, *([one.told] if telling else [])]
        for one in found
    ]
    return Table(["claim", "wanted", "measured", *(["holds?"] if telling else [])], rows)


def figures_section(content: Nested, title: str, text: str, columns: Columns) -> Section | None:
    """Figures of every arm at equal steps, a column each; those that no arm has are left out."""
    names = titles(content)
    known = [(name, label) for name, label in columns if any(reading(content, f"arms.{arm}.{name}") for arm in names)]
    if not known:
        return None
    rows = [
        [title, *(written(reading(content, f"arms.{arm}.{name}")) for name, _ in known)] for arm, title in names.items()
    ]
    return Section(title, [*([Text(text)] if text else []), Table(["arm", *(label for _, label in known)], rows)])


def hallucination_section(content: Nested) -> Section | None:
    """POPE's figures of every arm."""
    text = (
        "POPE asks whether a thing is in the picture. Half of its questions are about things that are not there: drawn "
        "at random, popular ones, or, adversarial, those that usually come with what is there. In scenes like the "
        "training’s things come together as often as there, in all others less often. Brackets hold the 95 % interval "
        "over seeds and pictures."
    )
    return figures_section(content, "POPE, accuracy", text, HALLUCINATION)


def skills_section(content: Nested) -> Section | None:
    """What else the arms can do."""
    return figures_section(content, "What else it can do, accuracy", "", SKILLS)


def looking_section(content: Nested) -> Section | None:
    """Where the arms look, in figures."""
    text = (
        "Pointing: the share of asked words whose attention is highest on their thing. Within 3 % of the picture’s "
        "side counts as on it."
    )
    if any(arm.get("pool_size", 1) > 1 for arm in section(content, "described").values()):
        text += (
            " Pooled arms look through fewer and larger cells. Perfect attention points no better there than the "
            "column says. Attention in the mask and IoU compare arms of one grid only."
        )
    return figures_section(content, "Where it looks", text, LOOKING)


def differences_section(content: Nested) -> Section | None:
    """Adversarial accuracy of each arm minus that of each other, error ratios, and all figures of arms in focus."""
    names = titles(content)
    if not section(content, "differences") or len(names) < 2:
        return None
    blocks: list[Block] = [
        Text(
            "Paired by seed and question, over the seeds that both arms have. Bold is clear of 0. Where the arm of a "
            "column hardly errs, nothing bounds a ratio from above: ∞."
        ),
        _matrix(content, "Adversarial accuracy of the arm of a row minus that of a column", _gap),
        _matrix(content, "Adversarial error of the arm of a row over that of a column", _share),
    ]
    for arm in section(content, "page").get("focus", ()):
        blocks += _all_differences(content, arm)
    return Section("Every two arms", blocks)


def _gap(content: Nested, arm: str, other: str, figure: str = ADVERSARIAL) -> str:
    return marked(difference(content, arm, other, figure))


def _share(content: Nested, arm: str, other: str) -> str:
    return percent(error_ratio(content, arm, other))


def _matrix(content: Nested, caption: str, cell: Callable[[Nested, str, str], str]) -> Table:
    names = titles(content)
    rows = [[title, *("" if o == arm else cell(content, arm, o) for o in names)] for arm, title in names.items()]
    return Table(["", *names.values()], rows, caption)


def _all_differences(content: Nested, arm: str) -> list[Block]:
    """The figures of the tables of an arm minus those of each other one."""
    names = titles(content)
    others = [other for other in names if difference(content, arm, other)]
    rows = [
        [label, *(_gap(content, arm, other, name) for other in others)]
        for name, label in (*HALLUCINATION, *SKILLS, *LOOKING)
        if any(difference(content, arm, other, name) for other in others)
    ]
    caption = f"The figures of {names.get(arm, arm)} minus those of"
    return [Table(["", *(names[other] for other in others)], rows, caption)] if rows else []


def curves_section(content: Nested) -> Section | None:
    """What the arms could do along their training."""
    if not any(section(content, "curves").values()):
        return None
    text = (
        "Asked at each snapshot and at the end of each stage (upright lines), on fewer pictures than other figures. "
        "Means over seeds; intervals are in the file of figures. Dotted is a coin’s accuracy, and its share of false "
        "yes. Below a coin’s accuracy many answers were neither yes nor no. Seconds are those of the steps, of runs "
        "side by side."
    )
    return Section("Along the training", [curves_block(content), Text(text)])


def curves_block(content: Nested) -> Plot:
    """The plot of what the arms could do along their training."""
    curves = {arm: points for arm, points in section(content, "curves").items() if points}
    draw = partial(curves_plot, curves, arms_of(content))
    return Plot("curves", "Adversarial accuracy, false yes and pointing along the training", draw)


def equal_time_section(content: Nested) -> Section | None:
    """The arms with as many steps as fit into the time of the reference."""
    equal = section(content, "equal_time")
    if not section(equal, "arms"):
        return None
    names, reference, factors = titles(content), str(equal["reference"]), section(equal, "step_factors")
    name = names.get(reference, reference)
    rows = []
    for arm in section(equal, "arms"):
        found = [written(reading(equal, f"arms.{arm}.{figure}")) for figure in (ADVERSARIAL, "pointing.accuracy")]
        against = [_gap(equal, reference, arm), _share(equal, reference, arm)] if arm != reference else ["", ""]
        steps = f"× {factors[arm]:.2f}" if arm in factors else NOTHING
        took = reading(equal, f"arms.{arm}.train.seconds")
        seconds = f"{statistics.median(took.values):.0f}" if took and took.values else NOTHING
        seeds = str(len(section(equal, "runs").get(arm, ())))
        rows.append([names.get(arm, arm), seeds, steps, seconds, *found, *against])
    near = "" if (tolerance := equal.get("tolerance")) is None else f", {100 * tolerance:.0f} %"
    text = (
        f"Every arm gets as many steps as fit into the time that {name} takes for its own. An arm at × 1.00 takes as "
        f"long within the tolerance{near}: its runs are those at equal steps. The factors come from costs measured "
        "before the first of these runs. Seconds are the median of what a run’s steps took in the end."
    )
    headers = ["arm", "seeds", "steps", "took, s", "adversarial accuracy", "pointing"]
    headers += [f"{name} minus it", f"error of {name} over its"]
    return Section("At equal time", [Text(text), Table(headers, rows)])
