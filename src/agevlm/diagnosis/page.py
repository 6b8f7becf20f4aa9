"""The page of a diagnosis: plain data for its template, and the charts. Asks no model and computes no score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agevlm.analysis.charts import MEASURE_TITLES, PairHistogram, pair_histograms
from agevlm.analysis.gallery import RULE
from agevlm.analysis.html import Line, Piece, chart, render
from agevlm.analysis.similarity import Similarity
from agevlm.diagnosis import drawings
from agevlm.diagnosis.figures import DETECTORS, Examination, distinct, reliability_of, splits_of, verdict
from agevlm.diagnosis.heads import HeadReading
from agevlm.evaluation.statistics import Estimate

NUM_RANKED = 8
_LOOKING = (("mass", "mass in the mask"), ("pointing", "pointing"))
Estimates = Mapping[str, Estimate]
Data = dict[str, Any]


@dataclass(frozen=True)
class Diagnosed:
    """A model's examination and its figures with intervals."""

    exam: Examination
    found: Estimates

    @property
    def verdict(self) -> list[str]:
        """Three sentences."""
        return verdict(self.exam, self.found)


def page(models: Sequence[Diagnosed], differences: Estimates, cards: Sequence[Data], facts: Mapping[str, str]) -> str:
    """One self-contained HTML page about the first model, beside the second where there is one."""
    sections = (
        ("against", "Side by side", _against(models, differences)),
        ("answers", "Does it answer from the picture?", _answers(models[0])),
        ("matching", "Does it tell a matching picture?", _matching(models)),
        ("looking", "Does it look?", _looking(models)),
        ("words", "Which words are made up?", _words(models)),
        ("pictures", "Pictures", {"rule": RULE, "cards": cards}),
        ("provenance", "How to make it again", {"facts": list(facts.items())}),
    )
    return render(
        "diagnosis.html.jinja",
        heading=models[0].exam.name,
        other=models[1].exam.name if len(models) > 1 else None,
        sentences=models[0].verdict,
        asked=_asked(models[0]),
        tiles=_tiles(models[0]),
        missing=[f"{part}: {reason}" for part, reason in models[0].exam.left_out.items()],
        sections=[{"name": name, "title": title, "content": content} for name, title, content in sections if content],
    )


def _asked(model: Diagnosed) -> str:
    """How much the figures stand on."""
    records = distinct(model.exam.answers.records["picture"])
    num_images = len({record["image"] for record in records})
    return f"{len(records):,} questions about {num_images:,} pictures"


def _tiles(model: Diagnosed) -> list[Data]:
    split = splits_of(model.exam.answers.records["picture"])[-1]
    detectors = [name for name in DETECTORS if f"made_up.{name}.auroc" in model.found]
    best = max(detectors, key=lambda name: model.found[f"made_up.{name}.auroc"].mean, default=None)
    wanted = (
        (f"answers.picture.{split}.accuracy", f"Accuracy, {split}"),
        (f"answers.other.{split}.accuracy", "With another picture"),
        ("looking.best_head.mass", "Best head, mass in mask"),
        (f"made_up.{best}.auroc", f"Made-up words, by {DETECTORS[best] if best else ''}"),
    )
    return [
        _tile(label, model.found[name], number == 0)
        for number, (name, label) in enumerate(wanted)
        if name in model.found
    ]


def _tile(label: str, known: Estimate, first: bool) -> Data:
    under = f"{known.low:.3f} to {known.high:.3f}"
    return {"label": label, "value": f"{known.mean:.3f}", "bar": f"{known.mean:.1%}", "under": under, "first": first}


def _cell(known: Estimate | None) -> Line:
    if known is None:
        return [Piece("faint", "–")]
    return [f"{known.mean:.3f}", Piece("small", f" {known.low:.3f} to {known.high:.3f}")]


def _answers(model: Diagnosed) -> Data:
    splits = splits_of(model.exam.answers.records["picture"])
    names = ("accuracy", "false_yes_ratio", "yes_ratio", "unparsed_ratio", "auroc", "p_yes_present", "p_yes_absent")
    rows: list[list[Line]] = []
    for split in splits:
        for condition, label in drawings.CONDITION_NAMES.items():
            known = [model.found.get(f"answers.{condition}.{split}.{name}") for name in names]
            rows.append([f"{split}, {label}", *(f"{k.mean:.3f}" if k else "–" for k in known)])
    bars = chart(lambda theme: drawings.condition_bars(model.found, splits, theme), "Accuracy by split and picture")
    bins = reliability_of(model.exam)
    return {
        "bars": bars,
        "headers": ["", "accuracy", "false yes", "yes ratio", "neither", "AUROC", "P(yes), there", "P(yes), not there"],
        "rows": rows,
        "calibration": chart(lambda theme: drawings.reliability(bins, theme), "Share that is there over P(yes)"),
        "error": _cell(model.found.get("calibration.error")),
    }


def _matching(models: Sequence[Diagnosed]) -> Data | None:
    found = models[0].exam.similarity
    if not isinstance(found, Similarity):
        return None
    record = found.record()
    panels = [
        PairHistogram(
            MEASURE_TITLES.get(name, name), f"AUROC {m['auroc']:.3f} · overlap {m['overlap']:.2f}", **m["histogram"]
        )
        for name, m in record["measures"].items()
    ]
    lines = {
        MEASURE_TITLES.get(name, name): ([row["layer"] for row in m["layers"]], [row["auroc"] for row in m["layers"]])
        for name, m in record["measures"].items()
        if m["layers"]
    }
    return {
        "num_pairs": record["num_pairs"],
        "layer": record["headline_layer"],
        "histograms": chart(lambda theme: pair_histograms(panels, theme=theme), "Histograms of both kinds of pairs"),
        "layers": chart(lambda theme: drawings.layer_lines(lines, "AUROC", theme, 0.5), "AUROC by layer"),
    }


def _looking(models: Sequence[Diagnosed]) -> Data | None:
    heads, found = models[0].exam.heads, models[0].found
    if not isinstance(heads, HeadReading) or "looking.mean.mass" not in found:
        return None
    names = (("best_head", "best head"), ("mean", "all heads, mean map"), ("chance", "looking nowhere in particular"))
    rows = [
        [label, *(_cell(found.get(f"looking.{who}.{p}{m}")) for m, _ in _LOOKING for p in ("", "corrected_"))]
        for who, label in names
    ]
    headers = ["", *(f"{label}{more}" for _, label in _LOOKING for more in ("", ", without sinks"))]
    lines = {
        "on the picture, of all attention": heads.on_picture,
        "of that in the mask": heads.heads["mass"],
        "of that on sinks": heads.sunk,
    }
    told = ~heads.is_ranking
    by_layer = {name: (heads.layers, values[told].mean((0, 2)).tolist()) for name, values in lines.items()}
    grid = heads.heads["corrected_mass"][told].mean(0)
    best = heads.ranked()[0]
    label = "mass in the mask, without sinks"
    return {
        "num_words": int(told.sum()),
        "headers": headers,
        "rows": rows,
        "grid": chart(lambda t: drawings.head_grid(grid, heads.layers, best, label, t), "Heads by layer"),
        "layers": chart(lambda t: drawings.layer_lines(by_layer, "mean over heads", t), "Attention by layer"),
        "ranking": _ranking(heads),
    }


def _ranking(heads: HeadReading) -> list[list[Line]]:
    told = ~heads.is_ranking
    rows: list[list[Line]] = []
    for rank, (place, head) in enumerate(heads.ranked()[:NUM_RANKED], start=1):
        ranked = heads.heads["corrected_mass"][~told, place, head].mean()
        figures = [heads.heads[name][told, place, head].mean() for name in ("mass", "corrected_mass", "pointing")]
        named = f"layer {heads.layers[place]}, head {head}"
        rows.append([f"{rank}. {named}", f"{ranked:.3f}", *(f"{value:.3f}" for value in figures)])
    return rows


def _words(models: Sequence[Diagnosed]) -> Data | None:
    names = [name for name in DETECTORS if any(f"made_up.{name}.auroc" in model.found for model in models)]
    names = [name for name in names if f"made_up.{name}.auroc" in models[0].found]
    if not names:
        return None
    rows = [(DETECTORS[name], [models[0].found[f"made_up.{name}.auroc"]]) for name in names]
    alone = [models[0].exam.name]
    return {
        "dots": chart(lambda theme: drawings.interval_dots(rows, alone, theme), "AUROC of each detector"),
        "headers": ["", "AUROC"],
        "rows": [[label, _cell(known[0])] for label, known in rows],
        "captions": _caption_words(models[0]),
    }


def _caption_words(model: Diagnosed) -> Data | None:
    reading = model.exam.captions
    if isinstance(reading, str):
        return None
    figures = [(label, f"captions.{name}.auroc") for name, label in DETECTORS.items()]
    rows = [[label, _cell(model.found[name])] for label, name in figures if name in model.found]
    num_made_up = sum(not word.present for word in reading.words)
    return {"num_words": len(reading.words), "num_made_up": num_made_up, "headers": ["", "AUROC"], "rows": rows}


def _against(models: Sequence[Diagnosed], differences: Estimates) -> Data | None:
    if len(models) < 2:
        return None
    aside = ("yes_ratio", "unparsed_ratio", "p_yes_present", "p_yes_absent")  # these stand in diagnosis.json
    kept = [name for name in differences if not name.endswith(aside)]
    rows = []
    for name in kept:
        gap = differences[name]
        clear = gap.low > 0 or gap.high < 0
        shown = f"{gap.mean:+.3f}"
        rows.append(
            [
                _readable(name),
                *(f"{model.found[name].mean:.3f}" for model in models),
                [Piece("strong", shown) if clear else shown, Piece("small", f" {gap.low:+.3f} to {gap.high:+.3f}")],
            ]
        )
    other = {"name": models[1].exam.name, "sentences": models[1].verdict, "missing": list(models[1].exam.left_out)}
    return {"headers": ["", *(model.exam.name for model in models), "difference"], "rows": rows, "other": other}


def _readable(name: str) -> str:
    """A dotted name in words."""
    part, *rest = name.split(".")
    words = {**drawings.CONDITION_NAMES, **MEASURE_TITLES, **DETECTORS, "best_head": "best head", "auroc": "AUROC"}
    named = [words.get(word, word.replace("_", " ")) for word in rest]
    return f"{part.replace('_', ' ')}: {', '.join(named)}"


def heads_record(heads: HeadReading | str) -> Data | None:
    """The ranking as JSON has it, all heads, best first."""
    if isinstance(heads, str):
        return None
    told = ~heads.is_ranking
    ranking = []
    for place, head in heads.ranked():
        of_head = {name: float(np.mean(values[told, place, head])) for name, values in heads.heads.items()}
        ranked = float(np.mean(heads.heads["corrected_mass"][~told, place, head]))
        ranking.append({"layer": heads.layers[place], "head": head, "ranked_by": ranked, **of_head})
    return {"layers": list(heads.layers), "num_words": len(heads.ids), "ranking": ranking}
