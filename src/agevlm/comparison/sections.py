"""The sections of a comparison's page: what was claimed, every figure of every arm, differences, training and time.

Each function takes the content of comparison.json and gives a section, or None where the file has nothing for it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agevlm.comparison.claims import (
    ADVERSARIAL,
    GUIDED,
    GUIDED_CONCAT,
    MAX_ERROR_RATIO_CONCAT,
    MAX_ERROR_RATIO_UNGUIDED,
    UNGUIDED,
    Claim,
    best_concatenation,
    claims,
    difference,
    error_ratio,
)
from agevlm.comparison.document import Block, Plot, Section, Table, Text
from agevlm.comparison.plots import Row, compute_plot, curves_plot, interval_plot
from agevlm.comparison.readings import (
    ERROR,
    NOTHING,
    Nested,
    Reading,
    marked,
    percent,
    reading,
    section,
    signed,
    written,
)

Columns = Sequence[tuple[str, str]]  # a figure's name and its heading

_GUIDANCE = (
    "Guidance sets, in training, the attention of each object word against the mask of the object. There are four "
    "stages: align, connect, ground and instruct. AGE, a language model that reads the picture by cross-attention, is "
    "guided in the third, as in the paper; AGE + in the fourth too, its answers as well, and words for what is absent "
    "are guided to a null token. The other arms are the same network unguided, and concatenation: image tokens before "
    "the text."
)
_GRIDS = (
    "Pooled arms look through a grid of a quarter of the cells. Perfect attention, every cell as the share that the "
    "thing covers, points no better there than the column says, so pointing is to be read against it. Their cells are "
    "larger too, and touch the thing more often: attention in the mask and IoU compare arms of one grid only."
)

WRONG: Columns = (
    ("pope.adversarial.false_yes_ratio", "false yes, adversarial"),
    ("pope.adversarial.recall", "recall"),
)
HALLUCINATION: Columns = (
    ("pope.adversarial.accuracy", "adversarial"),
    ("pope.popular.accuracy", "popular"),
    ("pope.random.accuracy", "random"),
    *WRONG,
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
_NAMES = dict((*HALLUCINATION, *SKILLS, *LOOKING))


def titles(content: Nested) -> dict[str, str]:
    """Arm → its name for people, in the order of the file."""
    named = section(content, "titles")
    return {arm: str(named.get(arm, arm)) for arm in section(content, "arms")}


def noted(content: Nested) -> list[str]:
    """What a reader of these figures must know first: the note of the file, if it has one."""
    return [f"**{note}**"] if (note := content.get("note")) else []


def verdict(content: Nested) -> str:
    """What guidance does, in a sentence, and how much of what was claimed holds; the recipe's note before it."""
    parts = [_errs(content)]
    for guided in (arm for arm in GUIDED if error_ratio(content, arm, UNGUIDED)):
        against = [f"{percent(error_ratio(content, guided, UNGUIDED))} of that of unguided cross-attention"]
        arms = {best_concatenation(content, guided=True), best_concatenation(content, guided=False)}
        for arm in sorted(arm for arm in arms if arm):
            if ratio := error_ratio(content, guided, arm):
                against.append(f"{percent(ratio)} of that of {titles(content)[arm]}")
        parts.append(f"The error of {GUIDED[guided]} is {', '.join(against)}.")
    if len(parts) == 1:
        parts.append("No verdict: the file does not set a guided arm against unguided cross-attention.")
    parts = [*noted(content), *parts]
    found = claims(content)
    known = [claim for claim in found if claim.holds is not None and not claim.added]
    if known:
        holding = sum(bool(claim.holds) for claim in known)
        added = ", and those added later" if any(claim.added for claim in found) else ""
        parts.append(
            f"Of the {len(known)} claims made beforehand and measured {holding} hold; the table below has each{added}."
        )
    if failed := [claim.what for claim in known if not claim.holds]:
        parts.append(f"Not holding: {'; '.join(failed)}.")
    if missing := sum(claim.holds is None for claim in found):
        parts.append(f"{missing} claims were not measured.")
    return " ".join(part for part in parts if part)


def _errs(content: Nested) -> str:
    """How often unguided and guided arms err, from the least to the most; nothing where one kind was not measured."""
    unguided, guided = (_span_of_errors(content, guided=guided) for guided in (False, True))
    if not unguided or not guided:
        return ""
    return (
        "**POPE’s adversarial questions are half about things that are there, half about absent ones that usually come "
        f"with them. Unguided arms answer {unguided} of them wrongly, guided ones {guided}.**"
    )


def _span_of_errors(content: Nested, *, guided: bool) -> str:
    known = section(content, "described")
    arms = [arm for arm in titles(content) if arm in known and bool(known[arm]["guided"]) == guided]
    errors = [error.mean for arm in arms if (error := reading(content, f"arms.{arm}.{ERROR}"))]
    shares = sorted({f"{100 * error:.0f}" for error in errors}, key=float)
    return f"{' to '.join((shares[0], shares[-1]) if len(shares) > 1 else shares)} %" if shares else ""


def headline(content: Nested) -> list[Block]:
    """The plot and the short table for a reader with one minute."""
    names, blocks = titles(content), list[Block]()
    if "age" in names:
        blocks.append(Text(_GUIDANCE))
    rows = _errors(content)
    if rows:
        text = (
            "Adversarial error: the share of wrong answers to those questions. Yes to an absent thing is a false yes. "
            "Dots are seeds, the stroke is their mean, the band the 95 % interval of this mean; dashed is what was "
            "claimed of AGE before it was measured. Pointing: the share of asked words whose attention is highest on "
            "their thing, or beside it by no more than 3 % of the picture’s side. A ratio of two arms is of the seeds "
            "that both have"
        )
        ratios = [error_ratio(content, arm, UNGUIDED) for arm in names]
        open_ended = any(ratio is not None and ratio.high is None for ratio in ratios)
        text += "; ∞: these seeds do not exclude that the other arm hardly errs." if open_ended else "."
        draw = partial(_draw_errors, rows, _wanted_errors(content))
        blocks += [Plot("error", "Adversarial error of every arm", draw), Text(text)]
    short = [(ERROR, "adversarial error"), *WRONG, *LOOKING[:1]]
    headers = [
        "arm",
        "seeds",
        *(label for _, label in short),
        f"error over {names.get(UNGUIDED, 'unguided')}’s",
        f"perplexity of text after{_before(content)}",
    ]
    lines = []
    for arm, title in names.items():
        figures = [written(reading(content, f"arms.{arm}.{name}")) for name, _ in short]
        after = written(reading(content, f"arms.{arm}.text_perplexity.after"), 2)
        seeds = str(len(section(content, "runs").get(arm, ()))) if "runs" in content else NOTHING
        lines.append([title, seeds, *figures, percent(error_ratio(content, arm, UNGUIDED)), after])
    return [*blocks, Table(headers, lines)]


def _before(content: Nested) -> str:
    """What the perplexity of text was before training, which is that of the language model in every arm."""
    found = (reading(content, f"arms.{arm}.text_perplexity.before") for arm in titles(content))
    first = next((before for before in found if before), None)
    return "" if first is None else f" (before: {first.mean:.2f})"


def _draw_errors(rows: Sequence[Row], lines: dict[str, float], theme: Any) -> Any:
    return interval_plot(rows, "adversarial error (lower is better)", lines=lines, from_zero=True, theme=theme)


def _errors(content: Nested) -> list[Row]:
    found = ((arm, title, reading(content, f"arms.{arm}.{ERROR}")) for arm, title in titles(content).items())
    return [Row(arm, title, error, number) for number, (arm, title, error) in enumerate(found) if error is not None]


def _wanted_errors(content: Nested) -> dict[str, float]:
    """What AGE's error was claimed to stay below."""
    best = best_concatenation(content)
    found = {
        "35 % of unguided": (MAX_ERROR_RATIO_UNGUIDED, reading(content, f"arms.{UNGUIDED}.{ERROR}")),
        "50 % of the best concatenation": (MAX_ERROR_RATIO_CONCAT, reading(content, f"arms.{best}.{ERROR}")),
    }
    return {name: share * error.mean for name, (share, error) in found.items() if error}


def arms_section(content: Nested) -> Section | None:
    """What each arm is."""
    names, found = titles(content), section(content, "described")
    rows = [[names[arm], *described(found[arm])] for arm in names if arm in found]
    text = (
        "All start from the same foundations and read the same data in the same order. A learning rate is that of the "
        "last stage, chosen in the sweeps; those of the others go with it. It falls in the course of a stage, or is "
        "constant."
    )
    return Section("The arms", [Text(text), Table(["arm", *DESCRIBED], rows)]) if rows else None


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


def claims_section(content: Nested) -> Section:
    """Every claim, what was wanted, what was measured, and whether it holds."""

    def row(claim: Claim) -> list[str]:
        return [claim.what + (" †" if claim.added else ""), claim.wanted, claim.measured, claim.verdict]

    intro = (
        "What was wanted was written down before anything was measured. † marks what was added later: AGE + is held to "
        "what was wanted of AGE, and, when guided concatenation had turned out best, unguided concatenation was set "
        "beside it. A claim about two arms’ errors holds if their ratio meets it and the "
        "interval of their paired difference is clear of 0; every other one, at equal time too, if the mean meets it. "
        "What the interval adds stands beside."
    )
    rows = [row(claim) for claim in claims(content)]
    return Section(
        "What was claimed, and what holds", [Text(intro), Table(["claim", "wanted", "measured", "holds?"], rows)]
    )


def figures_section(content: Nested) -> Section:
    """Every figure of every arm at equal steps."""
    intro = (
        "At equal steps: all arms start from the same foundations, read the same data in the same order, and are asked "
        "the same questions. Mean over seeds, and its 95 % interval over seeds and pictures in brackets; over seeds "
        "alone where a run gives one number. In scenes like the training’s things come together as often as there, in "
        "those of the other figures less often. The file of figures has more of them."
    )
    tables: list[Block] = [Text(intro)]
    for caption, columns in (
        ("Does it see what is not there? POPE, accuracy", HALLUCINATION),
        ("What else it can do, accuracy", SKILLS),
        ("Where it looks", LOOKING),
    ):
        tables += _figures_table(content, columns, caption)
    if any(reading(content, f"arms.{arm}.pointing.ceiling") for arm in titles(content)):
        tables.append(Text(_GRIDS))
    return Section("The figures of every arm", tables)


def _figures_table(content: Nested, columns: Columns, caption: str = "") -> list[Block]:
    """The figures of all arms; columns that no arm has are left out, and so is a table without any."""
    names = titles(content)
    known = [(name, label) for name, label in columns if any(reading(content, f"arms.{arm}.{name}") for arm in names)]
    rows = [
        [title, *(written(reading(content, f"arms.{arm}.{name}")) for name, _ in known)] for arm, title in names.items()
    ]
    return [Table(["arm", *(label for _, label in known)], rows, caption)] if known else []


def differences_section(content: Nested) -> Section | None:
    """Adversarial accuracy of each arm minus that of each other, error ratios, and all figures of the guided arms."""
    names = titles(content)
    if not section(content, "differences") or len(names) < 2:
        return None
    blocks: list[Block] = [
        Text(
            "Paired by seed and question: both arms are drawn with the same seeds and pictures, those that both have; "
            "so a ratio is not always that of the means above. Bold is clear of 0. Where the arm below may have next "
            "to no errors, the upper end of a ratio says only that nothing bounds it."
        ),
        _matrix(content, "Adversarial accuracy of the arm of a row minus that of a column", _gap),
        _matrix(content, "Adversarial error of the arm of a row over that of a column", _share),
    ]
    for arm in GUIDED:
        blocks += _all_differences(content, arm)
    return Section("Paired differences", blocks)


def _gap(content: Nested, arm: str, other: str, figure: str = ADVERSARIAL) -> str:
    return marked(difference(content, arm, other, figure))


def _share(content: Nested, arm: str, other: str) -> str:
    return percent(error_ratio(content, arm, other))


def _matrix(content: Nested, caption: str, cell: Any) -> Table:
    names = titles(content)
    rows = [[title, *("" if o == arm else cell(content, arm, o) for o in names)] for arm, title in names.items()]
    return Table(["", *names.values()], rows, caption)


def _all_differences(content: Nested, arm: str) -> list[Block]:
    """The figures of the tables of an arm minus those of each other one."""
    names, others = titles(content), section(content, f"differences.{arm}")
    rows = [
        [label, *(_gap(content, arm, other, name) for other in others)]
        for name, label in _NAMES.items()
        if any(difference(content, arm, other, name) for other in others)
    ]
    caption = f"The figures of {GUIDED[arm]} minus those of"
    return [Table(["", *(names.get(other, other) for other in others)], rows, caption)] if rows else []


def curves_section(content: Nested) -> Section | None:
    """What the arms could do along their training."""
    curves = {arm: points for arm, points in section(content, "curves").items() if points}
    if not curves:
        return None
    text = (
        "Asked at each snapshot and at the end of each stage, on fewer pictures than the figures above; pointing by "
        "the words of POPE’s questions alone. Means over seeds; their intervals, wide along the way, are in the file "
        "of figures. Dotted is a coin’s accuracy, and its share of false yes; upright lines are ends of stages. Below "
        "a coin’s accuracy many answers were neither yes nor no. Seconds are those of the steps, by the median of each "
        "stage, of runs side by side."
    )
    draw = partial(_draw_curves, curves, titles(content))
    return Section(
        "Along the training",
        [Plot("curves", "Adversarial accuracy, false yes and pointing along the training", draw), Text(text)],
    )


def _draw_curves(curves: Any, names: dict[str, str], theme: Any) -> Any:
    return curves_plot(curves, names, theme=theme)


def equal_time_section(content: Nested) -> Section | None:
    """The arms with as many steps as fit into the time of the reference."""
    equal = section(content, "equal_time")
    if not section(equal, "arms"):
        return None
    names, reference = titles(content), str(equal.get("reference", "age"))
    name, factors = GUIDED.get(reference, names.get(reference, reference)), section(equal, "step_factors")
    rows = []
    for arm in section(equal, "arms"):
        found = [written(reading(equal, f"arms.{arm}.{name}")) for name in (ADVERSARIAL, "pointing.accuracy")]
        steps = f"× {factors[arm]:.2f}" if arm in factors else str(section(equal, f"arms.{arm}").get("steps", NOTHING))
        against = [_gap(equal, reference, arm), _share(equal, reference, arm)] if arm != reference else ["", ""]
        seeds = str(len(section(equal, "runs").get(arm, ())))
        took = reading(equal, f"arms.{arm}.train.seconds")
        seconds = f"{statistics.median(took.values):.0f}" if took and took.values else NOTHING
        rows.append([names.get(arm, arm), seeds, steps, seconds, *found, *against])
    near = "" if (tolerance := equal.get("tolerance")) is None else f", {100 * tolerance:.0f} %"
    text = (
        f"Every arm gets as many steps as fit into the time that {name} takes for its own. An arm at × 1.00 takes as "
        f"long within the tolerance{near}: its runs are those at equal steps. The factors come from costs that were "
        "measured before the first of these runs; seconds are the median of what the steps of a run took in the end, "
        "beside other runs on the machine."
    )
    headers = [
        "arm",
        "seeds",
        "steps",
        "took, s",
        "adversarial accuracy",
        "pointing",
        f"{name} minus it",
        f"error of {name} over its",
    ]
    return Section("At equal time", [Text(text), Table(headers, rows)])


_LEARNED_LONGER = (
    (ERROR, "Adversarial error", 3),
    ("pointing.accuracy", "Pointing", 3),
    ("counting.accuracy", "Counting", 3),
    ("colour.accuracy", "Colour", 3),
    ("location.accuracy", "Location", 3),
    ("text_perplexity.after", "Perplexity of text after", 2),
)


def compute_section(content: Nested, longer: Nested) -> Section | None:
    """Arms that train several times longer: unguided ones against guided ones of once the steps, and all with as many.

    All from `longer`, whose arms are called ARM_4x and the like, on its seeds and from its foundations. Whether an
    unguided one reaches a guided one is decided on shared seeds.
    """
    names = titles(content)
    names |= {arm: name for arm, name in GUIDED.items() if arm not in names}
    lines = _longer(longer, names)
    levels = {arm: level for arm in GUIDED if (level := reading(longer, f"arms.{arm}.{ERROR}"))}
    unguided = [arm for arm in lines if arm not in (*GUIDED, GUIDED_CONCAT)]
    if not unguided or not levels:
        return None
    multiples = sorted({multiple for points in lines.values() for multiple in points})
    headers = [f"{multiple} × the steps" for multiple in multiples]
    arms = dict.fromkeys((*levels, *lines))
    tables = []
    for figure, caption, digits in _LEARNED_LONGER:
        found = {arm: [reading(longer, f"arms.{_multiplied(arm, m)}.{figure}") for m in multiples] for arm in arms}
        rows = [[names[arm], *(written(point, digits) for point in points)] for arm, points in found.items()]
        if any(point for points in found.values() for point in points):
            tables.append(Table(["arm", *headers], rows, caption))
    pairs = [(arm, of) for of in unguided for arm in levels]
    gaps = [
        [f"{GUIDED[arm]} minus {names[of]}", *(_gap(longer, arm, _multiplied(of, multiple)) for multiple in multiples)]
        for arm, of in pairs
    ]
    caption = "Adversarial accuracy of the guided arms, once as long, minus that of the others, on the seeds of both"
    tables.append(Table(["", *headers], gaps, caption))
    asks = "How many times the steps do unguided arms need, to answer as guided ones do that trained once as long?"
    told = [*noted(longer), asks, *(_reaches(longer, arm, of, names[of], list(lines[of])) for arm, of in pairs)]
    if even := _evenly(longer, names, multiples):
        tables += even
        told.append("The last tables set arms with as many steps beside each other, and each beside itself.")
    if any(len(point.values) == 1 for points in lines.values() for point in points.values()):
        told.append("An interval of one seed knows the choice of its pictures only.")
    if any(_runs_differ(content, longer, arm) for arm in levels):
        told.append("All figures here, once as long too, are of other runs than those of the sections above.")
    draw = partial(_draw_compute, lines, levels, names)
    plot = Plot("compute", "Adversarial error against multiples of the training", draw)
    return Section("What guidance is worth in compute", [Text(" ".join(told)), plot, *tables])


def _evenly(longer: Nested, names: Mapping[str, str], multiples: Sequence[int]) -> list[Table]:
    """Guided arms minus others that trained as long, and arms that trained longer minus themselves once as long."""
    more = [multiple for multiple in multiples if multiple > 1]
    headers = ["", *(f"{multiple} × the steps" for multiple in more)]
    across = {
        f"{name} minus {title}": [(_multiplied(arm, m), _multiplied(of, m)) for m in more]
        for arm, name in GUIDED.items()
        for of, title in names.items()
    }
    along = {title: [(_multiplied(arm, m), arm) for m in more] for arm, title in names.items()}
    captions = {
        "Adversarial accuracy of guided arms minus that of others that trained as long": (across, ADVERSARIAL),
        "Pointing of guided arms minus that of others that trained as long": (across, "pointing.accuracy"),
        "Adversarial accuracy minus that of the same arm once as long": (along, ADVERSARIAL),
        "Pointing minus that of the same arm once as long": (along, "pointing.accuracy"),
    }
    tables = []
    for caption, (pairs, figure) in captions.items():
        rows = {label: [difference(longer, *pair, figure) for pair in found] for label, found in pairs.items()}
        known = [[label, *(marked(gap) for gap in gaps)] for label, gaps in rows.items() if any(gaps)]
        if known:
            tables.append(Table(headers, known, caption))
    return tables


def _draw_compute(lines: Any, levels: Any, names: dict[str, str], theme: Any) -> Any:
    return compute_plot({arm: list(points.items()) for arm, points in lines.items()}, levels, names, theme=theme)


def _multiplied(arm: str, multiple: int) -> str:
    return arm if multiple == 1 else f"{arm}_{multiple}x"


def _reaches(longer: Nested, guided: str, arm: str, title: str, multiples: Sequence[int]) -> str:
    """Whether training an arm longer closes its gap to the guided one, in words."""
    gaps = {m: gap for m in multiples if (gap := difference(longer, guided, _multiplied(arm, m)))}
    if not gaps:
        return f"Unguided, {title} was not trained on the seeds of {GUIDED[guided]}."
    name, multiple = GUIDED[guided], next((multiple for multiple, gap in gaps.items() if gap.mean <= 0), max(gaps))
    gap = gaps[multiple]
    seeds = "one seed" if len(gap.values) == 1 else f"{len(gap.values)} seeds"
    trained = f"With {multiple} times the steps ({seeds}) {title}"
    if gap.mean <= 0:
        looks = difference(longer, guided, _multiplied(arm, multiple), "pointing.accuracy")
        better = looks is not None and looks.clear_of_zero and looks.mean > 0
        where = f", and {name} points {written(looks)} better" if better else ""
        return f"{trained} has reached {name} in the mean ({name} minus it {signed(gap)}){where}."
    sure = "" if gap.clear_of_zero else ", not clear of 0: it may have caught up"
    return f"{trained} still trails {name}, which is ahead by {signed(gap)}{sure}."


def _runs_differ(content: Nested, longer: Nested, arm: str) -> bool:
    """Whether the runs of an arm, once as long, are others in the two files."""
    ours, others = (reading(found, f"arms.{arm}.{ERROR}") for found in (content, longer))
    return ours is not None and others is not None and not set(others.values) <= set(ours.values)


def _longer(longer: Nested, names: Mapping[str, str]) -> dict[str, dict[int, Reading]]:
    """Arm → multiple of the steps → error, in order, of the arms that have a name and trained longer."""
    found: dict[str, dict[int, Reading]] = {}
    for name in section(longer, "arms"):
        named = re.fullmatch(r"(\w+)_(\d+)x", name)
        measured = reading(longer, f"arms.{name}.{ERROR}")
        if named and measured:
            found.setdefault(named[1], {})[int(named[2])] = measured
    for arm, points in found.items():
        if once := reading(longer, f"arms.{arm}.{ERROR}"):
            points[1] = once
    return {arm: dict(sorted(points.items())) for arm, points in found.items() if arm in names}
