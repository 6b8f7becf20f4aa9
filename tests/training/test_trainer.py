"""Steps of a stage: how losses are normalised and logged, and what stops a run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import STAGES, make_recipe, read_losses, read_weights, run
from torch.nn import functional as F

from agevlm.data.collate import Collator
from agevlm.guidance import guidance_loss
from agevlm.training.arithmetic import choose_arithmetic
from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.recipe import StageRecipe, parse_recipe
from agevlm.training.run import Run, build_model, image_grid, open_source, train
from agevlm.training.trainer import StageTrainer, training_arguments


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain gradient descent: weights after a step tell the gradient, which Adam's first step hides."""

    def create_optimizer(self: StageTrainer, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        return self.optimizer

    monkeypatch.setattr(StageTrainer, "create_optimizer", create_optimizer)


def mixed_stage(images: int, accumulation: int, steps: int = 1) -> dict[str, Any]:
    """Long and short conversations, some without pictures: every part has other counts of tokens and guided rows."""
    return {
        "name": "mixed",
        **STAGES["instruct"],
        "text_ratio": 0.3,
        "group_by_length": False,
        "images_per_batch": images,
        "gradient_accumulation_steps": accumulation,
        "steps": steps,
        "warmup_ratio": 0.0,
        "max_grad_norm": 1e9,
        "guidance": {"loss": "mass", "weight": 2.0},
    }


@pytest.mark.usefixtures("plain_descent")
def test_a_step_does_not_depend_on_how_its_batch_is_cut(foundation: Path, tmp_path: Path) -> None:
    logs, weights = [], []
    for images, accumulation in ((8, 1), (4, 2), (2, 4)):
        out = tmp_path / f"{images}x{accumulation}"
        run(make_recipe(foundation, mixed_stage(images, accumulation, steps=2)), out)
        logs.append(read_losses(out))
        weights.append(read_weights(out / "model"))
    assert logs[0][0]["lm_loss"] > 1
    assert logs[0][0]["guidance_loss"] > 0.1
    for log, moved in zip(logs[1:], weights[1:], strict=True):
        for whole, cut in zip(logs[0], log, strict=True):
            assert cut["lm_loss"] == pytest.approx(whole["lm_loss"], rel=1e-5)
            assert cut["guidance_loss"] == pytest.approx(whole["guidance_loss"], rel=1e-5)
            assert cut["loss"] == pytest.approx(whole["lm_loss"] + 2 * whole["guidance_loss"], rel=1e-5)
        for name, tensor in weights[0].items():
            torch.testing.assert_close(moved[name], tensor, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_each_loss_is_divided_by_its_own_count(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, mixed_stage(4, 1))
    run(content, tmp_path)
    recipe = parse_recipe(content, "recipe")
    model, processor = build_model(recipe)
    source = open_source(recipe.data["scenes"], recipe.seed)
    dataset = StageDataset(recipe.stages[0], {"scenes": SourceData(source)}, seed=0)
    batch = Collator(processor, image_grid(model, processor), guided=True)([dataset[i] for i in range(4)])
    shares, present = batch.pop("guidance_shares"), batch.pop("guidance_present")
    labels = batch.pop("labels")
    outputs = model(**{name: batch[name] for name in batch if name not in ("sample_ids", "left_out")})
    language = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    total, rows = guidance_loss(outputs.row_weights, shares, present, loss="mass", null_token=True)
    first = read_losses(tmp_path)[0]
    assert first["lm_loss"] == pytest.approx(
        float(language.detach()), rel=2e-3
    )  # features went through 16 bits in the run
    assert first["guidance_loss"] == pytest.approx(float(total) / rows, rel=2e-3)


def test_batches_without_masks_train_and_are_counted(foundation: Path, tmp_path: Path) -> None:
    blind = {"name": "blind", **STAGES["ground"], "text_ratio": 1.0, "gradient_accumulation_steps": 2}
    run(make_recipe(foundation, blind, "ground"), tmp_path)
    log = read_losses(tmp_path)
    assert [line["guidance_loss"] for line in log[:3]] == [None] * 3
    assert all(line["lm_loss"] > 1 for line in log)
    assert all(line["guidance_loss"] > 0 for line in log[3:])
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert [stage["batches_without_masks"] for stage in stages] == [6, 0]


def test_a_guided_batch_may_share_a_step_with_one_without_masks(foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "some", **STAGES["ground"], "text_ratio": 0.7, "images_per_batch": 1, "questions_per_image": 1}
    run(make_recipe(foundation, {**stage, "gradient_accumulation_steps": 3, "steps": 6}), tmp_path)
    log = read_losses(tmp_path)
    assert {line["batches_without_masks"] for line in log} & {1, 2}
    assert all((line["guidance_loss"] is None) == (line["batches_without_masks"] == 3) for line in log)


def break_at(step: int, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
    """Let `spoil` change the batch of one step before the loss is computed."""
    original = StageTrainer.compute_loss

    def compute_loss(self: StageTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and self.stage.name == "ground":
            spoil(inputs)
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "compute_loss", compute_loss)


def test_a_loss_that_is_not_finite_names_stage_step_and_samples(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []

    def spoil(inputs: dict[str, Any]) -> None:
        inputs["image_features"][1] = float("nan")
        ids.extend(inputs["sample_ids"])

    break_at(3, monkeypatch, spoil)
    with pytest.raises(FloatingPointError) as caught:
        run(make_recipe(foundation, "align", "ground"), tmp_path)
    assert len(ids) == 4
    assert "stage 'ground', step 3: the loss is nan" in str(caught.value)
    assert all(name in str(caught.value) for name in ids[2:])  # the questions on the second picture
    assert not any(name in str(caught.value) for name in ids[:2])
    assert [path.name for path in (tmp_path / "2-ground").iterdir()] == ["checkpoint-2"]
    assert all(torch.isfinite(t).all() for t in read_weights(tmp_path / "2-ground" / "checkpoint-2").values())
    assert [line["step"] for line in read_losses(tmp_path)] == [1, 2, 3, 1, 2]
    monkeypatch.undo()
    assert run(make_recipe(foundation, "align", "ground"), tmp_path, resume=True).is_dir()


def test_infinite_guidance_stops_a_run_too(foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(
        1, monkeypatch, lambda inputs: inputs["guidance_shares"].masked_fill_(inputs["guidance_shares"] > 0, torch.inf)
    )
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is nan on scene-"):
        run(make_recipe(foundation, "ground"), tmp_path)


def test_what_is_left_out_is_counted_and_told(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, {"name": "cut", **STAGES["ground"], "kinds": {"caption": 1.0}}, max_length=13)
    run(content, tmp_path)
    left_out = json.loads((tmp_path / "stages.json").read_text())[0]["left_out"]
    assert left_out["conversations cut at max_length"] > 0
    assert left_out["phrases cut at max_length"] > 0
    assert left_out == {
        reason: sum(line.get("left_out", {}).get(reason, 0) for line in read_losses(tmp_path)) for reason in left_out
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stage_whose_answers_are_all_cut_moves_nothing(optimizer: str, foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "cut", **STAGES["ground"], "kinds": {"presence": 1.0}, "weight_decay": 0.0}
    content = make_recipe(foundation, {**stage, "optimizer": optimizer}, max_length=8)
    out = run(content, tmp_path)
    log = read_losses(tmp_path)
    assert [line["lm_loss"] for line in log] == [0.0] * 3
    assert {line["guidance_loss"] for line in log} == {None}
    assert {line["left_out"]["conversations cut before all that was to be learned"] for line in log} == {4}
    before = build_model(parse_recipe(content, "recipe"))[0].state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in read_weights(out).items())


def test_the_log_tells_the_learning_rate_of_its_step(foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "one", **STAGES["align"], "steps": 4, "lr_scheduler": "linear", "warmup_ratio": 0.25}
    run(make_recipe(foundation, stage), tmp_path)
    rates = [line["learning_rate"] for line in read_losses(tmp_path)]
    assert rates == pytest.approx([0.0, 0.01, 0.01 * 2 / 3, 0.01 / 3])


def test_a_rate_may_be_stable_and_fall_at_the_end(foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "one", **STAGES["align"], "steps": 10, "lr_scheduler": "warmup_stable_decay", "warmup_ratio": 0.1}
    run(make_recipe(foundation, stage), tmp_path)
    rates = [line["learning_rate"] for line in read_losses(tmp_path)]
    assert rates[:8] == pytest.approx([0.0, *[0.01] * 7])
    assert rates[7] > rates[8] > rates[9] > 0


def test_checkpointed_gradients_change_nothing(foundation: Path, tmp_path: Path) -> None:
    for name in ("plain", "saving"):
        stage = {"name": "all", **STAGES["instruct"], "gradient_checkpointing": name == "saving"}
        run(make_recipe(foundation, stage), tmp_path / name)
    plain, saving = read_losses(tmp_path / "plain"), read_losses(tmp_path / "saving")
    assert [line["loss"] for line in saving] == pytest.approx([line["loss"] for line in plain], rel=1e-5)


def test_bfloat16_trains_float32_weights(foundation: Path, tmp_path: Path) -> None:
    run(make_recipe(foundation, "ground", dtype="bfloat16"), tmp_path)
    assert all(line["guidance_loss"] > 0 for line in read_losses(tmp_path))
    assert {tensor.dtype for tensor in read_weights(tmp_path / "model").values()} == {torch.float32}


@pytest.mark.parametrize("known", [True, False])
def test_auto_is_bfloat16_where_the_machine_computes_in_it(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr("agevlm.training.arithmetic.computes_in", lambda dtype, device: known)
    assert choose_arithmetic("auto") == (torch.bfloat16 if known else torch.float32)
    assert choose_arithmetic("bfloat16") == torch.bfloat16 and choose_arithmetic("float32") == torch.float32
    asked = parse_recipe(make_recipe(foundation, "align", dtype="auto"), "recipe")
    told = json.loads(Run(asked, tmp_path, Console(quiet=True)).files["environment.json"])
    assert told["arithmetic"] == ("bfloat16" if known else "float32")


@pytest.mark.parametrize("known", [True, False])
def test_a_run_says_that_its_bfloat16_is_emulated(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr("agevlm.training.run.computes_in", lambda dtype, device: known)
    text = io.StringIO()
    recipe = make_recipe(foundation, "align", dtype="bfloat16", evaluation=None)
    train(parse_recipe(recipe, "recipe"), tmp_path, console=Console(file=text, width=120))
    assert ("`dtype: auto`" in text.getvalue()) is not known


def test_nothing_is_printed_beside_the_console(
    foundation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_recipe(foundation, "align"), tmp_path)
    assert capsys.readouterr().out == ""


def test_a_run_tells_which_modules_train(foundation: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    recipe = parse_recipe(make_recipe(foundation, "align", "instruct"), "recipe")
    Run(recipe, tmp_path, Console(file=text, width=120)).describe()
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("stage align")
    assert [line.split()[0] for line in lines[1:7]] == [
        "gates",
        "query_key_norms",
        "projector",
        "cross_attention",
        "language_model",
        "vision_model",
    ]
    assert [line.split()[-1] for line in lines[1:7]] == ["trains", "frozen", "trains", "frozen", "frozen", "frozen"]
    assert [line.split()[-1] for line in lines[8:14]] == ["trains"] * 5 + ["frozen"]
    assert not (tmp_path / "recipe.yaml").exists()


def test_several_gpus_in_one_process_do_not_make_the_batch_larger(tmp_path: Path) -> None:
    stage = StageRecipe(name="ground", trainable=("projector",), steps=1, images_per_batch=6)
    arguments = training_arguments(stage, tmp_path, seed=0, dtype=torch.float32, num_workers=0, save_steps=1)
    arguments._n_gpu = 4  # as transformers finds them where nothing was launched
    trainer = StageTrainer(
        model=torch.nn.Linear(2, 2), args=arguments, train_dataset=[], stage=stage, on_step=lambda _: None, files={}
    )
    assert trainer.args.train_batch_size == 6
