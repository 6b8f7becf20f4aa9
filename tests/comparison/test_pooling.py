"""Similarity records of several seeds as one: estimates, pooled histograms, layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agevlm.analysis.similarity_measures import Scores
from agevlm.comparison.pooling import SIMILARITY_FILE, pool_similarity, read_similarity, similarity_values


def make_record(seed: int, gap: float, layers: tuple[int, ...] = (1, 4)) -> dict[str, Any]:
    """Twelve pairs of each kind, `gap` apart, in two layers, and one measure of no layer."""
    rng = np.random.default_rng(seed)
    scores = [Scores(rng.normal(gap, 1, 12).round(5), rng.normal(0, 1, 12).round(5), layer) for layer in layers]
    headline, lone = scores[-1], Scores(scores[0].matching, scores[0].mismatched)
    return {
        "measures": {
            "cosine": {
                **headline.record(),
                "values": headline.values(),
                "layers": [of_layer.record() for of_layer in scores],
            },
            "likelihood": {**lone.record(), "values": lone.values(), "layers": []},
        }
    }


@pytest.fixture
def records() -> dict[int, dict[str, Any]]:
    return {seed: make_record(seed, gap) for seed, gap in ((0, 0.5), (1, 3.0), (4, 1.0))}


def test_figures_are_estimates_over_seeds(records: dict[int, dict[str, Any]]) -> None:
    pooled = pool_similarity(records)
    assert list(pooled) == ["cosine", "likelihood"]
    auroc = pooled["cosine"]["auroc"]
    assert auroc["values"] == [record["measures"]["cosine"]["auroc"] for record in records.values()]
    assert auroc["mean"] == pytest.approx(np.mean(auroc["values"]))
    assert auroc["seeds"] == [0, 1, 4]
    assert 0 <= auroc["low"] < auroc["mean"] < auroc["high"] <= 1
    assert pooled["cosine"]["mean_matching"]["mean"] == pytest.approx(1.5, abs=0.5)
    assert pooled["cosine"]["layer"] == 4
    assert pooled["likelihood"]["layer"] is None
    json.dumps(pooled, allow_nan=False)


def test_histograms_hold_the_pairs_of_all_seeds_in_shared_bins(records: dict[int, dict[str, Any]]) -> None:
    histogram = pool_similarity(records)["cosine"]["histogram"]
    values = [record["measures"]["cosine"]["values"] for record in records.values()]
    for kind in ("matching", "mismatched"):
        of_seeds = [np.histogram(part[kind], bins=histogram["edges"])[0] for part in values]
        assert histogram[kind] == sum(of_seeds).tolist()
        assert sum(histogram[kind]) == 36


def test_every_layer_has_its_figures(records: dict[int, dict[str, Any]]) -> None:
    pooled = pool_similarity(records)
    assert [layer["layer"] for layer in pooled["cosine"]["layers"]] == [1, 4]
    for figure in ("auroc", "overlap", "paired_accuracy"):
        assert pooled["cosine"]["layers"][1][figure] == pooled["cosine"][figure]
    assert pooled["cosine"]["layers"][0]["auroc"] == pooled["likelihood"]["auroc"]
    assert pooled["likelihood"]["layers"] == []


def test_runs_of_other_layers_are_not_pooled(records: dict[int, dict[str, Any]]) -> None:
    records[2] = make_record(2, 1.0, layers=(1, 5))
    with pytest.raises(ValueError, match=r"layers of cosine differ between seeds, {0: 4, 1: 4, 4: 4, 2: 5}"):
        pool_similarity(records)


def test_runs_without_a_record_are_left_out(records: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    directories = {seed: tmp_path / str(seed) for seed in range(3)}
    for directory in directories.values():
        directory.mkdir()
    assert pool_similarity(read_similarity(directories)) == {}
    assert similarity_values({}) == {}
    (directories[1] / SIMILARITY_FILE).write_text(json.dumps(records[1]), encoding="utf-8")
    read = read_similarity(directories)
    assert read == {1: records[1]}
    assert pool_similarity(read)["cosine"]["auroc"]["low"] is None, "one seed says nothing of others"
    assert similarity_values(read)["cosine.auroc"] == {1: records[1]["measures"]["cosine"]["auroc"]}
