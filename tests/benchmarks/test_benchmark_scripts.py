"""The benchmarks at toy size: they run to their end, and their files hold what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_script(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """What a benchmark writes."""
    command = [sys.executable, str(BENCHMARKS / name), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(out.read_text(encoding="utf-8")))


def test_a_step_is_compared_with_mllama_concatenation_and_guidance(tmp_path: Path) -> None:
    result = run_script("step.py", tmp_path / "step.json", "--toy", "--turns", "2")
    assert list(result)[-1] == "ratios"
    ratios, tokens = result["ratios"], {"16", "64"}
    assert ratios["guided_over_unguided"].keys() == tokens
    assert ratios["mllama_over_ours"].keys() == {"prefill", "step", "step_49k"}
    for arm in ("mllama_over_ours", "concat_over_ours"):
        for kind in ("prefill", "step"):
            assert ratios[arm][kind].keys() == tokens
    for found in result["results"]:  # the stacks are equally wide and deep: only positions and projector differ
        work = found["flops"]
        assert 0.9 < work["mllama"]["step"] / work["ours"]["step"] < 1.1
    assert work["concat"]["step"] > 2 * work["ours"]["step"]


def test_a_whole_model_answers_beside_llama_and_takes_a_step(tmp_path: Path) -> None:
    found = run_script("full_size.py", tmp_path / "full.json", "--toy", "--turns", "2", "--num-tokens", "8")["results"][
        "toy"
    ]
    answer = found["answer"]
    read = answer["bytes_a_token"]
    assert 0 < answer["allowed"] == read["llama"] / read["ours"] < 1
    for clock in ("wall", "processor"):
        times = answer[clock]
        reached = times["ours_tokens_per_s"] / times["llama_tokens_per_s"] / answer["allowed"]
        assert reached > 0
        assert times["share_interval"][0] <= times["share_of_allowed"] <= times["share_interval"][1]
    parameters = found["parameters"]
    trained = found["step"]["trainable_parameters"]
    assert parameters["cross_attention"] < trained < parameters["cross_attention"] + parameters["language_model"]
    assert found["step"]["seconds"] > 0 and found["forward"]["seconds"] > 0


def test_pictures_are_seen_in_two_ways(tmp_path: Path) -> None:
    options = ("--pictures", "2", "--side", "64", "--repeats", "2")
    results = run_script("vision.py", tmp_path / "vision.json", *options)["results"]
    for found in results.values():
        assert found["2"]["num_pairs"] == 2
        assert found["2"]["flops_a_picture"] > 1e7


def test_the_script_for_a_gpu_runs_without_one(tmp_path: Path) -> None:
    ways = ("plain", "checkpointing")
    result = run_script("gpu.py", tmp_path / "gpu.json", "--toy", "--pairs", "2", "--warmup", "1", "--ways", *ways)
    assert result["rows"].keys() == set(ways)
    for row in result["rows"].values():
        assert row["share_of_product"] == result["step_flops"] / row["unguided_s"] / result["product_flops_per_s"]
        assert row["steps_per_s"] == 1 / row["guided_s"]


def test_the_loader_is_measured_against_a_step(tmp_path: Path) -> None:
    recipe = str(BENCHMARKS.parent / "recipes" / "quickstart.yaml")
    options = ["--workers", "0", "1", "--batches", "2", "--step-s", "0.5", "--set", "data.scenes.num_scenes=40"]
    found = run_script("loader.py", tmp_path / "loader.json", recipe, *options)["workers"]
    assert found.keys() == {"0", "1"}
    for row in found.values():
        assert row["over_need"] == row["batches_per_s"] * 0.5
        assert row["pictures_per_s"] > 0
