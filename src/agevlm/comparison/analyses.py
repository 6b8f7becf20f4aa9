"""Sections on the analyses of a comparison: when it errs, whether the null token knows, similarity, language, cost.

Each function takes the content of a file of figures and gives a section, or None where the file has nothing for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from agevlm.analysis.charts import MEASURE_TITLES
from agevlm.comparison.document import Block, Picture, Plot, Section, Table, Text
from agevlm.comparison.plots import arms_of, breakdown_plot, histograms_plot, reliability_plot
from agevlm.comparison.readings import NOTHING, Nested, marked, read, reading, section, titles, written
from agevlm.evaluation.detection import ANSWER

_SITUATIONS = {
    ("false_yes", "co_occurrence"): "False yes, by co-occurrence",
    ("false_yes", "num_objects"): "False yes, by number of things",
    ("miss", "size_ratio"): "Misses, by share of the picture",
    ("miss", "num_objects"): "Misses, by number of things",
}
_DETECTORS = {"null_mass": "mass on the null token", "p_no": "1 − P(yes)", "entropy": "entropy of attention"}
_MOST_CALIBRATED = 4  # lines of calibration
_MOST_PLOTTED = 8  # arms side by side that an eye can tell apart
_SHOWN = ("hidden_max", "query_key_cosine", "caption_likelihood")  # as histograms


def breakdown_section(content: Nested) -> Section | None:
    """False yes answers and misses by situation."""
    names, panels = titles(content), list[Any]()
    tables: list[Block] = []
    for (rate, situation), title in _SITUATIONS.items():
        cells = {arm: section(content, f"breakdown.{arm}.{rate}").get(situation, []) for arm in names}
        cells = {arm: found for arm, found in cells.items() if found}
        if not cells:
            continue
        bins = [_bin(cell, situation) for cell in next(iter(cells.values()))]
        rates = {arm: [read(cell.get("rate")) for cell in found] for arm, found in cells.items()}
        panels.append((title, bins, rates))
        rows = [[names[arm], *map(written, found)] for arm, found in rates.items()]
        tables.append(Table(["arm", *bins], rows, title))
    if not panels:
        return None
    text = (
        "False yes: the share of yes to things that are not there. Misses: the share of no to things that are. "
        "Co-occurrence: how often the thing comes with the others of the picture in training scenes."
    )
    plots: list[Block] = []
    if len(names) <= _MOST_PLOTTED:
        plots.append(
            Plot("breakdown", "Rates of errors by situation", partial(breakdown_plot, panels, arms_of(content)))
        )
    return Section("When does it err?", [Text(text), *plots, *tables])


def _bin(cell: Nested, situation: str) -> str:
    low, high = cell["from"], cell["below"]
    if situation == "num_objects":
        last = "" if high is None else f"{high - 1:.0f}"
        return f"{low:.0f} or more" if high is None else f"{low:.0f}" if last == f"{low:.0f}" else f"{low:.0f}–{last}"
    ends = [f"{100 * end:g} %" for end in (low, high) if end is not None]
    return f"from {ends[0]}" if high is None else f"under {ends[1]}" if low == 0 else f"{ends[0][:-2]}–{ends[1]}"


def attention_section(png: bytes | None) -> Section | None:
    """The same pictures and questions through every arm."""
    if png is None:
        return None
    from agevlm.comparison.attention import RULE

    text = (
        "The attention of the asked word over the picture, arm by arm, and the answer: green is right, red is wrong. "
        f"White outlines the thing, where it is there. {RULE}"
    )
    return Section("The same questions through every arm", [attention_picture(png), Text(text)])


def attention_picture(png: bytes) -> Picture:
    """The picture that `agevlm compare run` draws, as a block."""
    return Picture("attention", "The same questions through every arm", png)


def detection_section(content: Nested) -> Section | None:
    """How well the null token's mass tells that a thing is absent, against entropy and the answer itself."""
    names, found = titles(content), section(content, "detection")
    rows = []
    for arm, by_split in found.items():
        for key, label in _DETECTORS.items():
            seen = {split: section(by_split, f"{split}.{key}") for split in ("random", "adversarial")}
            if any(seen.values()):
                aurocs = [written(reading(record, "auroc")) for record in seen.values()]
                against = ["" if key == ANSWER else marked(reading(record, "minus_answer")) for record in seen.values()]
                errors = [reading(seen["adversarial"], f"{how}.error") for how in ("as_is", "fitted")]
                rows.append([names.get(arm, arm), label, *aurocs, *against, *map(written, errors)])
    if not rows:
        return None
    text = (
        "Each number is read as evidence that the asked thing is absent. AUROC: how well it ranks; and in how far "
        "better than the answer’s own probability, paired. Calibration error: how far it is from the share of things "
        "that are absent, as it is, and through a logistic curve fitted on the other half of the pictures. A number "
        "that ranks by chance is fitted to a constant ½: well calibrated, and useless."
    )
    headers = ["arm", "detector", "AUROC, random", "AUROC, adversarial", "minus the answer’s, random", "adversarial"]
    headers += ["calibration error as it is", "fitted"]
    blocks: list[Block] = [Text(text), Table(headers, rows)]
    if lines := _reliability(found, names):
        draw = partial(reliability_plot, lines)
        blocks.append(Plot("reliability", "Calibration on the adversarial split", draw))
    return Section("Does the null token know?", blocks)


def _reliability(found: Nested, names: Nested) -> dict[str, Nested]:
    """Bins on the adversarial split, as they are, of the arms that have a null token, as many as can be told apart."""
    bins = {
        f"{names.get(arm, arm)}, {_DETECTORS[key]}": section(by_split, f"adversarial.{key}.as_is.bins")
        for arm, by_split in found.items()
        for key in ("null_mass", ANSWER)
        if section(by_split, "adversarial.null_mass")
    }
    return dict([line for line in bins.items() if line[1]][:_MOST_CALIBRATED])


def similarity_section(content: Nested) -> Section | None:
    """Do models hold matching pictures and captions for more alike than mismatched ones? (the paper's figure 2)."""
    names, found = titles(content), section(content, "similarity")
    measures = [name for name in MEASURE_TITLES if any(section(found, f"{arm}.{name}") for arm in found)]
    if not measures:
        return None
    rows, panels = [], {}
    for arm in found:
        for name in measures:
            record = section(found, f"{arm}.{name}")
            if not record:
                continue
            figures = {key: reading(record, key) for key in ("auroc", "paired_accuracy", "overlap")}
            layer = NOTHING if record.get("layer") is None else str(record["layer"])
            rows.append([names.get(arm, arm), MEASURE_TITLES[name], layer, *map(written, figures.values())])
            if histogram := record.get("histogram"):
                auroc = figures["auroc"]
                panels[arm, name] = (f"AUROC {auroc.mean:.3f}" if auroc else "", histogram)
    text = (
        "Matching pairs are a picture and its own caption, mismatched ones a picture and another’s caption. AUROC: the "
        "chance that a matching pair scores higher. Paired: that a caption scores higher with its own picture. Only "
        "the likelihood means the same in every architecture. The other measures read, in cross-attention, the image "
        "tokens, the layer’s output and its queries and keys; in concatenation, the decoder layer’s output and the "
        "queries and keys of its self-attention, without rotary positions. Here: the last layer that looks at images. "
        "The file of figures has every layer, counted from 0."
    )
    headers = ["arm", "measure", "layer", "AUROC", "paired", "overlap"]
    blocks: list[Block] = [Text(text)]
    shown = [name for name in _SHOWN if name in measures and any((arm, name) in panels for arm in found)]
    if shown:
        draw = partial(histograms_plot, list(found), shown, panels, {**names, **MEASURE_TITLES})
        blocks.append(Plot("similarity", "Similarity of matching and mismatched pairs", draw))
    return Section("Do text and picture come together?", [*blocks, Table(headers, rows)])


def language_section(content: Nested) -> Section | None:
    """Text perplexity before stage 1 and after each stage."""
    names = titles(content)
    found = {arm: section(content, f"arms.{arm}.text_perplexity") for arm in names}
    keys = list(dict.fromkeys(key for record in found.values() for key in record))
    between = [key for key in keys if key not in ("before", "after")]
    keys = [key for key in ("before", *between, "after") if key in keys]
    if not keys:
        return None
    rows = [[names[arm], *(written(reading(record, key), 2) for key in keys)] for arm, record in found.items()]
    headers = ["arm", *(key if key in ("before", "after") else f"after {key}" for key in keys)]
    text = (
        "Perplexity on held-out text without pictures: lower is better. Only the last stage reads such text, so a "
        "language model that trains before it forgets for a while."
    )
    return Section("Language kept", [Text(text), Table(headers, rows)])


def costs_section(content: Nested) -> Section | None:
    """Time of a training step, time to the first token and memory, by number of image tokens."""
    names, costs = titles(content), section(content, "costs")
    trained, answered = list[list[str]](), list[list[str]]()
    stages = list(dict.fromkeys(s for by in costs.values() for cost in by.values() for s in section(cost, "train")))
    for arm, by_tokens in costs.items():
        for tokens, cost in by_tokens.items():
            steps = {stage: section(cost, f"train.{stage}") for stage in stages}
            times = [_time(section(step, "seconds_per_step"), step.get("images_per_batch")) for step in steps.values()]
            last = steps[stages[-1]] if stages else {}
            trained.append([names.get(arm, arm), tokens, *times, str(last.get("attention", NOTHING)), _kept(last)])
            asked = [_time(section(cost, f"{name}.seconds")) for name in ("first_token", "further_question")]
            memory = section(cost, "memory").get("total_bytes")
            kept = NOTHING if memory is None else f"{memory / 1e3:,.0f}"
            answered.append([names.get(arm, arm), tokens, *asked, kept])
    if not answered:
        return None
    reference = str(section(content, "costs_settings").get("reference", ""))
    text = (
        f"Medians, and in brackets the ratio to {names.get(reference, reference or 'the first arm')} on the same work, "
        "which other load on the machine moves less. Tokens are those of the vision model, before any pooling. "
        "Attention is the kernel that was timed: for compiled arms the one that they train with, for others the faster "
        "of eager and fused (sdpa)." + _measured_at(section(content, "costs_settings"))
    )
    head = ["arm", "image tokens"]
    return Section(
        "Time and memory",
        [
            Text(text),
            Table(
                [*head, *(f"{stage}, ms an image" for stage in stages), "attention", "kept for backward, MB an image"],
                trained,
                "A step of training",
            ),
            Table([*head, "first token, ms", "further question, ms", "cache, kB"], answered, "An answer"),
        ],
    )


def _measured_at(settings: Nested) -> str:
    """How often each arm was timed and on what, a sentence; nothing where the file does not say."""
    facts, turns = section(settings, "environment"), section(settings, "settings").get("repetitions")
    if not facts or not turns:
        return ""
    number = facts.get("threads")
    threads = f", {number} thread{'' if number == 1 else 's'}" if facts.get("device") == "cpu" else ""
    commit = f", git {facts['git']}" if facts.get("git") else ""
    return f" {turns} turns of each arm ({facts.get('device')}{threads}{commit}); their quartiles are in the file."


def _time(spread: Nested, divisor: int | None = 1) -> str:
    median, ratio = spread.get("median"), section(spread, "ratio").get("median")
    if median is None:
        return NOTHING
    return f"{1e3 * median / (divisor or 1):.1f}" + ("" if ratio is None else f" (× {ratio:.2f})")


def _kept(step: Nested) -> str:
    size, images = step.get("activation_bytes"), step.get("images_per_batch")
    return NOTHING if size is None or not images else f"{size / images / 1e6:.1f}"
