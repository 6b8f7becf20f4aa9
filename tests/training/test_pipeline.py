"""A whole run, end to end: four stages, figures, report; and what may go wrong on the way in."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import STAGES, assert_same_weights, make_recipe, read_losses, read_weights, run
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.utils import is_flash_attn_2_available

from agevlm.checkpoints import computes_in, load_model
from agevlm.data.scenes import WorldSpec
from agevlm.data.scenes.export import export_parquet
from agevlm.modeling import decoding
from agevlm.training import compiled
from agevlm.training.recipe import load_recipe, parse_recipe
from agevlm.training.run import Run, build_model, environment, train


@pytest.fixture(scope="module")
def done(foundation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all four stages with its evaluation on 20 scenes."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    run(make_recipe(foundation, *STAGES, evaluation={"num_images": 20, "batch_size": 64}), out)
    return out


def test_a_run_writes_every_file_that_it_promises(done: Path) -> None:
    names = {path.name for path in done.iterdir()}
    assert names >= {"recipe.yaml", "environment.json", "log.jsonl", "stages.json", "model"}
    assert names >= {"metrics.json", "metrics.md", "predictions.jsonl", "report.html"}
    assert names >= {"1-align", "2-cross", "3-ground", "4-instruct"}
    assert not any(name.startswith(".") or name == "cache" for name in names)


def test_every_checkpoint_is_a_model_with_its_recipe(done: Path) -> None:
    recipe = (done / "recipe.yaml").read_text()
    for name in ("1-align", "2-cross", "3-ground", "4-instruct", "model"):
        assert (done / name / "recipe.yaml").read_text() == recipe
        assert json.loads((done / name / "environment.json").read_text())["seed"] == 0
        assert not list((done / name).glob("checkpoint-*"))
    assert_same_weights(done / "4-instruct", done / "model")
    model, processor = load_model(done / "model")
    assert processor.tokenizer.padding_side == "left"
    assert model.config.null_token


def test_the_recipe_beside_a_run_makes_the_same_run(done: Path) -> None:
    recipe = load_recipe(done / "recipe.yaml")
    assert yaml.safe_load((done / "recipe.yaml").read_text())["stages"][0]["weight_decay"] == 0.01
    assert [stage.name for stage in recipe.stages] == list(STAGES)


def test_the_log_has_every_step_once(done: Path) -> None:
    log = read_losses(done)
    assert [line["global_step"] for line in log] == list(range(1, 13))
    assert [line["stage"] for line in log] == [name for name in STAGES for _ in range(3)]
    for line in log:
        guided = line["guidance_loss"] is not None
        assert guided == (line["stage"] in ("ground", "instruct"))
        assert line["loss"] == pytest.approx(line["lm_loss"] + 0.5 * (line["guidance_loss"] or 0))


def test_figures_and_report_are_there(done: Path) -> None:
    metrics = json.loads((done / "metrics.json").read_text())
    assert 0 <= metrics["pope"]["adversarial"]["accuracy"] <= 1
    assert {"before", "after"} <= set(metrics["text_perplexity"])
    page = (done / "report.html").read_text(encoding="utf-8")
    assert "instruct" in page and "data:image/" in page
    assert len((done / "predictions.jsonl").read_text().splitlines()) > 100


def test_a_finished_run_that_is_resumed_trains_nothing(
    done: Path, foundation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []
    monkeypatch.setattr(Run, "_measure", lambda self, directory: measured.append(directory))
    before = read_losses(done), (done / "1-align" / "model.safetensors").stat().st_mtime_ns
    run(make_recipe(foundation, *STAGES, evaluation={"num_images": 20, "batch_size": 64}), done, resume=True)
    assert (read_losses(done), (done / "1-align" / "model.safetensors").stat().st_mtime_ns) == before
    assert measured == [done / "model"]


def test_stages_before_the_last_keep_the_language_model(done: Path, foundation: Path) -> None:
    from safetensors.torch import load_file

    own = load_file(foundation / "llama" / "model.safetensors")
    grounded = read_weights(done / "3-ground")
    assert all((grounded[f"language_model.{name}"] == tensor).all() for name, tensor in own.items())


def test_a_run_trains_on_stored_data_in_a_mixture(foundation: Path, tmp_path: Path) -> None:
    export_parquet(tmp_path / "data", WorldSpec(), 3, 4, num_per_image=3)
    data = {"stored": {"parquet": str(tmp_path / "data")}, "scenes": {"num_scenes": 6}}
    stage = {"name": "both", **STAGES["ground"], "data": {"stored": 1.0, "scenes": 1.0}, "steps": 5}
    run(make_recipe(foundation, stage, data=data), tmp_path / "run")
    assert len(read_losses(tmp_path / "run")) == 5
    missing = {"stored": {"parquet": str(tmp_path / "none")}}
    with pytest.raises(ValueError, match="no such dataset directory"):
        run(make_recipe(foundation, stage | {"data": {"stored": 1.0}}, data=missing), tmp_path / "other")


def test_a_source_that_no_stage_reads_may_be_missing(foundation: Path, tmp_path: Path) -> None:
    absent = {"parquet": str(tmp_path / "none")}
    stages = ({"name": "one", **STAGES["ground"], "data": data} for data in ({"a": 0.0, "scenes": 1.0}, {"scenes": 1}))
    for stage in stages:
        stage["presence"] = {}
        content = make_recipe(foundation, stage, data={"a": absent, "scenes": {"num_scenes": 6}, "b": absent})
        out = tmp_path / str(len(stage["data"]))
        run(content, out, dry_run=True)
        assert run(content, out).is_dir()


@pytest.mark.skipif(is_flash_attn_2_available(), reason="the package is here")
def test_a_kernel_whose_package_is_missing_is_named(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, "align")
    content["model"]["attn_implementation"] = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"^model\.attn_implementation: flash_attention_2 needs the package flash-attn"
    ):
        run(content, tmp_path / "run", dry_run=True)


@pytest.mark.parametrize("architecture", ["cross_attention", "concat"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(
    architecture: str, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CompileCounterWithBackend("eager")  # wants no C++ compiler; counts what it was given to compile
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(compiled, "check_compiler", lambda: None)
    trainable = ["projector", "language_model"]
    content = make_recipe(foundation, {"name": "ground", **STAGES["ground"], "trainable": trainable})
    content["model"] |= {"architecture": architecture}
    run(content, tmp_path / "plain")
    assert backend.frame_count == 0
    run(content | {"compile": True}, tmp_path / "short")
    assert backend.frame_count == 0  # of a stage this short, compiling would take more than it spares
    monkeypatch.setattr(compiled, "MIN_STEPS", 1)
    run(content | {"compile": True}, tmp_path / "compiled")
    assert 0 < backend.frame_count < 5  # four decoder layers: one for all of a kind, and what a change of shapes adds
    plain, changed = (read_losses(tmp_path / name) for name in ("plain", "compiled"))
    for name in ("lm_loss", "guidance_loss"):
        assert [line[name] for line in changed] == pytest.approx([line[name] for line in plain], abs=1e-4)
    assert read_weights(tmp_path / "plain" / "model").keys() == read_weights(tmp_path / "compiled" / "model").keys()


def test_without_a_compiler_a_compiled_run_says_so_before_it_trains(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(decoding, "get_cpp_compiler", find)
    with pytest.raises(ValueError, match=r"install g\+\+ or clang, or set compile=false"):
        run(make_recipe(foundation, "ground") | {"compile": True}, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_run_goes_on_from_a_trained_model(foundation: Path, done: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, "instruct", model={"init": str(done / "model"), "attn_implementation": "eager"})
    model, _ = build_model(parse_recipe(content, "recipe"))
    assert model.config.text_config._attn_implementation == "eager"
    run(content, tmp_path)
    assert read_weights(tmp_path / "model").keys() == read_weights(done / "model").keys()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"language_model": "nowhere"}, "no model 'nowhere'"),
        ({"init": "LLAMA"}, "architecture 'llama', and 'agevlm' was expected"),
    ],
)
def test_a_model_that_is_none_is_named(model: dict[str, str], words: str, foundation: Path, tmp_path: Path) -> None:
    given = {key: value.replace("LLAMA", str(foundation / "llama")) for key, value in model.items()}
    with pytest.raises(ValueError, match=words):
        run(make_recipe(foundation, "align", model=given), tmp_path)


def test_the_image_size_of_the_recipe_sets_the_grid(foundation: Path) -> None:
    settings: dict[str, Any] = make_recipe(foundation, "align")
    settings["model"] |= {"image_size": 64, "cross_attention_layers": [0, 3], "null_token": False}
    model, processor = build_model(parse_recipe(settings, "recipe"))
    assert processor.image_processor.size["height"] == 64
    assert model.config.cross_attention_layers == [0, 3]
    assert not model.config.null_token


def test_the_environment_tells_what_figures_depend_on() -> None:
    facts = environment()
    assert {"git", "python", "torch", "transformers", "numpy", "machine", "threads", "device"} <= set(facts)
    assert json.loads(json.dumps(facts)) == facts


def test_seeds_make_runs_of_their_own(foundation: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe(foundation, "align")))
    for seed in (None, 0, 1):
        train(path, tmp_path / str(seed), seed=seed)
    none, zero, one = (read_losses(tmp_path / name) for name in ("None", "0", "1"))
    assert none == zero != one


def test_the_concatenation_baseline_trains_and_is_measured_by_the_same_code(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(
        foundation,
        {"name": "align", "trainable": ["projector"]},
        {
            "name": "ground",
            "trainable": ["projector", "language_model"],
            "guidance": {"loss": "kl", "weight": 0.5, "layers": [0, 1]},
        },
        evaluation={"num_images": 8, "batch_size": 64},
    )
    content["model"] |= {"architecture": "concat", "pool_size": 2, "attn_implementation": "eager"}
    out = tmp_path / "run"
    run(content, out)
    model, _ = load_model(out / "model")
    assert model.config.model_type == "agevlm_concat"
    assert model.config.pool_size == 2
    assert all(line["guidance_loss"] > 0 for line in read_losses(out) if line["stage"] == "ground")
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0 <= metrics["pointing"]["accuracy"] <= 1
    assert "null_token" not in metrics


def test_the_concatenation_baseline_has_no_cross_attention_to_train(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, "cross")
    content["model"] |= {"architecture": "concat"}
    with pytest.raises(ValueError, match="stage 'cross' trains cross_attention, which has no parameters"):
        run(content, tmp_path / "run")


@pytest.mark.parametrize("known", [True, False])
def test_a_model_kept_in_a_type_that_the_machine_emulates_is_read_in_float32(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    model, processor = build_model(parse_recipe(make_recipe(foundation, "align"), "recipe"))
    model.bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr("agevlm.checkpoints.computes_in", lambda dtype, device: known)
    assert load_model(tmp_path, device="cpu")[0].dtype == (torch.bfloat16 if known else torch.float32)
    assert load_model(tmp_path, device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_every_machine_computes_in_float32_and_none_in_bfloat16_without_kernels_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert computes_in(torch.float32, "cpu")
    assert not computes_in(torch.bfloat16, "cpu") and not computes_in(torch.float16, "cpu")


@pytest.mark.parametrize(("flags", "known"), [((False, False), False), ((True, False), True), ((False, True), True)])
def test_avx512_alone_is_no_bfloat16(monkeypatch: pytest.MonkeyPatch, flags: tuple[bool, bool], known: bool) -> None:
    """oneDNN calls bfloat16 supported from AVX-512 on, where it converts to float32 and back."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), flags, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    assert computes_in(torch.bfloat16, "cpu") is known
