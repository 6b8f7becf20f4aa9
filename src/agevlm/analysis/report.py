"""The report of a run: one HTML page with everything in it, for a browser or for paper, without scripts or links.

Reads what training and evaluation left in the run's directory; asks no model and computes no score. What is missing is
named on the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agevlm.analysis.charts import SPLITS, loss_curves, pope_bars
from agevlm.analysis.gallery import NUM_CASES, RULE, GalleryItem, choose_cases, chosen_because, gallery_groups
from agevlm.analysis.gallery_files import load_gallery
from agevlm.analysis.html import Line, Piece, chart, render
from agevlm.analysis.run_files import Run, read_run
from agevlm.files import write_beside

__all__ = ["GalleryItem", "choose_cases", "write_report"]

_POPE_COLUMNS = (
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("f1", "F1"),
    ("yes_ratio", "yes ratio"),
    ("unparsed_ratio", "unparsed"),
    ("auroc", "AUROC"),
    ("num_questions", "questions"),
)
_SKILLS = (
    ("counting.accuracy", "Counting, accuracy"),
    ("counting.mean_absolute_error", "Counting, mean error"),
    ("colour.accuracy", "Colour, accuracy"),
    ("relation.accuracy", "Spatial relation, accuracy"),
    ("location.accuracy", "Location, accuracy"),
    ("presence.colour.accuracy", "Coloured presence, accuracy"),
    ("pointing.accuracy", "Pointing: strongest point on the thing"),
    ("attention.mass", "Attention inside the mask"),
    ("attention.iou", "IoU of attention and mask"),
    ("null_token.mass_present", "Null token, words for present things"),
    ("null_token.mass_absent", "Null token, words for absent things"),
    ("null_token.auroc", "Null token tells absent from present, AUROC"),
)
_RARELY, _OFTEN = 0.1, 0.25  # up to the first share of questions "rarely", beyond the second "often"
_ONE_ANSWER = 0.1  # a smaller share of one answer: it says nearly always the other
_FEW_QUESTIONS = 200
_RULE = (
    f"The verdict goes by the adversarial split. A mistake is made “rarely” up to {_RARELY:.0%} of the questions that "
    f"allow it, “at times” up to {_OFTEN:.0%}, “often” beyond. “Nearly everything” is more than {1 - _ONE_ANSWER:.0%}."
)
Data = dict[str, Any]  # what a part of the template is given


def write_report(
    run_dir: str | Path, gallery: Sequence[GalleryItem] | None = None, *, out: str | Path | None = None
) -> Path:
    """Write the report of a run to `out` (`run_dir`/report.html) and return where it is.

    Reads recipe.yaml, log.jsonl, stages.json, metrics.json, predictions.jsonl, environment.json and probe.json; a
    file that is missing or damaged is named on the page. The gallery is `gallery`, or else what `save_gallery` left in
    the run. A directory that does not exist, or holds none of them, is a ValueError.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is no directory: give the directory of a run, as `agevlm train` writes it")
    if gallery is None and not any((run_dir / name).exists() for name in ("recipe.yaml", "log.jsonl", "metrics.json")):
        raise ValueError(f"{run_dir} holds no run: there is no recipe.yaml, log.jsonl or metrics.json in it")
    run = read_run(run_dir)
    items = gallery if gallery is not None else _part(run, "the gallery", lambda: load_gallery(run_dir)) or ()
    if not items:
        run.missing.append("the gallery: no cases were given")
    target = Path(out) if out is not None else run_dir / "report.html"
    with write_beside(target) as beside:
        beside.write_text(_page(run, items), encoding="utf-8", errors="backslashreplace")
    return target


def _part(run: Run, what: str, build: Callable[[], Any]) -> Any:
    """A part of the page; where values in the run's files are not what they should be, None, and named on the page."""
    try:
        return build()
    except MemoryError:
        raise
    except Exception as error:  # nothing says what a damaged file holds
        fault = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        run.missing.append(f"{what}: values in the run's files are damaged ({fault})")
    return None


def _page(run: Run, items: Sequence[GalleryItem]) -> str:
    sections = [
        (name, title, _part(run, title, build))
        for name, title, build in (
            ("hallucination", "Does it see what is not there?", lambda: _pope(run.metrics, run.probe)),
            ("skills", "What else it can do, and where it looks", lambda: _skills(run.metrics)),
            ("training", "How it was trained", lambda: _training(run)),
            ("gallery", "Right and wrong, picture by picture", lambda: _gallery(run, items)),
            ("provenance", "How to make it again", lambda: _provenance(run)),
        )
    ]
    head = {
        "verdict": _part(run, "the verdict", lambda: _verdict(run.metrics)),
        "facts": _part(run, "the facts", lambda: _facts(run)) or [],
        "tiles": _part(run, "the figures at the top", lambda: _tiles(run.metrics)) or [],
    }
    return render(
        "report.html.jinja",
        heading=run.name,
        rule=_RULE,
        **head,
        missing=run.missing,
        sections=[{"name": name, "title": title, "content": content} for name, title, content in sections if content],
    )


def _facts(run: Run) -> list[str]:
    minutes = sum(_number(stage, "seconds") or 0 for stage in run.stages) / 60
    facts = [f"{len(run.stages)} stages, {minutes:.1f} minutes of training"] if run.stages else []
    images, questions = (_number(run.metrics, f"provenance.num_{what}") for what in ("images", "questions"))
    if images and questions:
        facts.append(f"measured on {_count(questions)} questions about {_count(images)} {_shown(run.metrics)}")
    for name, path in (("seed", "seed"), ("git", "git.commit"), ("git", "git"), ("written", "time")):
        value = _at(run.environment, path, _at(run.metrics, f"provenance.{path}"))
        if isinstance(value, str | int):
            facts.append(f"{name} {_brief(name, str(value))}")
    return facts


def _brief(name: str, value: str) -> str:
    """A commit by its first ten digits (and the + of a changed checkout), a time to the minute."""
    return {"git": value[:10] + "+" * value.endswith("+"), "written": value[:16].replace("T", " ")}.get(name, value)


def _verdict(metrics: Mapping[str, Any]) -> Data | None:
    """What it does with questions about what is there and what is not, by `_RULE`; None without the figures for it."""
    scores = _section(metrics, "pope.adversarial")
    accuracy, yes, false_yes, recall = (
        _number(scores, key) for key in ("accuracy", "yes_ratio", "false_yes_ratio", "recall")
    )
    if accuracy is None or yes is None or false_yes is None or recall is None:
        return None
    pointing = _number(metrics, "pointing.accuracy")
    return {
        "finding": _finding(yes, false_yes, 1 - recall, _number(scores, "unparsed_ratio") or 0),
        "accuracy": f"{accuracy:.1%}",
        "absent": f"{false_yes:.1%}",
        "present": f"{recall:.1%}",
        "caution": _caution(scores),
        "pointing": None if pointing is None else f"{pointing:.1%}",
    }


def _finding(yes: float, false_yes: float, missed: float, unparsed: float) -> str:
    if unparsed > _OFTEN:
        return "often says neither yes nor no"
    if not _ONE_ANSWER <= yes <= 1 - _ONE_ANSWER:
        return f"says {'yes' if yes > 0.5 else 'no'} to nearly everything"
    found = f"{_how_often(false_yes)} sees what is not there"
    return found if missed <= _RARELY else f"{found} and {_how_often(missed)} misses what is there"


def _how_often(ratio: float) -> str:
    return "rarely" if ratio <= _RARELY else "at times" if ratio <= _OFTEN else "often"


def _caution(scores: Mapping[str, Any]) -> str | None:
    """What is to be known before the verdict is believed: that it may be guessed, or stands on few questions."""
    num = _number(scores, "num_questions")
    asked = f"{int(num):,} questions" if num else "these questions"
    interval = scores.get("accuracy_interval")
    if isinstance(interval, list) and len(interval) == 2 and interval[0] <= 0.5 <= interval[1]:
        return f"On {asked} that cannot be told from guessing."
    return f"These are {asked} only." if num and num < _FEW_QUESTIONS else None


def _tiles(metrics: Mapping[str, Any]) -> list[Data]:
    """Figures of what it was trained for."""
    ratios = (
        ("pope.adversarial", "accuracy", "POPE adversarial"),
        ("pope.random", "accuracy", "POPE random"),
        ("pope.adversarial", "yes_ratio", "Yes ratio, adversarial"),
        ("pointing", "accuracy", "Pointing at the thing"),
        ("colour", "accuracy", "Colour"),
        ("counting", "accuracy", "Counting"),
        ("relation", "accuracy", "Spatial relation"),
    )
    strange = _not_trained(metrics)
    tiles = [
        _tile(label, _section(metrics, section), key)
        for section, key, label in ratios
        if section not in strange and _number(metrics, f"{section}.{key}") is not None
    ]
    before, after = _number(metrics, "text_perplexity.before"), _number(metrics, "text_perplexity.after")
    if after is not None:
        value = [f"{after:,.2f}", *([Piece("small", f" from {before:,.2f}")] if before is not None else [])]
        under = "lower is better"
        if before and before / 2 <= after <= before * 2:
            under = f"{after / before - 1:+.1%}: {under}"
        tiles.append({"label": "Text perplexity", "value": value, "under": under, "bar": "", "first": False})
    return tiles


def _not_trained(metrics: Mapping[str, Any]) -> Sequence[str]:
    """The kinds of question that no stage trained."""
    found = _section(metrics, "provenance").get("not_trained")
    return found if isinstance(found, list) else ()


def _tile(label: str, scores: Mapping[str, Any], key: str) -> Data:
    value = float(scores[key])
    under = []
    if key == "accuracy" and _has_interval(scores):
        under.append("{:.3f} to {:.3f}".format(*scores["accuracy_interval"]))
    num = scores.get("num_questions", scores.get("num_words"))
    if num:
        under.append(f"{num:,} {'questions' if 'num_questions' in scores else 'words'}")
    return {
        "label": label,
        "value": f"{value:.3f}",
        "bar": f"{min(max(value, 0), 1):.1%}",
        "under": " · ".join(under),
        "first": label == "POPE adversarial",
    }


def _pope(metrics: Mapping[str, Any], probe: Mapping[str, Any]) -> Data | None:
    pope, biased = _splits(metrics, "pope"), _splits(metrics, "biased.pope")
    if not any(split in pope for split in SPLITS):
        return None
    bars = chart(lambda theme: pope_bars(pope, other=biased, theme=theme), "Accuracy, F1 and yes ratio of the splits")
    return {
        "bars": bars,
        "caption": f"Test {_shown(metrics)}",
        "table": _pope_table(pope, _splits(probe, "pope")),
        "probed": _at(probe, "num_pictures.test") if _splits(probe, "pope") else None,
        "biased": _pope_table(biased) if biased else None,
    }


def _shown(metrics: Mapping[str, Any]) -> str:
    """What was asked about."""
    drawn = _at(metrics, "provenance.benchmark", "scenes" if "biased" in metrics else None) == "scenes"
    return "scenes" if drawn else "pictures"


def _splits(metrics: Mapping[str, Any], path: str) -> dict[str, Mapping[str, Any]]:
    return {name: scores for name, scores in _section(metrics, path).items() if isinstance(scores, Mapping)}


def _pope_table(pope: Mapping[str, Mapping[str, Any]], probe: Mapping[str, Mapping[str, Any]] | None = None) -> Data:
    columns = [(key, label) for key, label in _POPE_COLUMNS if any(key in pope.get(split, {}) for split in SPLITS)]
    rows = [[name, *(_cell(pope[name], key) for key, _ in columns)] for name in (*SPLITS, "mean") if name in pope]
    rows += [
        [f"{name}, linear probe", *(_cell(scores, key) for key, _ in columns)] for name, scores in (probe or {}).items()
    ]
    return {"headers": ["split", *(label for _, label in columns)], "rows": rows}


def _skills(metrics: Mapping[str, Any]) -> Data | None:
    biased = _section(metrics, "biased")
    worlds = [(f"test {_shown(metrics)}", metrics), *([("biased scenes", biased)] if biased else [])]
    strange = _not_trained(metrics)
    rows: list[list[Line]] = []
    for path, label in _SKILLS:
        section, _, key = path.rpartition(".")
        label += ", not trained" if section in strange else ""
        found = [_section(world, section) for _, world in worlds]
        if any(_number(scores, key) is not None for scores in found):
            num = found[0].get("num_questions", found[0].get("num_words"))
            rows.append([label, *(_cell(scores, key) for scores in found), _count(num)])
    perplexity = _section(metrics, "text_perplexity")
    if perplexity:
        before, after = (_cell(perplexity, when) for when in ("before", "after"))
        rows.append(["Text perplexity, before → after", [*before, " → ", *after], *[""] * len(worlds)])
    return {"headers": ["", *(name for name, _ in worlds), "cases"], "rows": rows} if rows else None


def _training(run: Run) -> Data | None:
    curves = None
    if any(isinstance(line.get("lm_loss", line.get("loss")), int | float) for line in run.logs):
        curves = chart(lambda theme: loss_curves(run.logs, theme=theme), "Loss over the steps of all stages")
    return {"curves": curves, "stages": [_stage(stage) for stage in run.stages]} if curves or run.stages else None


def _stage(stage: Mapping[str, Any]) -> Data:
    trained, total = _number(stage, "trainable_parameters"), _number(stage, "total_parameters")
    seconds = stage.get("seconds")
    return {
        "name": stage.get("name", ""),
        "steps": _count(stage.get("steps")),
        "time": f"{seconds:,.0f} s" if isinstance(seconds, int | float) else "",
        "trained": _count(trained),
        "share": f" {trained / total:.0%}" if trained is not None and total else "",
        "total": _count(total),
        "modules": [(name, _count(count)) for name, count in _section(stage, "trainable_modules").items()],
    }


def _gallery(run: Run, items: Sequence[GalleryItem]) -> Data | None:
    """The cases, and the rule by which they were chosen, where it was followed."""
    if not items:
        return None
    reasons = _reasons(run.predictions, items)
    return {"rule": RULE if reasons else None, "groups": gallery_groups(items, reasons)}


def _reasons(predictions: Sequence[Mapping[str, Any]], items: Sequence[GalleryItem]) -> dict[str, str]:
    """Why each item was chosen; empty where the items are not those of the rule."""
    given = {item.id for item in items}
    for num in (len(items), NUM_CASES):
        reasons = chosen_because(predictions, num)
        if reasons.keys() == given:
            return reasons
    return {}


def _provenance(run: Run) -> Data | None:
    facts = list(_flat({**run.environment, "evaluation": _section(run.metrics, "provenance")}))
    metrics = json.dumps(run.metrics, indent=2, ensure_ascii=False) if run.metrics else ""
    return {"facts": facts, "recipe": run.recipe, "metrics": metrics} if facts or run.recipe or metrics else None


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as dotted names and text; a list becomes one line."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _at(nested: Any, path: str, default: Any = None) -> Any:
    """The value under a dotted path, or `default`."""
    for name in path.split("."):
        if not isinstance(nested, Mapping) or name not in nested:
            return default
        nested = nested[name]
    return nested


def _section(nested: Any, path: str) -> Mapping[str, Any]:
    """The section under a dotted path; an empty one where there is none."""
    section = _at(nested, path)
    return section if isinstance(section, Mapping) else {}


def _number(nested: Any, path: str) -> float | None:
    value = _at(nested, path)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _has_interval(scores: Mapping[str, Any]) -> bool:
    """Whether accuracy has an interval that says something: it has no width where all pictures have one share right."""
    interval = scores.get("accuracy_interval")
    return isinstance(interval, list) and len(interval) == 2 and interval[0] != interval[1]


def _cell(scores: Mapping[str, Any], key: str) -> list[str | Piece]:
    value = _number(scores, key)
    if value is None:
        return [Piece("faint", "–")]
    if key.startswith("num_"):
        return [_count(value)]
    if key == "accuracy" and _has_interval(scores):
        low, high = scores["accuracy_interval"]
        return [f"{value:.3f}", Piece("small", f" ±{(high - low) / 2:.3f}")]
    return [f"{value:.3f}"]


def _count(value: object) -> str:
    return f"{int(value):,}" if isinstance(value, int | float) else ""
