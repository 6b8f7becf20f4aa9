"""What arms cost: every figure is there, bytes and tokens are those that the shapes say, and ratios are of pairs."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import make_foundation, make_recipe
from torch._dynamo.testing import CompileCounterWithBackend

from agevlm.comparison.costs import compare_times, cost_tables, measure_costs, measured_stages
from agevlm.comparison.first_token import FirstToken
from agevlm.comparison.recipe import ComparisonRecipe, load_comparison
from agevlm.data.scenes import WorldSpec, draw_scene
from agevlm.training import compiled
from agevlm.training.run import build_model

# The tiny decoder is 32 wide and has 4 layers with 2 key/value heads of width 8; cross-attention has 2 such layers.
LAYERS, CROSS_LAYERS, KEY_VALUE_WIDTH, WIDTH, FLOAT = 4, 2, 2 * 8, 32, 4
STAGES = ("align", "ground")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three arms on tiny foundations that see a token for every 16 x 16 pixels, so 36 in their own pictures."""
    foundation = make_foundation(tmp_path_factory.mktemp("foundation"))
    common = make_recipe(foundation, *STAGES)
    common.pop("name")
    for stage in common["stages"]:
        stage["images_per_batch"] = 4
    concat = {f"stages.{stage}.trainable": ["projector", "language_model"] for stage in STAGES}
    arms = {
        "concat": {"title": "in front", "set": {"model.architecture": "concat", **concat}},
        "concat_pooled": {"title": "pooled", "set": {"model.architecture": "concat", "model.pool_size": 2, **concat}},
        "age": {"title": "guided with null token", "set": {"model.null_token": True}},
    }
    return {"name": "small", "num_seeds": 1, "common": common, "arms": arms}


@pytest.fixture(scope="module")
def recipe(content: dict[str, Any]) -> ComparisonRecipe:
    return ComparisonRecipe.model_validate(content)


@pytest.fixture(scope="module")
def measured(recipe: ComparisonRecipe) -> dict[str, Any]:
    return measure_costs(recipe, tokens=[36, 64], repetitions=1)


def leaves(value: Any) -> list[Any]:
    return [leaf for part in value.values() for leaf in leaves(part)] if isinstance(value, dict) else [value]


def test_every_arm_has_every_figure_at_every_size(measured: dict[str, Any], recipe: ComparisonRecipe) -> None:
    assert list(measured["costs"]) == list(recipe.arms)
    assert measured["reference"] == "concat"  # the first
    for by_tokens in measured["costs"].values():
        assert list(by_tokens) == ["36", "64"]
        assert [cost["image_size"] for cost in by_tokens.values()] == [96, 128]
        for cost in by_tokens.values():
            assert list(cost["train"]) == ["ground"]
            for step in cost["train"].values():
                assert step["seconds_per_step"]["median"] > 0 and step["flops"] > 0 and step["activation_bytes"] > 0
                assert step["processor_seconds_per_step"]["ratio"]["median"] > 0
                assert step["attention"] in ("eager", "sdpa")
                assert 0 < step["trainable_parameters"] < step["parameters"]
            first = cost["first_token"]
            assert first["seconds"]["median"] > first["vision_seconds"]["median"] > 0
    found = json.loads(json.dumps(measured, allow_nan=False))
    assert all(leaf is None or isinstance(leaf, str | float | int) for leaf in leaves(found["costs"]))
    assert found["environment"]["num_cores"] >= 1


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_recipe_that_compiles_is_measured_compiled(
    kernel: str, content: dict[str, Any], measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CompileCounterWithBackend("eager")  # wants no C++ compiler; counts what it was given to compile
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(compiled, "check_compiler", lambda: None)
    common = content["common"] | {"compile": True}
    common["model"] = common["model"] | {"attn_implementation": kernel}
    recipe = ComparisonRecipe.model_validate(content | {"common": common})
    found = measure_costs(recipe, arms=["age"], tokens=[36], repetitions=1)["costs"]["age"]["36"]["train"]["ground"]
    assert backend.frame_count > 0
    assert found["attention"] == kernel
    assert found["flops"] == measured["costs"]["age"]["36"]["train"]["ground"]["flops"]


def test_memory_is_what_the_shapes_say(measured: dict[str, Any]) -> None:
    for number in (36, 64):
        costs = {arm: by_tokens[str(number)] for arm, by_tokens in measured["costs"].items()}
        text, pooled = costs["age"]["text_tokens"], number // 4
        image = {
            "concat": number * WIDTH * FLOAT,
            "concat_pooled": pooled * WIDTH * FLOAT,
            "age": CROSS_LAYERS * 2 * (number + 1) * KEY_VALUE_WIDTH * FLOAT,
        }
        front = {"concat": number, "concat_pooled": pooled}
        for arm, cost in costs.items():
            cached = LAYERS * 2 * (front.get(arm, 0) + text) * KEY_VALUE_WIDTH * FLOAT
            assert cost["memory"] == {
                "image_memory_bytes": image[arm],
                "kv_cache_bytes": cached,
                "total_bytes": image[arm] + cached,
            }, arm
            assert cost["image_tokens"] == (pooled if arm == "concat_pooled" else number)


def test_more_tokens_are_more_work_and_concatenation_pays_most(measured: dict[str, Any]) -> None:
    def grown(arm: str, name: str) -> float:
        small, large = (measured["costs"][arm][number]["train"]["ground"] for number in ("36", "64"))
        return large[name] / large["images_per_batch"] - small[name] / small["images_per_batch"]

    for name in ("flops", "activation_bytes"):
        assert grown("concat", name) > grown("age", name) > 0


def test_a_known_picture_gives_the_same_answer_with_less_work(recipe: ComparisonRecipe, picture: Any) -> None:
    for arm in ("concat", "concat_pooled", "age"):
        model, processor = build_model(recipe.recipe_of(arm, 0))
        first = FirstToken(model, processor, picture, "is there a fish in the picture?")
        torch.testing.assert_close(first.further_logits(), first.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(first.further_logits(), first.logits, atol=1e-4, rtol=1e-4)
        work = first.flops()
        assert 0 < work["further"] < work["rest"]
        assert model.language_model.config._attn_implementation == "sdpa"


@pytest.fixture
def picture() -> Any:
    from PIL import Image

    return Image.fromarray(draw_scene(WorldSpec(), seed=0, index=0).image)


def test_ratios_are_medians_of_pairs() -> None:
    compared = compare_times({"age": [1.0, 2.0, 10.0], "concat": [3.0, 4.0, 40.0]}, "age")
    assert compared["concat"]["median"] == 4.0
    assert compared["concat"]["ratio"] == {"median": 3.0, "low": 2.5, "high": 3.5}
    assert compared["age"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_the_tables_have_a_row_for_each_arm_and_size(measured: dict[str, Any]) -> None:
    expected = [[arm, number] for arm in measured["costs"] for number in measured["costs"][arm]]
    for headings, rows in cost_tables(measured):
        assert [row[:2] for row in rows] == expected
        assert {len(row) for row in rows} == {len(headings)}


def test_larger_pictures_come_in_smaller_batches(measured: dict[str, Any]) -> None:
    for by_tokens in measured["costs"].values():
        sizes = [cost["train"]["ground"]["images_per_batch"] for cost in by_tokens.values()]
        assert sizes == [4, round(4 * math.sqrt(36 / 64))]


def test_guided_stages_and_the_last_are_measured() -> None:
    comparison = load_comparison(Path(__file__).parents[2] / "recipes" / "comparison.yaml")
    assert measured_stages({arm: comparison.recipe_of(arm, 0) for arm in comparison.arms}) == ["ground", "instruct"]
    assert measured_stages({"concat": comparison.recipe_of("concat", 0)}) == ["instruct"]


def test_a_wrong_arm_or_number_of_tokens_is_named(recipe: ComparisonRecipe) -> None:
    with pytest.raises(ValueError, match="nowhere is no foundation"):
        measure_costs(recipe, foundation=Path("nowhere"))
    with pytest.raises(ValueError, match=r"no arm 'agee' in the comparison: there are concat, concat_pooled, age"):
        measure_costs(recipe, arms=["agee"])
    with pytest.raises(ValueError, match=r"no square picture gives 150 .* 144 \(192 pixels\) or 169 \(208 pixels\)"):
        measure_costs(recipe, tokens=[36, 150])


def test_the_command_writes_the_file_and_prints_the_table(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from agevlm.cli import app

    file, out = tmp_path / "comparison.yaml", tmp_path / "costs.json"
    file.write_text(yaml.safe_dump(content))
    options = ["--arm", "concat", "--tokens", "16", "--repetitions", "1", "--set", "common.stages.1.images_per_batch=1"]
    app(args=["compare", "costs", str(file), "--out", str(out), *options], standalone_mode=False)
    written = json.loads(out.read_text())
    assert written["reference"] == "concat" and list(written["costs"]["concat"]) == ["16"]
    assert "first token, ms" in " ".join(capsys.readouterr().out.split())
