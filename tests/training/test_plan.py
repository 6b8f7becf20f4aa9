"""Plans: what they say of a step holds of a real one, and what they say of a run adds up."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from rich.console import Console
from tiny_gguf import make_llama, write_gguf
from tiny_runs import GUIDED, STAGES, make_recipe
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPImageProcessorPil
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.documents import read_yaml
from agevlm.modeling.versions import checkpoint_activations
from agevlm.modeling.vision import build_backbone
from agevlm.training.arithmetic import autocast, frozen_in_bfloat16
from agevlm.training.muon import Muon
from agevlm.training.plan import GPUS, Machine, find_gpu, plan_run
from agevlm.training.recipe import ModelRecipe, Recipe, StageRecipe, is_comparison, load_recipe, parse_recipe
from agevlm.training.recipe_files import packaged_recipes
from agevlm.training.run import build_model, train
from agevlm.training.shapes import Shapes, find_shape
from agevlm.training.stages import freeze_for_stage, parameter_groups
from agevlm.training.step_cost import StepShape

WITHIN = 0.15
ATTENTION = {  # the fused kernel of a CPU, which FlopCounterMode does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
    ),
}
SIZES: dict[str, tuple[dict[str, int], tuple[int, int, int]]] = {  # decoder; pictures, questions and tokens of a batch
    "narrow": ({"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 2000}, (4, 2, 48)),
    "wide": ({"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 9000}, (2, 3, 96)),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random foundations of each size."""
    from tiny_models import make_text_config, make_tokenizer, make_vision_config
    from transformers import AutoBackbone, AutoModelForCausalLM

    from agevlm.training.foundation import image_processor

    made = {}
    for name, (options, _) in SIZES.items():
        directory = made[name] = tmp_path_factory.mktemp(name)
        text = make_text_config(**options, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True)
        AutoModelForCausalLM.from_config(text).bfloat16().save_pretrained(directory / "llama")
        make_tokenizer().save_pretrained(directory / "llama")
        vision = make_vision_config(hidden_sizes=[16, 32], out_features=["stage2"])
        AutoBackbone.from_config(vision).save_pretrained(directory / "convnext")
        image_processor(64).save_pretrained(directory / "convnext")
    return made


def batch_of(shape: StepShape, vocabulary: int) -> dict[str, Any]:
    """A real batch of a planned shape, every row with its last tokens supervised."""
    rows, length = shape.num_rows, shape.text_len
    ids = torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, -shape.num_supervised :] = ids[:, -shape.num_supervised :]
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # as in most batches, a row is padded
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch |= {"images_seen": torch.ones_like(ids), "image_index": torch.arange(rows)[:, None] // shape.num_questions}
    batch["rows_per_image"] = shape.num_questions
    batch["pixel_values"] = torch.randn(shape.num_images, 3, *shape.image_size)
    if shape.num_guided:
        batch["attention_rows"] = torch.randint(0, length, (rows, shape.num_guided))
    return batch


def measure(recipe: Recipe, stage: StageRecipe, shape: StepShape) -> dict[str, int]:
    """Operations and bytes of a real step, the latter as the allocator tells them."""
    dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    model, _ = build_model(recipe)
    freeze_for_stage(model, stage)
    if stage.gradient_checkpointing:
        checkpoint_activations(model, True)
    model.train()
    batch = batch_of(shape, 30)

    def step() -> None:
        with autocast(dtype):
            outputs = model(**batch, use_cache=False)
            loss = outputs.loss
            if outputs.row_weights is not None:
                loss = loss + sum(weights.clamp(min=1e-6).log().sum() for weights in outputs.row_weights)
        del outputs
        loss.backward()

    with frozen_in_bfloat16(model.language_model, dtype):
        weights = sum(p.nbytes for p in model.parameters())
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            step()
        model.zero_grad(set_to_none=True)
        peak = allocated(step)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    optimiser = Muon(parameter_groups(model, stage), lr=1e-3, betas=(0.9, 0.98))
    optimiser.step()
    states = [value for state in optimiser.state.values() for name, value in state.items() if name != "step"]
    return {
        "flops": counter.get_total_flops(),
        "weights": weights,
        "gradients": sum(gradient.nbytes for gradient in gradients),
        "optimiser": sum(state.nbytes for state in states),
        "peak": peak,
    }


def allocated(work: Any) -> int:
    """The most bytes that the allocator of the CPU gave out at a time in a piece of work."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


STEPS: dict[str, dict[str, Any]] = {
    "align": STAGES["align"],
    "instruct": STAGES["instruct"],
    "checkpointed": STAGES["ground"] | {"gradient_checkpointing": True},
    "muon": STAGES["instruct"] | {"optimizer": "muon"},
    "concat": {"trainable": ["projector", "language_model"], "guidance": GUIDED},
    "lora": {"trainable": ["projector", "cross_attention"], "lora": {"rank": 4}},
}


CASES = {
    "narrow": [
        ("align", {"dtype": "bfloat16"}),
        ("instruct", {"dtype": "bfloat16"}),
        ("concat", {"architecture": "concat"}),
        ("muon", {}),
        ("lora", {}),
        ("checkpointed", {}),
    ],
    "wide": [("instruct", {}), ("checkpointed", {"dtype": "bfloat16"})],
}


@pytest.mark.parametrize(
    ("size", "name", "settings"), [(size, *case) for size, cases in CASES.items() for case in cases]
)
def test_a_planned_step_is_a_real_one_within_15_percent(
    parts: dict[str, Path], size: str, name: str, settings: dict[str, Any]
) -> None:
    settings = dict(settings)
    images, questions, length = SIZES[size][1]
    stage = {"name": name, **STEPS[name], "images_per_batch": images, "questions_per_image": questions}
    content = make_recipe(parts[size], stage, cache_features=False, dtype=settings.pop("dtype", "float32"))
    recipe = parse_recipe(content | {"model": content["model"] | settings}, "r.yaml")
    planned = plan_run(recipe, Machine(GPUS["h100"]), text_len=length).stages[0]
    found = measure(recipe, recipe.stages[0], planned.shape)
    memory = planned.memory["ddp"]
    assert planned.flops_per_step == pytest.approx(found["flops"], rel=WITHIN)
    assert memory.weights == found["weights"]
    assert memory.gradients == found["gradients"]
    assert memory.optimiser == found["optimiser"]
    moving = memory.total - memory.weights - memory.optimiser
    assert moving == pytest.approx(found["peak"], rel=WITHIN)


def test_an_unknown_gpu_is_told_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"no GPU 'h10': expected one of .*h100"):
        find_gpu("h10")


def test_gpus_are_found_in_any_case() -> None:
    assert find_gpu("H100") is GPUS["h100"]
    assert find_gpu("A100-80GB") is GPUS["a100-80gb"]


def test_what_fits_leaves_a_tenth_of_what_nvidia_smi_tells_free() -> None:
    gpu = GPUS["h100"]
    assert gpu.memory_bytes == 81559 * 2**20
    sizes = {76.9e9: "yes", 77.1e9: "tight", 85.5e9: "tight", 85.6e9: "no"}
    assert {size: gpu.fit(int(size)) for size in sizes} == sizes


@pytest.mark.parametrize(("ratio", "answer"), [(0.8, "yes"), (0.95, "tight"), (1.05, "no")])
def test_a_plan_says_what_fits_and_the_peak_of_its_dtype(
    ratio: float, answer: str, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(make_recipe(foundation, "align", dtype="float32")), encoding="utf-8")
    total = plan_run(load_recipe(path), Machine(GPUS["h100"]), text_len=24).stages[0].memory["ddp"].total
    monkeypatch.setitem(GPUS, "h100", replace(GPUS["h100"], memory_bytes=int(total / ratio)))
    arguments = ["plan", str(path), "--gpu", "H100", "--text-len", "24", "--json", str(tmp_path / "plan.json")]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "67 TFLOP/s) in float32" in outcome.output
    (line,) = [line for line in outcome.output.splitlines() if line.split()[-1:] == [answer]]
    assert "align" in line
    assert "fits: yes where a tenth of" in outcome.output
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["fits"] == {"ddp": answer == "yes"}


TOY = [
    "model.cross_attention_layers=null",
    "data={captions: {num_scenes: 6}, coco: {num_scenes: 6}, refcoco: {num_scenes: 6}, instructions: {num_scenes: 6}}",
    "evaluation=null",
    "num_workers=0",
    "max_length=96",
]


def toy(foundation: Path) -> list[str]:
    """Overrides that bring a full recipe down to tiny models, drawn data and a step or two a stage."""
    parts = [f"model.language_model={foundation / 'llama'}", f"model.vision_model={foundation / 'convnext'}"]
    stages = [f"stages.{index}.{key}" for index in range(4) for key in ("steps=2", "images_per_batch=2")]
    return [*parts, *TOY, "model.image_size=64", *stages]


def test_the_recipe_of_135m_runs_at_toy_size(foundation: Path, tmp_path: Path) -> None:
    recipe = load_recipe(packaged_recipes()["age_vlm_135m"], toy(foundation))
    model = train(recipe, tmp_path / "run", console=Console(file=io.StringIO()))
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert [stage["name"] for stage in stages] == ["align", "cross-attention", "ground", "instruct"]
    card = ModelCard.load(model / "README.md")
    assert card.data.datasets == ["liuhaotian/LLaVA-Pretrain", "liuhaotian/LLaVA-Instruct-150K"]


@pytest.mark.parametrize(("name", "parameters"), [("age_vlm_1b", 1_235_814_400), ("age_vlm_135m", 134_515_008)])
def test_the_shapes_in_the_package_have_the_parameters_of_their_models(name: str, parameters: int) -> None:
    recipe = load_recipe(packaged_recipes()[name])
    model = Shapes.of(recipe.model).build(recipe.model)
    assert sum(p.numel() for p in model.language_model.parameters()) == parameters
    assert next(model.parameters()).device.type == "meta"


TRAININGS = [name for name, path in packaged_recipes().items() if not is_comparison(read_yaml(path))]


@pytest.mark.parametrize("name", TRAININGS)
def test_every_recipe_of_the_package_has_its_shapes_where_nothing_is_at_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agevlm.training.needs._in_cache", lambda _: None)
    recipe = load_recipe(packaged_recipes()[name])
    model = Shapes.of(recipe.model).build(recipe.model)
    assert next(model.parameters()).device.type == "meta"


def test_a_directory_with_a_gguf_file_alone_says_to_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"holds the GGUF file model\.gguf: name the file"):
        find_shape(str(tmp_path), None)


def test_a_shape_is_found_by_the_name_of_a_directory_that_is_yet_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(packaged_recipes()["photos-package"])
    plan = plan_run(recipe.model_copy(update={"stages": recipe.stages[:1]}), Machine(GPUS["h100"]))
    assert plan.assumed[0] == "the shape of the vision model is efficientnet-lite0, as the package knows it"
    photos = load_recipe(packaged_recipes()["photos"]).model
    known, packaged = (Shapes.of(model).vision.config.to_dict() for model in (recipe.model, photos))
    differing = {key for key in known if known[key] != packaged[key]}
    assert differing <= {"architectures", "dtype", "_name_or_path", "transformers_version"}
    build_backbone(Shapes.of(photos).vision.config).save_pretrained("efficientnet-lite0")
    assert list(Shapes.of(recipe.model).notes) == []


def test_a_recipe_is_planned_on_one_gpu_and_on_several(foundation: Path) -> None:
    recipe = load_recipe(packaged_recipes()["age_vlm_1b"], [*toy(foundation), "cache_features=true"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[2:3]})
    one, two = (plan_run(recipe, Machine(GPUS["h100"], number)) for number in (1, 2))
    assert one.record()["fits"] == {"ddp": True}
    assert two.fits("ddp") and two.fits("fsdp")
    assert one.features is not None and one.features.num_images == 12
    assert [s.text_tokens for s in one.stages] == [s.text_tokens for s in two.stages]
    for alone, shared in zip(one.stages, two.stages, strict=True):
        assert alone.modules == shared.modules
        assert shared.flops_per_step == pytest.approx(alone.flops_per_step, rel=0.02)
        assert shared.memory["fsdp"].optimiser == pytest.approx(alone.memory["ddp"].optimiser / 2, abs=1)
        assert shared.memory["ddp"].gathered == alone.memory["ddp"].gradients
        for memory in (
            *alone.memory.values(),
            *shared.memory.values(),
        ):  # copies that checkpointing makes anew count once
            assert memory.weights + memory.optimiser + memory.activations <= memory.total
    json.dumps(two.record())


def test_what_cannot_be_divided_or_found_is_told(foundation: Path) -> None:
    recipe = load_recipe(packaged_recipes()["age_vlm_1b"], toy(foundation))
    with pytest.raises(ValueError, match="3 processes cannot divide images_per_batch = 2"):
        plan_run(recipe, Machine(GPUS["h100"], 3))
    absent = ModelRecipe(vision_model="models/nowhere/at-all", vision_shape="convnext-huge")
    with pytest.raises(ValueError, match=r"no shape 'convnext-huge': expected one of convnext-base"):
        Shapes.of(absent)
    with pytest.raises(
        ValueError, match=r"the configuration of models/nowhere/at-all is neither here nor in the cache"
    ):
        Shapes.of(ModelRecipe(vision_model="models/nowhere/at-all"))


def test_the_command_prints_tables_and_writes_them(foundation: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(make_recipe(foundation, "ground", dtype="auto")), encoding="utf-8")
    arguments = ["plan", str(path), "--gpu", "rtx4090", "--num-gpus", "2", "--json", str(tmp_path / "plan.json")]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    for words in (
        "query_key_norms",
        "memory (DDP)",
        "memory (FSDP)",
        "hours on 2 × rtx4090",
        "12 pictures",
        "assumed: ",
    ):
        assert words in outcome.output
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    (stage,) = plan["stages"]
    assert stage["modules"]["projector"]["trainable"] > 0
    assert stage["modules"]["language_model"]["trainable"] == 0
    assert stage["shape"]["num_images"] == 1
    assert plan["assumed"][0].startswith("rows of text have as many tokens as in some batches")


def planned(content: dict[str, Any], **options: Any) -> Any:
    return plan_run(parse_recipe(content, "r.yaml"), Machine(GPUS["h100"]), **options)


@pytest.mark.parametrize("shape", [None, "smollm2-135m"])
@pytest.mark.parametrize("place", ["here", "in the cache"])
def test_a_gguf_file_is_planned_as_it_trains(
    place: str, shape: str | None, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    file = str(write_gguf(tmp_path / "llama.gguf", make_llama(max_position_embeddings=512)))
    content = make_recipe(foundation, "align")
    content["model"] |= {"language_model": file, "language_shape": shape}
    if place == "in the cache":
        content["model"]["language_model"] = "organisation/name/llama.gguf"
        monkeypatch.setattr("agevlm.training.needs.hf_hub_download", lambda *_, **__: file)
        monkeypatch.setattr("agevlm.modeling.language.hf_hub_download", lambda *_: file)
    plan = planned(content)
    assert plan.assumed[0].startswith("rows of text have as many tokens as in some batches")
    model, _ = build_model(parse_recipe(content, "r.yaml"))
    counted = plan.stages[0].modules["language_model"]["parameters"]
    assert counted == sum(p.numel() for p in model.language_model.parameters())


def test_a_gguf_file_that_is_not_there_is_planned_by_a_shape(foundation: Path) -> None:
    content = make_recipe(foundation, "align")
    content["model"]["language_model"] = "models/nothere.gguf"
    with pytest.raises(ValueError, match=r"models/nothere.gguf is neither here nor in the cache: name a shape"):
        planned(content)
    content["model"]["language_shape"] = str(foundation / "llama" / "config.json")
    assert planned(content).assumed[0].startswith("rows of text have so many tokens")


@pytest.mark.parametrize("stages", [["stage2", "stage1"], ["stage1"]])
def test_stages_in_any_order_are_planned(stages: list[str], foundation: Path) -> None:
    content = make_recipe(foundation, "align")
    content["model"]["vision_stages"] = stages
    settings = parse_recipe(content, "r.yaml").model
    assert Shapes.of(settings).vision.config.out_features == sorted(stages)
    channels = build_model(parse_recipe(content, "r.yaml"))[0].projector.in_features
    assert Shapes.of(settings).build(settings).projector.in_features == channels
    content["model"]["vision_stages"] = ["stage7"]
    with pytest.raises(ValueError, match="has the feature maps stem, stage1, stage2, and 'stage7' was asked for"):
        planned(content)


def test_pictures_are_planned_in_the_size_that_training_takes(foundation: Path, tmp_path: Path) -> None:
    """A CLIP whose pictures are resized to 112 pixels and cropped to 96."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = shape | {"vocab_size": 20}
    config = AutoConfig.for_model("clip", vision_config=shape | {"image_size": 32, "patch_size": 8}, text_config=text)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=96).save_pretrained(tmp_path)
    content = make_recipe(foundation, "align")
    content["model"] |= {"vision_model": str(tmp_path), "vision_stages": ["stage3", "stage1"]}
    model, processor = build_model(parse_recipe(content, "r.yaml"))
    plan = planned(content)
    size = processor.image_processor.size
    assert plan.stages[0].shape.image_size == (size["height"], size["width"]) == (96, 96)
    counted = plan.stages[0].modules["vision_model"]["parameters"]
    assert counted == sum(p.numel() for p in model.vision_model.parameters())
    content["model"]["image_size"] = 100
    with pytest.raises(ValueError, match="100 pixels are not cut whole into patches of 8: set image_size to 96 or 104"):
        planned(content, text_len=20)


def test_texts_are_planned_without_the_system_prompt_that_training_drops(foundation: Path, tmp_path: Path) -> None:
    shutil.copytree(foundation / "llama", tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}{{ 'system: is there a fish in the picture ?\n' }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "llama")
    content = make_recipe(foundation, "align")
    content["model"]["language_model"] = str(tmp_path / "llama")
    lengths = {}
    for kept in (True, False):
        content["model"]["default_system_prompt"] = kept
        lengths[kept] = planned(content).stages[0].shape.text_len
    assert lengths[True] >= lengths[False] + 8
