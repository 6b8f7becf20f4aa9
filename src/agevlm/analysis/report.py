"""The report of a run: one HTML page with everything in it, for a browser or for paper, without scripts or links.

Reads what training and evaluation left in the run's directory; asks no model and computes no score. What is missing is
named on the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agevlm.analysis.charts import SPLITS, loss_curves, pope_bars
from agevlm.analysis.gallery import NUM_CASES, RULE, GalleryItem, choose_cases, chosen_because, gallery_html
from agevlm.analysis.gallery_files import load_gallery
from agevlm.analysis.html import Html, chart, join, table, tag
from agevlm.analysis.run_files import Run, read_run
from agevlm.analysis.style import CSS
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
_VERDICT_RULE = (
    "The verdict goes by the adversarial split: from 0.90 with a yes ratio of 0.45 to 0.56 “rarely”, from 0.80 “at "
    "times”, below that “often”."
)


def write_report(
    run_dir: str | Path, gallery: Sequence[GalleryItem] | None = None, *, out: str | Path | None = None
) -> Path:
    """Write the report of a run to `out` (`run_dir`/report.html) and return where it is.

    Reads recipe.yaml, log.jsonl, stages.json, metrics.json, predictions.jsonl and environment.json; a file that is
    missing or damaged is named on the page. The gallery is `gallery`, or else what `save_gallery` left in the run.
    A directory that does not exist, or holds none of them, is a ValueError.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is no directory: give the directory of a run, as `agevlm train` writes it")
    if gallery is None and not any((run_dir / name).exists() for name in ("recipe.yaml", "log.jsonl", "metrics.json")):
        raise ValueError(f"{run_dir} holds no run: there is no recipe.yaml, log.jsonl or metrics.json in it")
    run = read_run(run_dir)
    items = load_gallery(run_dir) if gallery is None else gallery
    if not items:
        run.missing.append("the gallery: no cases were given")
    target = Path(out) if out is not None else run_dir / "report.html"
    with write_beside(target) as beside:
        beside.write_text(_page(run, items), encoding="utf-8")
    return target


def _page(run: Run, items: Sequence[GalleryItem]) -> str:
    sections = [
        ("hallucination", "Does it see what is not there?", _pope_section(run.metrics)),
        ("skills", "What else it can do, and where it looks", _skills_section(run.metrics)),
        ("training", "How it was trained", _training_section(run)),
        ("gallery", "Right and wrong, picture by picture", _gallery_section(run, items)),
        ("provenance", "How to make it again", _provenance_section(run)),
    ]
    present = [(name, title, content) for name, title, content in sections if content]
    main = tag(
        "main",
        _head(run),
        tag("nav", *(tag("a", title, href=f"#{name}") for name, title, _ in present)),
        _tiles(run.metrics),
        _missing(run.missing),
        *(tag("section", tag("h2", title, id=name), content) for name, title, content in present),
        tag(
            "footer",
            "Written by agevlm. ",
            _VERDICT_RULE,
            " All ratios lie between 0 and 1; intervals, and ±, hold 95 %.",
        ),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{run.name} · AGE-VLM report"),
        tag("style", Html(CSS)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", main), lang="en-GB") + "\n"


def _head(run: Run) -> Html:
    minutes = sum(_number(stage, "seconds") or 0 for stage in run.stages) / 60
    facts = [f"{len(run.stages)} stages, {minutes:.1f} minutes of training"] if run.stages else []
    for name, path in (("seed", "seed"), ("git", "git.commit"), ("git", "git"), ("written", "time")):
        value = _at(run.environment, path, _at(run.metrics, f"provenance.{path}"))
        if isinstance(value, str | int):
            facts.append(f"{name} {_brief(name, str(value))}")
    return tag(
        "header",
        tag("p", "Attention-guided VLM · report of a run", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", _verdict(run.metrics), class_="verdict"),
        tag("p", " · ".join(facts), class_="faint") if facts else None,
    )


def _brief(name: str, value: str) -> str:
    """A commit by its first ten digits (and the + of a changed checkout), a time to the minute."""
    return {"git": value[:10] + "+" * value.endswith("+"), "written": value[:16].replace("T", " ")}.get(name, value)


def _verdict(metrics: Mapping[str, Any]) -> Html:
    accuracy, yes = _number(metrics, "pope.adversarial.accuracy"), _number(metrics, "pope.adversarial.yes_ratio")
    if accuracy is None or yes is None:
        return join(["No verdict: the run has no figures for POPE’s adversarial split."])
    even = 0.45 <= yes <= 0.56
    frequency = "rarely" if accuracy >= 0.9 and even else "at times" if accuracy >= 0.8 else "often"
    parts = [
        "It ",
        tag("strong", f"{frequency} sees what is not there"),
        f": {accuracy:.1%} of the adversarial questions right, with a yes to {yes:.1%} of them",
    ]
    pointing = _number(metrics, "pointing.accuracy")
    if pointing is not None:
        parts.append(f". For {pointing:.1%} of the object words its attention peaks on the thing itself")
    return join([*parts, "."])


def _tiles(metrics: Mapping[str, Any]) -> Html | None:
    ratios = (
        ("pope.adversarial", "accuracy", "POPE adversarial"),
        ("pope.random", "accuracy", "POPE random"),
        ("pope.adversarial", "yes_ratio", "Yes ratio, adversarial"),
        ("pointing", "accuracy", "Pointing at the thing"),
        ("colour", "accuracy", "Colour"),
        ("counting", "accuracy", "Counting"),
        ("relation", "accuracy", "Spatial relation"),
    )
    tiles = [
        _tile(label, _section(metrics, section), key)
        for section, key, label in ratios
        if _number(metrics, f"{section}.{key}") is not None
    ]
    before, after = _number(metrics, "text_perplexity.before"), _number(metrics, "text_perplexity.after")
    if after is not None:
        value = join([f"{after:.2f}", tag("small", f" from {before:.2f}") if before is not None else None])
        under = f"{after / before - 1:+.1%}: lower is better" if before else "lower is better"
        tiles.append(
            tag(
                "div",
                tag("div", "Text perplexity", class_="label"),
                tag("div", value, class_="value"),
                tag("div", under, class_="under"),
                class_="tile",
            )
        )
    return tag("div", *tiles, class_="tiles") if tiles else None


def _tile(label: str, scores: Mapping[str, Any], key: str) -> Html:
    value = float(scores[key])
    under = []
    if key == "accuracy" and _interval(scores):
        under.append("{:.3f} to {:.3f}".format(*scores["accuracy_interval"]))
    num = scores.get("num_questions", scores.get("num_words"))
    if num:
        under.append(f"{num:,} {'questions' if 'num_questions' in scores else 'words'}")
    return tag(
        "div",
        tag("div", label, class_="label"),
        tag("div", f"{value:.3f}", class_="value"),
        tag("div", tag("i", style=f"width:{min(max(value, 0), 1):.1%}"), class_="bar"),
        tag("div", " · ".join(under), class_="under"),
        class_="tile first" if label == "POPE adversarial" else "tile",
    )


def _missing(missing: Sequence[str]) -> Html | None:
    if not missing:
        return None
    return tag(
        "div", tag("strong", "Not on this page"), tag("ul", *(tag("li", line) for line in missing)), class_="note"
    )


def _pope_section(metrics: Mapping[str, Any]) -> Html | None:
    pope, biased = _splits(metrics, "pope"), _splits(metrics, "biased.pope")
    if not any(split in pope for split in SPLITS):
        return None
    intro = (
        "POPE asks “is there a …?” as often about things that are there as about things that are not. What is absent "
        "is drawn at random, among the most common things, or (adversarial) among those that usually come with what is "
        "there. A model that follows the words and not the picture says yes too often."
    )
    if biased:
        intro += " Diamonds: the same on scenes with the training’s co-occurrence."
    bars = chart(lambda theme: pope_bars(pope, other=biased, theme=theme), "Accuracy, F1 and yes ratio of the splits")
    tables = [tag("div", _pope_table(pope, "Test scenes"), class_="sheet")]
    if biased:
        tables.append(
            tag("div", _pope_table(biased, "Scenes with the training’s co-occurrence (biased)"), class_="sheet")
        )
    return join([tag("p", intro, class_="intro"), tag("div", bars, class_="sheet"), *tables])


def _splits(metrics: Mapping[str, Any], path: str) -> dict[str, Mapping[str, Any]]:
    return {name: scores for name, scores in _section(metrics, path).items() if isinstance(scores, Mapping)}


def _pope_table(pope: Mapping[str, Mapping[str, Any]], caption: str) -> Html:
    columns = [(key, label) for key, label in _POPE_COLUMNS if any(key in pope.get(split, {}) for split in SPLITS)]
    rows = [[name, *(_cell(pope[name], key) for key, _ in columns)] for name in (*SPLITS, "mean") if name in pope]
    return table(["split", *(label for _, label in columns)], rows, caption=caption)


def _skills_section(metrics: Mapping[str, Any]) -> Html | None:
    biased = _section(metrics, "biased")
    worlds = [("test scenes", metrics), *([("biased scenes", biased)] if biased else [])]
    rows = []
    for path, label in _SKILLS:
        section, _, key = path.rpartition(".")
        found = [_section(world, section) for _, world in worlds]
        if any(_number(scores, key) is not None for scores in found):
            num = found[0].get("num_questions", found[0].get("num_words"))
            rows.append([label, *(_cell(scores, key) for scores in found), _count(num)])
    perplexity = _section(metrics, "text_perplexity")
    if perplexity:
        before, after = (_cell(perplexity, when) for when in ("before", "after"))
        rows.append(["Text perplexity, before → after", join([before, " → ", after]), *[""] * len(worlds)])
    if not rows:
        return None
    return tag("div", table(["", *(name for name, _ in worlds), "cases"], rows), class_="sheet")


def _training_section(run: Run) -> Html | None:
    parts: list[object] = []
    if any(isinstance(line.get("lm_loss", line.get("loss")), int | float) for line in run.logs):
        curves = chart(lambda theme: loss_curves(run.logs, theme=theme), "Loss over the steps of all stages")
        parts.append(tag("div", curves, class_="sheet"))
    if run.stages:
        rows = [_stage_row(number, stage) for number, stage in enumerate(run.stages, start=1)]
        headers = ["stage", "steps", "time", "trained parameters", "of", "trained modules"]
        parts.append(tag("div", table(headers, rows), class_="sheet stages"))
    return join(parts) if parts else None


def _stage_row(number: int, stage: Mapping[str, Any]) -> list[object]:
    trained, total = _number(stage, "trainable_parameters"), _number(stage, "total_parameters")
    modules = _section(stage, "trainable_modules")
    chips = [tag("span", name, " ", tag("b", _count(count)), class_="chip") for name, count in modules.items()]
    seconds = stage.get("seconds")
    share = f" {trained / total:.0%}" if trained is not None and total else ""
    return [
        join([tag("small", f"{number}  "), stage.get("name", "")]),
        _count(stage.get("steps")),
        f"{seconds:,.0f} s" if isinstance(seconds, int | float) else "",
        join([_count(trained), tag("small", share)]),
        _count(total),
        tag("div", *chips, class_="modules"),
    ]


def _gallery_section(run: Run, items: Sequence[GalleryItem]) -> Html | None:
    if not items:
        return None
    reasons = _reasons(run.predictions, items)
    rule = RULE if reasons else "The caller of the report chose these cases, not its rule."
    key = (
        "Beside each picture, one panel for each object word: bright is where the model looked when it read or wrote "
        "the word, the cross is its strongest cell, an outline is where the thing is."
    )
    return join([tag("p", rule, " ", key, class_="intro"), gallery_html(items, reasons)])


def _reasons(predictions: Sequence[Mapping[str, Any]], items: Sequence[GalleryItem]) -> dict[str, str]:
    """Why each item was chosen; empty where the items are not those of the rule."""
    given = {item.id for item in items}
    for num in (len(items), NUM_CASES):
        reasons = chosen_because(predictions, num)
        if reasons.keys() == given:
            return reasons
    return {}


def _provenance_section(run: Run) -> Html | None:
    facts = {**run.environment, "evaluation": _section(run.metrics, "provenance")}
    parts: list[object] = []
    entries = [part for key, value in _flat(facts) for part in (tag("dt", key), tag("dd", value))]
    if entries:
        parts.append(tag("div", tag("dl", *entries, class_="facts"), class_="sheet"))
    if run.recipe:
        parts.append(tag("details", tag("summary", "The recipe, as resolved"), tag("pre", run.recipe)))
    if run.metrics:
        written = json.dumps(run.metrics, indent=2, ensure_ascii=False)
        parts.append(tag("details", tag("summary", "All figures, as JSON"), tag("pre", written)))
    return join(parts) if parts else None


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


def _interval(scores: Mapping[str, Any]) -> bool:
    interval = scores.get("accuracy_interval")
    return isinstance(interval, list) and len(interval) == 2


def _cell(scores: Mapping[str, Any], key: str) -> Html:
    value = _number(scores, key)
    if value is None:
        return tag("span", "–", class_="faint")
    if key.startswith("num_"):
        return join([_count(value)])
    half = ""
    if key == "accuracy" and _interval(scores):
        low, high = scores["accuracy_interval"]
        half = f" ±{(high - low) / 2:.3f}"
    return join([f"{value:.3f}", tag("small", half) if half else None])


def _count(value: object) -> str:
    return f"{int(value):,}" if isinstance(value, int | float) else ""
