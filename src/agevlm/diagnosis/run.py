"""`diagnose`: a model, or two side by side, from names to a page and its files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agevlm.analysis.similarity import DEFAULT_BATCH_SIZE, Similarity, similarity
from agevlm.checkpoints import load_vlm
from agevlm.data.schema import Sample
from agevlm.diagnosis.askable import askable, unasked
from agevlm.diagnosis.asking import CONDITIONS, REQUEST, Progress, ask, presence_samples
from agevlm.diagnosis.captions import CaptionReading, read_captions
from agevlm.diagnosis.figures import Examination, differences_of, estimates_of, figures_of, reliability_of
from agevlm.diagnosis.heads import HeadReading, read_heads
from agevlm.diagnosis.lens import read_lens
from agevlm.diagnosis.page import Diagnosed, heads_record, page
from agevlm.diagnosis.pictures import Case, cards_of, cases_of
from agevlm.evaluation.benchmarks import Settings, caption_samples, test_samples
from agevlm.evaluation.results import provenance
from agevlm.evaluation.statistics import Estimate
from agevlm.files import write_beside
from agevlm.vlms import Vlm

DEFAULT_NUM_IMAGES = 100

Model = str | Path | tuple[Any, Any]  # a name, a directory, a hub id; or a model and its processor


@dataclass(frozen=True)
class Diagnosis:
    """A verdict in three sentences, and all figures as diagnosis.json has them."""

    verdict: list[str]
    record: dict[str, Any]
    page: Path


def diagnose(
    model: Model,
    data: str | Path,
    out: str | Path,
    *,
    against: Model | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Say why a model hallucinates: write index.html, diagnosis.json and arrays.npz into `out`.

    Any vision-language model of transformers. `data` is "scenes", drawn fresh, or the directory of a dataset with
    POPE's questions; captions and masks in it serve further parts, and what cannot be made is left out and said so.
    `against` is a second model, asked the same. `settings.num_images` None is 100 pictures, or all of a smaller
    dataset. Pictures and questions that one of the models cannot take are left out for both. Raises ValueError for a
    model or data that cannot be used.
    """
    settings = settings or Settings()
    settings = replace(settings, num_images=settings.num_images or DEFAULT_NUM_IMAGES)
    named = model if not isinstance(model, tuple) else "tiny"
    asked = presence_samples(test_samples(named, data, settings))
    captions: Sequence[Sample] = caption_samples(named, data, settings)
    Path(out).mkdir(parents=True, exist_ok=True)  # where nothing can be written, say so before the work
    given = [one for one in (model, against) if one is not None]
    models = list(zip([_load(one, settings) for one in given], names_of(given), strict=True))
    samples, why = askable([vlm for vlm, _ in models], asked)
    captions = [sample for sample in captions if sample.id not in why] if why else captions
    told = unasked(why, asked)
    exams = [replace(_examine(vlm, name, samples, captions, settings, progress), unasked=told) for vlm, name in models]
    figures = [figures_of(exam) for exam in exams]
    diagnosed = [Diagnosed(exam, estimates_of(of)) for exam, of in zip(exams, figures, strict=True)]
    differences = differences_of(*figures) if against is not None else {}
    cases = cases_of([(vlm, exam) for (vlm, _), exam in zip(models, exams, strict=True)], samples)
    facts = dict(zip(("model", "against"), map(_full_name, given), strict=False))
    facts |= {"data": str(data), "pictures": str(len(samples)), "seed": str(settings.seed), "split": settings.split}
    made = provenance(**facts, architectures=[type(vlm.model).__name__ for vlm, _ in models])
    record = {
        **_record(diagnosed[0]),
        **({"against": _record(diagnosed[1]), "differences": _short(differences)} if against is not None else {}),
        "unasked": why,
        "cases": [case.records[0]["id"] for case in cases],
        "provenance": made,
    }
    shown = facts | {"command": " ".join(made["command"])} | {k: str(v) for k, v in made["versions"].items()}
    html = page(diagnosed, differences, cards_of(cases, [exam.name for exam in exams]), shown)
    return Diagnosis(diagnosed[0].verdict, record, _write(Path(out), html, record, exams, cases))


def _load(model: Model, settings: Settings) -> Vlm:
    return Vlm(*model) if isinstance(model, tuple) else Vlm(*load_vlm(model, settings.device, settings.dtype))


def _full_name(model: Model) -> str:
    return type(model[0]).__name__ if isinstance(model, tuple) else str(model)


def names_of(models: Sequence[Model]) -> list[str]:
    """What models are called: the shortest ends of their names and directories that tell them apart."""
    paths = [Path(_full_name(model)) for model in models]
    paths = [Path(os.path.abspath(path)) if path.is_dir() else path for path in paths]  # links keep their names
    names: list[str] = []
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = [Path(*path.parts[-length:]).as_posix() for path in paths]
        if len(set(names)) == len(names):
            return names
    return [name if number == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _examine(
    vlm: Vlm,
    name: str,
    samples: Sequence[Sample],
    captions: Sequence[Sample],
    settings: Settings,
    progress: Progress | None,
) -> Examination:
    """All parts of one model."""
    named: Progress | None = None
    if progress is not None:
        named = lambda part, done, total: progress(f"{name}: {part}", done, total)  # noqa: E731
    return Examination(
        name,
        ask(vlm, samples, settings.batch_size, named),
        _match(vlm, captions, settings, named),
        read_heads(vlm, samples, settings.batch_size, named),
        read_lens(vlm, samples, named),
        read_captions(vlm, samples, _request(captions), settings.batch_size, named),
    )


def _request(captions: Sequence[Sample]) -> str:
    """How the data ask for a caption."""
    asked = (c.messages[0].content for sample in captions[:1] for c in sample.conversations[:1])
    return next(asked, REQUEST)


def _match(vlm: Vlm, captions: Sequence[Sample], settings: Settings, progress: Progress | None) -> Similarity | str:
    """The similarity of matching and mismatched pairs, or why there is none."""
    if vlm.note is not None:
        return vlm.note
    size = min(settings.batch_size or DEFAULT_BATCH_SIZE, DEFAULT_BATCH_SIZE)
    try:
        return similarity(
            vlm.model,
            vlm.processor,
            captions,
            seed=settings.seed,
            batch_size=size if vlm.encodes_once else min(size, 4),
            progress=None if progress is None else lambda done, total: progress("captions", done, total),
        )
    except ValueError as error:
        return str(error)


def _record(model: Diagnosed) -> dict[str, Any]:
    exam = model.exam
    found = exam.similarity
    return {
        "model": exam.name,
        "verdict": model.verdict,
        "figures": _short(model.found),
        "reliability": reliability_of(exam),
        "similarity": found.record() if isinstance(found, Similarity) else None,
        "heads": heads_record(exam.heads),
        "captions": _captions_record(exam.captions),
        "left_out": exam.left_out,
    }


def _captions_record(found: CaptionReading | str) -> dict[str, Any] | None:
    """How many words were judged, and the captions by picture; None where there are none."""
    if isinstance(found, str):
        return None
    made_up = [f"{word.image}/{word.phrase}" for word in found.words if not word.present]
    facts = {"num_words": len(found.words), "num_unknown": found.num_unknown}
    return {**facts, "made_up": made_up, "captions": dict(found.captions)}


def _short(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Mean and interval of each figure; an end that nothing bounds is null."""
    return {
        name: {key: value for key, value in known.record().items() if key in ("mean", "low", "high")}
        for name, known in found.items()
    }


def _write(
    out: Path, html: str, record: Mapping[str, Any], exams: Sequence[Examination], cases: Sequence[Case]
) -> Path:
    arrays: dict[str, Any] = {}
    for prefix, exam in zip(("", "against/"), exams, strict=False):
        if isinstance(exam.heads, HeadReading):
            arrays |= {f"{prefix}{name}": values for name, values in exam.heads.arrays().items()}
        arrays |= {
            f"{prefix}p_yes/{condition}": np.array([r["p_yes"] for r in exam.answers.records[condition]], np.float32)
            for condition in CONDITIONS
        }
    for number, case in enumerate(cases):
        arrays |= {f"case_{number}/{name}": found for name, found in case.arrays().items()}
    with write_beside(out / "arrays.npz") as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)
    with write_beside(out / "diagnosis.json") as beside:
        beside.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    with write_beside(out / "index.html") as beside:
        beside.write_text(html, encoding="utf-8")
    return out / "index.html"
