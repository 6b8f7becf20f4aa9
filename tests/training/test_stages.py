"""What a stage trains moves, and nothing else does; adapters leave no trace but in the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import STAGES, assert_same_weights, make_recipe, read_weights, run

from agevlm.training.recipe import StageRecipe, parse_recipe
from agevlm.training.run import build_model
from agevlm.training.stages import MODULES, freeze_for_stage, merge_adapters, module_of, parameter_groups


def make_stage(**settings: Any) -> StageRecipe:
    return StageRecipe(**{"name": "one", "trainable": ["projector"], "steps": 1, **settings})


@pytest.fixture
def model(foundation: Path) -> Any:
    return build_model(parse_recipe(make_recipe(foundation, "align"), "recipe"))[0]


CROSS_ATTENTION = {"cross_attention", "gates", "query_key_norms"}  # what trains with it


def open_gates(directory: Path, foundation: Path) -> Path:
    """A tiny model whose gates are open, so that everything gets a gradient at the first step."""
    model, processor = build_model(parse_recipe(make_recipe(foundation, "align"), "recipe"))
    with torch.no_grad():
        for layer in model.cross_attention:
            layer.attn_gate.fill_(0.5)
            layer.mlp_gate.fill_(0.5)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The modules of which some weight differs in any bit."""
    assert before.keys() == after.keys()
    return {module_of(name) for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (["projector"], {"projector"}),
        (["gates"], {"gates"}),
        (["projector", "gates"], {"projector", "gates"}),
        (["query_key_norms"], {"query_key_norms"}),
        (["cross_attention"], CROSS_ATTENTION),
        (["projector", "cross_attention"], {"projector", *CROSS_ATTENTION}),
        (["language_model"], {"language_model"}),
        (["vision_model"], {"vision_model"}),
        (list(MODULES), set(MODULES)),
    ],
    ids=lambda names: "-".join(sorted(names)),
)
def test_exactly_the_declared_modules_move(
    trainable: list[str], expected: set[str], foundation: Path, tmp_path: Path
) -> None:
    start = open_gates(tmp_path / "start", foundation)
    content = make_recipe(foundation, {"name": "one", "trainable": trainable, "guidance": {"loss": "kl"}, "steps": 2})
    run(content | {"model": {"init": str(start)}}, tmp_path / "run")
    before, after = read_weights(start), read_weights(tmp_path / "run" / "model")
    assert moved(before, after) == expected
    record = json.loads((tmp_path / "run" / "stages.json").read_text())[0]
    assert set(record["trainable_modules"]) == expected


def test_every_tensor_of_a_trained_module_gets_a_gradient(foundation: Path, tmp_path: Path) -> None:
    start = open_gates(tmp_path / "start", foundation)
    content = make_recipe(foundation, {"name": "one", **STAGES["instruct"], "images_per_batch": 8, "steps": 1})
    run(content | {"model": {"init": str(start)}}, tmp_path / "run")
    before, after = read_weights(start), read_weights(tmp_path / "run" / "model")
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in still if module_of(name) != "vision_model"} == set()


def test_counts_are_those_of_the_model(model: Any) -> None:
    counts = freeze_for_stage(model, make_stage(trainable=["cross_attention"]))
    assert sum(count["parameters"] for count in counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["gates"] == {
        "parameters": 2 * len(model.cross_attention),
        "trainable": 2 * len(model.cross_attention),
    }
    assert counts["projector"]["trainable"] == counts["language_model"]["trainable"] == 0
    assert all(p.requires_grad == (module_of(n) in CROSS_ATTENTION) for n, p in model.named_parameters())


def test_every_parameter_of_a_model_belongs_to_a_module(model: Any) -> None:
    assert {module_of(name) for name, _ in model.named_parameters()} == set(MODULES)
    with pytest.raises(AssertionError, match="belongs to no module"):
        module_of("head.weight")


def test_a_module_without_parameters_is_refused(model: Any) -> None:
    model.cross_attention = torch.nn.ModuleList()
    with pytest.raises(ValueError, match=r"trains (cross_attention|gates|query_key_norms), which has no parameters"):
        freeze_for_stage(model, make_stage(trainable=["cross_attention"]))


def test_rates_and_decay_go_by_module_and_shape(model: Any) -> None:
    stage = make_stage(
        trainable=["projector", "cross_attention", "language_model"],
        learning_rate=1e-3,
        module_learning_rates={"language_model": 1e-4, "cross_attention": 5e-3},
        weight_decay=0.1,
    )
    freeze_for_stage(model, stage)
    groups = parameter_groups(model, stage)
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(of) == sum(p.requires_grad for p in model.parameters())
    parameters = dict(model.named_parameters())
    assert of[id(parameters["projector.weight"])] == (1e-3, 0.1)
    assert of[id(parameters["projector.bias"])] == (1e-3, 0.0)
    assert of[id(parameters["image_token_embedding"])] == (1e-3, 0.0)
    assert of[id(parameters["cross_attention.0.attn_gate"])] == (5e-3, 0.0)  # as the cross-attention it sits in
    assert of[id(parameters["language_model.model.embed_tokens.weight"])] == (1e-4, 0.0)
    assert of[id(parameters["language_model.model.layers.0.mlp.up_proj.weight"])] == (1e-4, 0.1)
    assert of[id(parameters["cross_attention.0.cross_attn.q_norm.weight"])] == (5e-3, 0.0)
    own = stage.model_copy(update={"module_learning_rates": {"gates": 0.5, "query_key_norms": 0.25}})
    rates = {id(p): group["lr"] for group in parameter_groups(model, own) for p in group["params"]}
    assert rates[id(parameters["cross_attention.0.attn_gate"])] == 0.5
    assert rates[id(parameters["cross_attention.0.cross_attn.q_norm.weight"])] == 0.25
    assert rates[id(parameters["cross_attention.0.attn_norm.weight"])] == 1e-3


def test_matrices_of_layers_go_by_muon_where_a_stage_asks_for_it(model: Any) -> None:
    stage = make_stage(trainable=["projector", "cross_attention", "language_model"], optimizer="muon")
    freeze_for_stage(model, stage)
    by_muon = {id(p) for group in parameter_groups(model, stage) if group["muon"] for p in group["params"]}
    names = {name.split(".", 1)[-1] for name, p in model.named_parameters() if id(p) in by_muon}
    assert {"weight", "0.cross_attn.q_proj.weight", "0.mlp.down_proj.weight"} <= names
    assert "model.layers.0.self_attn.o_proj.weight" in names
    assert not [name for name in names if "norm" in name or "embed" in name or "null_" in name or "lm_head" in name]
    plain = stage.model_copy(update={"optimizer": "adamw"})
    assert not any(group["muon"] for group in parameter_groups(model, plain))


def test_adapters_train_alone_and_merge_into_a_plain_model(foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "lora", **STAGES["instruct"], "trainable": ["projector"], "lora": {"rank": 2}}
    content = make_recipe(foundation, "cross", stage, "ground")
    run(content, tmp_path)
    before, adapted, after = (read_weights(tmp_path / name) for name in ("1-cross", "2-lora", "3-ground"))
    assert moved(before, adapted) == {"projector", "language_model"}
    changed = {name for name in before if not torch.equal(before[name], adapted[name])}
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    language = {name for name in changed if name.startswith("language_model")}
    assert all(name.split(".")[-2] in targets for name in language)
    assert len(language) == 4 * len(targets)
    assert moved(adapted, after) == {"projector", *CROSS_ATTENTION}
    record = json.loads((tmp_path / "stages.json").read_text())[1]
    assert 0 < record["trainable_modules"]["language_model"] < 10_000


def test_merging_keeps_what_the_adapted_model_says(model: Any) -> None:
    ids = torch.arange(5, 15).reshape(2, 5)
    plain = model(input_ids=ids).logits
    keys = set(model.state_dict())
    freeze_for_stage(model, make_stage(lora={"rank": 2}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted = model(input_ids=ids).logits
    merge_adapters(model)
    assert (adapted - plain).abs().max() > 0.01
    torch.testing.assert_close(model(input_ids=ids).logits, adapted, atol=1e-4, rtol=1e-3)
    assert set(model.state_dict()) == keys
    assert not hasattr(model.language_model, "peft_config")


def test_what_is_kept_on_the_way_is_a_plain_model_and_the_adapters_go_on(foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "lora", **STAGES["instruct"], "trainable": ["projector"], "lora": {"rank": 2}}
    constant = {**stage, "lr_scheduler": "constant_with_warmup", "warmup_ratio": 0.0}
    run(make_recipe(foundation, constant, snapshot_steps=2), tmp_path / "long")
    run(make_recipe(foundation, {**constant, "steps": 2}), tmp_path / "short")
    run(make_recipe(foundation, constant), tmp_path / "unseen")
    kept, short = (read_weights(tmp_path / name) for name in ("long/snapshots/1-lora-2", "short/1-lora"))
    assert kept.keys() == short.keys()
    for name, weight in short.items():
        torch.testing.assert_close(kept[name], weight)
    assert_same_weights(tmp_path / "long" / "1-lora", tmp_path / "unseen" / "1-lora")


def test_adapters_without_peft_name_the_extra(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'agevlm\[lora\]'"):
        freeze_for_stage(model, make_stage(lora={}))


def test_the_directory_of_a_run_tells_what_each_stage_did(foundation: Path, tmp_path: Path) -> None:
    run(make_recipe(foundation, "align", "cross"), tmp_path)
    records = json.loads((tmp_path / "stages.json").read_text())
    assert [record["name"] for record in records] == ["align", "cross"]
    assert all(record["steps"] == 3 and record["seconds"] > 0 for record in records)
    for record in records:
        assert record["trainable_parameters"] == sum(record["trainable_modules"].values())
        assert record["total_parameters"] > record["trainable_parameters"]
    assert set(records[0]["trainable_modules"]) == {"projector", "gates"}


def test_guidance_on_a_layer_that_is_not_there_stops_before_anything_trains(foundation: Path, tmp_path: Path) -> None:
    guided = {"name": "late", **STAGES["ground"], "guidance": {"layers": [7]}}
    with pytest.raises(ValueError, match="stage 'late' guides attention layer 7; the model has"):
        run(make_recipe(foundation, "align", guided), tmp_path)
    assert not (tmp_path / "log.jsonl").exists()
