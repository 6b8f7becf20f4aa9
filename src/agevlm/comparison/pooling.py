"""What the runs of one arm say together of what each measured by itself: similarity of pictures and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agevlm.analysis.similarity_measures import histograms
from agevlm.evaluation.statistics import UNBOUNDED, Groups, estimate_of_seeds

SIMILARITY_FILE = "similarity.json"  # beside the checkpoint of a run, as `agevlm similarity` writes it
_RATIOS = ("auroc", "paired_accuracy", "overlap")
_MEANS = ("mean_matching", "mean_mismatched")

Record = Mapping[str, Any]


def read_similarity(directories: Mapping[int, Path]) -> dict[int, Record]:
    """Seed → the similarity record in the directory of its run, of the runs that have one."""
    files = {seed: directory / SIMILARITY_FILE for seed, directory in directories.items()}
    return {seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in files.items() if file.exists()}


def similarity_values(records: Mapping[int, Record]) -> dict[str, dict[int, float]]:
    """`MEASURE.FIGURE` → seed → the headline's AUROC, paired accuracy, overlap or mean, for differences of arms."""
    return {
        f"{measure}.{figure}": {seed: float(record["measures"][measure][figure]) for seed, record in records.items()}
        for measure in _measures(records)
        for figure in (*_RATIOS, *_MEANS)
    }


def pool_similarity(records: Mapping[int, Record], groups: Groups = None) -> dict[str, Any]:
    """Measure → its figures over seeds, {} for no record; `groups` as `statistics` has them.

    Each figure of the headline is an estimate over seeds; `histogram` counts the pairs of all seeds in shared bins.
    `layers` has the layer number and the AUROC, paired accuracy and overlap of every layer. Records that differ in
    their layers are a ValueError: they are no runs of one arm.
    """
    values = similarity_values(records)
    return {
        measure: {
            "layer": _shared(records, measure, lambda found: found["layer"]),
            **{name: _estimate(values[f"{measure}.{name}"], name, groups) for name in (*_RATIOS, *_MEANS)},
            "histogram": _pooled_histogram(records, measure),
            "layers": _layers(records, measure, groups),
        }
        for measure in _measures(records)
    }


def _measures(records: Mapping[int, Record]) -> list[str]:
    return list(next(iter(records.values()))["measures"]) if records else []


def _estimate(values: Mapping[int, float], name: str, groups: Groups) -> dict[str, Any]:
    bounds = (0.0, 1.0) if name in _RATIOS else UNBOUNDED
    return estimate_of_seeds(values, bounds=bounds, groups=groups).record()


def _shared(records: Mapping[int, Record], measure: str, of: Any) -> Any:
    found = {seed: of(record["measures"][measure]) for seed, record in records.items()}
    first = next(iter(found.values()))
    if any(other != first for other in found.values()):
        raise ValueError(f"the layers of {measure} differ between seeds, {found}: pool the runs of one arm")
    return first


def _layers(records: Mapping[int, Record], measure: str, groups: Groups) -> list[dict[str, Any]]:
    numbers = _shared(records, measure, lambda found: [scores["layer"] for scores in found["layers"]])
    rows = []
    for place, layer in enumerate(numbers):
        of_seed = {seed: record["measures"][measure]["layers"][place] for seed, record in records.items()}
        figures = {name: {seed: found[name] for seed, found in of_seed.items()} for name in _RATIOS}
        rows.append({"layer": layer, **{name: _estimate(values, name, groups) for name, values in figures.items()}})
    return rows


def _pooled_histogram(records: Mapping[int, Record], measure: str) -> dict[str, Any]:
    matching, mismatched = (
        np.concatenate([record["measures"][measure]["values"][kind] for record in records.values()])
        for kind in ("matching", "mismatched")
    )
    edges, first, second = histograms(matching, mismatched)
    return {"edges": edges, "matching": first, "mismatched": second}
