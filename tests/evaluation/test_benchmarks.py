"""The scenes benchmark and both ways to run one, end to end on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agevlm.data.parquet import write_parquet
from agevlm.data.rows import Record
from agevlm.data.scenes import CATEGORIES, PARTNERS, WorldSpec, split_seed
from agevlm.data.schema import Sample
from agevlm.evaluation.benchmarks import Settings, evaluate_benchmark, evaluate_scenes
from agevlm.evaluation.scenes import scenes_benchmark, training_statistics

from .conftest import tiny_model

WORLD = WorldSpec()


@pytest.fixture(scope="module")
def statistics() -> list[Any]:
    return training_statistics(WORLD, 0, 200)


@pytest.fixture(scope="module")
def saved(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a model with closed gates and of its language model alone."""
    directory = tmp_path_factory.mktemp("checkpoints")
    model = tiny_model(processor)
    with torch.no_grad():
        for layer in model.cross_attention:
            layer.attn_gate.zero_()
            layer.mlp_gate.zero_()
    model.save_pretrained(directory / "vlm")
    processor.save_pretrained(directory / "vlm")
    model.language_model.save_pretrained(directory / "lm")
    processor.tokenizer.save_pretrained(directory / "lm")
    return directory / "vlm", directory / "lm"


def test_split_seeds_never_meet() -> None:
    seeds = {split: {split_seed(split, seed) for seed in range(200)} for split in ("train", "validation", "test")}
    assert all(len(found) == 200 for found in seeds.values())
    assert max(seeds["train"]) < min(seeds["validation"])
    assert max(seeds["validation"]) < min(seeds["test"])
    assert split_seed("test", 7) == split_seed("test", 7)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        split_seed("dev", 0)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        split_seed("test", -1)


def test_benchmark_is_fresh_for_each_seed_and_split(statistics: list[Any]) -> None:
    def draw(seed: int, split: str) -> list[Sample]:
        return scenes_benchmark(WORLD, seed, 4, split=split, statistics=statistics)

    first = draw(0, "test")
    assert draw(0, "test") == first
    pictures = {sample.images[0].data for sample in first}
    assert not pictures & {sample.images[0].data for sample in draw(1, "test")}
    assert not pictures & {sample.images[0].data for sample in draw(0, "validation")}
    kinds = {conversation.kind for sample in first for conversation in sample.conversations}
    assert kinds >= {"pope.random", "pope.popular", "pope.adversarial", "counting", "colour", "presence.colour"}
    ids = [conversation.id for sample in first for conversation in sample.conversations]
    assert len(set(ids)) == len(ids)


def test_adversarial_questions_follow_the_training_world(statistics: list[Any]) -> None:
    samples = scenes_benchmark(WORLD.model_copy(update={"co_occurrence": 0.0}), 3, 30, statistics=statistics)
    partners = others = 0
    for sample in samples:
        conversations = [c for c in sample.conversations if c.kind == "pope.adversarial"]
        present = {c.groundings[0].phrase for c in conversations if c.groundings[0].present}
        absent = {c.groundings[0].phrase for c in conversations if not c.groundings[0].present}
        partners += sum(PARTNERS[name] in present for name in absent)
        others += sum(PARTNERS[name] not in present for name in absent)
    assert partners > others


def test_scenes_end_to_end(saved: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, lm = saved
    calls: list[tuple[str, int, int]] = []
    settings = Settings(seed=5, num_images=3, batch_size=7, device="cpu", language_model=str(lm))
    metrics = evaluate_scenes(vlm, tmp_path, settings, progress=lambda *call: calls.append(call))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == json.loads(json.dumps(metrics))
    for path in ("pope.random.accuracy", "pope.adversarial.yes_ratio", "counting.accuracy", "colour.accuracy"):
        value: Any = metrics
        for name in path.split("."):
            value = value[name]
        assert 0 <= value <= 1
    assert 0 <= metrics["pointing"]["accuracy"] <= 1
    assert set(metrics["biased"]["pope"]) == {"random", "popular", "adversarial", "mean"}
    perplexity = metrics["text_perplexity"]
    assert perplexity["before"] == pytest.approx(perplexity["after"], rel=1e-5)  # the gates are closed
    assert metrics["provenance"]["seed"] == 5
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert metrics["provenance"]["num_questions"] == len(lines)
    assert (tmp_path / "biased" / "predictions.jsonl").is_file()
    assert "training's co-occurrence" in (tmp_path / "metrics.md").read_text(encoding="utf-8")
    assert calls == [("test", 3, 3), ("biased", 3, 3)]


def test_the_recipe_beside_the_checkpoint_tells_the_world_and_the_language_model(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    vlm, lm = saved
    recipe = vlm / "recipe.yaml"
    recipe.write_text(f"model: {{language_model: {lm}}}\ndata: {{scenes: {{scenes: {{max_objects: 2}}}}}}\n", "utf-8")
    try:
        metrics = evaluate_benchmark(vlm, "scenes", tmp_path, Settings(num_images=8, device="cpu"))
    finally:
        recipe.unlink()
    assert metrics["provenance"]["world"]["max_objects"] == 2
    assert metrics["text_perplexity"]["before"] is not None
    assert set(metrics["counting"]["by_number"]) <= {"0", "1", "2"}


def test_kinds_that_no_stage_trained_are_named_and_told_in_the_table(saved: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = saved[0] / "recipe.yaml"
    mixtures = "stages: [{kinds: {presence: 1.0, colour: 0}}, {kinds: {relation.choice: 0.5}}]\n"
    try:
        recipe.write_text(mixtures, "utf-8")
        metrics = evaluate_benchmark(saved[0], "scenes", tmp_path / "few", Settings(num_images=8, device="cpu"))
        recipe.write_text("stages: [{name: all}]\n", "utf-8")
        whole = evaluate_benchmark(saved[0], "scenes", tmp_path / "all", Settings(num_images=2, device="cpu"))
    finally:
        recipe.unlink()
    strange = metrics["provenance"]["not_trained"]
    assert {"counting", "colour", "relation.yes_no"} <= set(strange)
    assert not set(strange) & {"presence", "relation", "relation.choice", "pope", "pope.random"}
    table = (tmp_path / "few" / "metrics.md").read_text(encoding="utf-8")
    assert "| counting (not trained) |" in table and "| relation |" in table
    assert "not_trained" not in whole["provenance"]


@pytest.mark.parametrize("stages", ["5", "[4]", "[{kinds: 3}]", "{a: 1}"])
def test_a_recipe_with_damaged_stages_is_told(saved: tuple[Path, Path], tmp_path: Path, stages: str) -> None:
    recipe = saved[0] / "recipe.yaml"
    recipe.write_text(f"stages: {stages}\n", "utf-8")
    try:
        with pytest.raises(ValueError, match=r"recipe\.yaml is no recipe"):
            evaluate_benchmark(saved[0], "scenes", tmp_path, Settings(num_images=1, device="cpu"))
    finally:
        recipe.unlink()


def test_stored_dataset(saved: tuple[Path, Path], samples: list[Sample], tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", [Record(sample) for sample in samples], name="squares", vocabulary=CATEGORIES)
    metrics = evaluate_benchmark(saved[0], tmp_path / "data", tmp_path / "out", Settings(num_images=4, device="cpu"))
    assert metrics["provenance"]["num_images"] == 4
    captions = sum(c.kind.startswith("caption") for sample in samples[:4] for c in sample.conversations)
    assert metrics["provenance"]["num_captions_left_out"] == captions
    assert 0 <= metrics["pope"]["popular"]["accuracy"] <= 1
    assert metrics["text_perplexity"]["before"] is None
    assert metrics["text_perplexity"]["after"] > 1


def test_a_missing_dataset_and_an_unknown_language_model_are_errors(saved: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        evaluate_benchmark(saved[0], tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="tiny-lama"):
        evaluate_scenes(saved[0], tmp_path / "out", Settings(num_images=1, language_model="tiny-lama"))
    assert not (tmp_path / "out").exists()
