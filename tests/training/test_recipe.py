"""Recipes: what is refused, with which words, and how settings on the command line reach their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from agevlm.training.recipe import Recipe, StageRecipe, dump_recipe, load_recipe, parse_recipe
from agevlm.training.recipe_files import packaged_recipes

STAGE: dict[str, Any] = {"name": "align", "trainable": ["projector"], "steps": 3}
ROOT = Path(__file__).parents[2]


def complaints(content: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError, match=r"^r\.yaml: ") as caught:
        parse_recipe(content, "r.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("r.yaml: ") for line in lines)
    return [line.removeprefix("r.yaml: ") for line in lines]


def with_stage(**settings: Any) -> dict[str, Any]:
    return {"stages": [STAGE | settings]}


COMPARISONS = {
    "comparison",
    "sweeps",
    "longer",
    "ablations",
    "taught",
    "photographs",
    "photographs-ablations",
    "photographs-smollm2",
    "photographs-splits",
    "photographs-views",
}
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem not in COMPARISONS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_package_parses_and_survives_being_written(path: Path) -> None:
    recipe = load_recipe(path)
    assert packaged_recipes()[path.stem] == path
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


def test_defaults_are_written_out() -> None:
    written = yaml.safe_load(dump_recipe(parse_recipe(with_stage(), "r.yaml")))
    assert written["stages"][0]["images_per_batch"] == 32
    assert written["data"]["scenes"]["scenes"]["co_occurrence"] == 0.8
    assert written["model"]["null_token"] is True


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (with_stage() | {"sead": 1}, "sead: unknown key; did you mean 'seed'?"),
        (with_stage(leaning_rate=1), "stages.0.leaning_rate: unknown key; did you mean 'learning_rate'?"),
        (with_stage(guidance={"wieght": 1}), "stages.0.guidance.wieght: unknown key; did you mean 'weight'?"),
        (with_stage(lora={"ranks": 1}), "stages.0.lora.ranks: unknown key; did you mean 'rank'?"),
        (
            with_stage() | {"model": {"visionmodel": "x"}},
            "model.visionmodel: unknown key; did you mean 'vision_model'?",
        ),
        (
            with_stage() | {"data": {"scenes": {"num_scene": 3}}},
            "data.scenes.num_scene: unknown key; did you mean 'num_scenes'?",
        ),
        (
            with_stage() | {"data": {"scenes": {"scenes": {"cooccurrence": 0}}}},
            "data.scenes.scenes.cooccurrence: unknown key; did you mean 'co_occurrence'?",
        ),
        (
            with_stage() | {"evaluation": {"images": 3}},
            "evaluation.images: unknown key; did you mean 'num_images'?",
        ),
        (with_stage(guidance={"seed": 1}), "stages.0.guidance.seed: unknown key; known are loss, weight, layers,"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest(content: dict[str, Any], line: str) -> None:
    found = complaints(content)
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_stage(steps="many"), ["stages.0.steps", "integer", "'many'"]),
        (with_stage(steps=0), ["stages.0.steps", "greater than or equal to 1", "got 0"]),
        (with_stage(learning_rate=-1), ["stages.0.learning_rate", "greater than 0", "got -1"]),
        (with_stage(trainable="projector"), ["stages.0.trainable", "tuple", "'projector'"]),
        (with_stage(trainable=["gate"]), ["stages.0.trainable.0", "'gates'", "'gate'"]),
        (with_stage(trainable=[]), ["stage 'align' trains nothing"]),
        (with_stage(name="a/b"), ["stages.0.name", "'a/b'"]),
        (with_stage(kinds={"captions": 1}), ["unknown kind of conversation 'captions'"]),
        (with_stage(guidance={"loss": "kld"}), ["unknown guidance loss 'kld'; known are kl, mass, bce_dice"]),
        (with_stage(guidance={"layers": []}), ["stages.0.guidance.layers", "at least 1 item"]),
        (with_stage(presence={"wordings": ["is it there?"]}), ["stages.0.presence.wordings.0", "'is it there?'"]),
        (with_stage(presence={"wordings": ["any {plural} or {}?"]}), ["presence.wordings.0", "'any {plural} or {}?'"]),
        (with_stage(guidance=3), ["stages.0.guidance", "got 3"]),
        (with_stage(data={"scenes": -1}), ["stages.0.data.scenes", "greater than or equal to 0"]),
        (with_stage(data={"scenes": 0}), ["stage 'align' has no data of a weight above 0"]),
        (with_stage(data={}), ["stage 'align' has no data of a weight above 0"]),
        (with_stage(data={"photos": 1}), ["stage 'align' asks for data 'photos'; the recipe has scenes"]),
        (
            with_stage(module_learning_rates={"language_model": 1e-4}),
            ["stage 'align' has a learning rate for language_model, which it does not train"],
        ),
        (with_stage(module_learning_rates={"projector": 0}), ["module_learning_rates.projector", "greater than 0"]),
        (with_stage(lora={"alpha": 1e308}), ["stages.0.lora.alpha", "less than or equal to", "1e+308"]),
        (
            with_stage(images_per_batch=2**16, questions_per_image=2**16),
            ["stage 'align' has 4294967296 questions in a batch", "the most are 65536"],
        ),
        (with_stage() | {"name": "\ud800"}, ["name: ", r"'\ud800' has halves of letters"]),
        (with_stage() | {"card": {"license": "\ud800"}}, ["card.license: ", "has halves of letters"]),
        (with_stage() | {"data": {"scenes": {}, "p": {"parquet": "\U0010fe00"}}}, ["data.p.parquet: ", "private"]),
        (with_stage(trainable=["language_model"], lora={}), ["whole and by lora; choose one"]),
        ({"stages": []}, ["stages", "at least 1 item"]),
        ({}, ["stages: Field required"]),
        ({"stages": [STAGE, STAGE]}, ["stages must have names of their own, got ['align', 'align']"]),
        (with_stage() | {"data": {"scenes": 5}}, ["data.scenes", "got 5"]),
        (with_stage() | {"data": {"scenes": {"num_scenes": 0}}}, ["data.scenes.num_scenes", "got 0"]),
        (
            with_stage() | {"data": {"scenes": {"scenes": {"min_objects": 4, "max_objects": 2}}}},
            ["data.scenes.scenes", "min_objects=4 is above max_objects=2"],
        ),
        (with_stage() | {"dtype": "float16"}, ["dtype", "'float32' or 'bfloat16'", "'float16'"]),
        (with_stage() | {"model": {"cross_attention_layers": [1, "two"]}}, ["model.cross_attention_layers.1", "'two'"]),
    ],
)
def test_a_wrong_value_is_named_with_its_place(content: dict[str, Any], words: list[str]) -> None:
    found = complaints(content)
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found


def test_every_wrong_key_has_a_line_of_its_own() -> None:
    found = complaints(with_stage(stepz=3, learning_rate="fast") | {"seeed": 3, "model": {"nul_token": 1}})
    assert sorted(line.split(":")[0] for line in found) == [
        "model.nul_token",
        "seeed",
        "stages.0.learning_rate",
        "stages.0.stepz",
    ]


def test_gates_and_adapters_may_have_rates_of_their_own() -> None:
    gates = StageRecipe(name="a", trainable=("cross_attention",), steps=1, module_learning_rates={"gates": 0.1})
    adapters = StageRecipe(name="a", trainable=(), lora={}, steps=1, module_learning_rates={"language_model": 0.1})  # type: ignore[arg-type]
    assert gates.modules == {"cross_attention", "gates", "query_key_norms"}
    assert adapters.modules == {"language_model"}


# ------------------------------------------------------------------------------------------------------- --set


@pytest.fixture
def path(tmp_path: Path) -> Path:
    content = {"name": "some", "stages": [STAGE, STAGE | {"name": "ground", "guidance": {"loss": "mass"}}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "r.yaml"


def get(recipe: Recipe, key: str) -> Any:
    place: Any = recipe
    for part in key.split("."):
        place = place[int(part)] if isinstance(place, tuple) else place[part] if isinstance(place, dict) else place
        place = getattr(place, part) if hasattr(place, part) and not isinstance(place, dict) else place
    return place


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("name=other", "name", "other"),
        ("stages.1.learning_rate=1e-4", "stages.1.learning_rate", 1e-4),
        ("stages.ground.learning_rate=3e-4", "stages.1.learning_rate", 3e-4),
        ("stages.ground.guidance.weight=0.1", "stages.1.guidance.weight", 0.1),
        ("stages.align.guidance.weight=0.2", "stages.0.guidance.weight", 0.2),  # made on the way
        ("stages.ground.guidance=null", "stages.1.guidance", None),
        ("stages.0.trainable=[projector, gates]", "stages.0.trainable", ("projector", "gates")),
        ("stages.0.trainable.0=gates", "stages.0.trainable", ("gates",)),
        ("model.cross_attention_layers=[1, 3]", "model.cross_attention_layers", (1, 3)),
        ("data.scenes.scenes.co_occurrence=0.2", "data.scenes.scenes.co_occurrence", 0.2),
        ("evaluation=null", "evaluation", None),
        ("cache_dir=some/where=else", "cache_dir", Path("some/where=else")),
    ],
)
def test_an_override_reaches_its_place(override: str, key: str, value: Any, path: Path) -> None:
    assert get(load_recipe(path, [override]), key) == value


def test_a_name_with_dots_is_one_name(path: Path) -> None:
    kinds = {"caption": 0.8, "presence.colour": 0.1}
    path.write_text(yaml.safe_dump({"name": "some", "stages": [STAGE | {"kinds": kinds}]}))
    overrides = ["caption=0.5", "caption.relation=0.2", "presence.colour=0.4"]
    stage = load_recipe(path, [f"stages.0.kinds.{override}" for override in overrides]).stages[0]
    assert stage.kinds == {"caption": 0.5, "caption.relation": 0.2, "presence.colour": 0.4}


def test_later_overrides_win_and_the_seed_wins_over_all(path: Path) -> None:
    recipe = load_recipe(path, ["seed=1", "stages.0.steps=5", "stages.0.steps=6"], seed=9)
    assert (recipe.seed, recipe.stages[0].steps) == (9, 6)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "'seed' is not of the form key.path=value"),
        ("=3", "is not of the form key.path=value"),
        ("stages.2.steps=3", "'2' is neither a number below 2 nor a name in the list"),
        ("stages.²=2", "'²' is neither a number below 2 nor a name in the list"),
        (f"stages.{'9' * 5000}=2", "is neither a number below 2 nor a name in the list"),
        ("seed=0x" + "f" * 5000, "the value is not YAML: line 1, column 1: a number of 5002 characters"),
        ("stages.gound.steps=3", "'gound' is neither a number below 2 nor a name in the list"),
        ("stages.0.step=3", "stages.0.step: unknown key; did you mean 'steps'?"),
        ("seed=[1", "'seed=[1': the value is not YAML"),
        ("seed.low=1", "seed: Input should be a valid integer"),
        ("name.first=x", "--set name.first: 'some' holds no 'first'"),
        ("stages.0.trainable.0.x=1", "'projector' holds no 'x'"),
    ],
)
def test_a_wrong_override_is_named(override: str, words: str, path: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        load_recipe(path, [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2", "line 2, .* twice"),
        ("stages: [", "is not YAML"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("stages.0.kinds={caption: .nan}", "kinds.caption"),
        ("stages.0.data={scenes: .inf}", "data.scenes"),
        (f"data.scenes.num_scenes={10**30}", "num_scenes"),
        (f"stages.0.images_per_batch={2**31}", "images_per_batch"),
        (f"stages.0.steps={10**22}", "steps"),
        ("stages.0.steps=900000000", "sees"),
        (f"stages.0.questions_per_image={10**20}", "questions_per_image"),
        ("seed=-1", "seed"),
        (f"seed={2**32}", "seed"),
        ("stages.0.learning_rate=.nan", "learning_rate"),
        (f"evaluation.num_images={10**9}", "num_images"),
        ("data.scenes.scenes.image_size=1000000", "image_size"),
    ],
)
def test_numbers_that_no_training_can_mean_are_named(override: str, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        load_recipe(packaged_recipes()["quickstart"], [override])
