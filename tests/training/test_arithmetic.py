"""What is held in which type while a stage trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_model
from tiny_runs import make_recipe, read_losses, read_weights, run
from transformers import AutoModelForCausalLM

from agevlm.training.arithmetic import autocast, frozen_in_bfloat16


@pytest.fixture
def model() -> Any:
    """A language model that came in bfloat16, with a tied head; its first layer trains."""
    model = make_model().language_model.bfloat16().float().requires_grad_(False)
    model.model.layers[0].requires_grad_(True)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def test_frozen_layers_are_held_in_bfloat16_for_a_while(model: Any) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = 1 / 3  # no number of bfloat16
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with frozen_in_bfloat16(model, torch.bfloat16):
        held = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name for name, dtype in held.items() if dtype == torch.bfloat16} == {
        name for name in held if "layers.0" not in name and name.split(".")[-2] in layers
    } - {"model.layers.2.mlp.up_proj.weight"}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])


def test_in_float32_nothing_is_narrowed(model: Any) -> None:
    with frozen_in_bfloat16(model, torch.float32):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_step_stays_the_same_to_the_last_bit(model: Any) -> None:
    ids = torch.arange(5, 25).view(2, 10)

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        with autocast(torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    plain = step()
    with frozen_in_bfloat16(model, torch.bfloat16):
        narrow = step()
    assert len(plain) > 5
    assert all(torch.equal(one, other) for one, other in zip(plain, narrow, strict=True))


def test_a_run_is_the_same_and_writes_the_same_files(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = tmp_path / "llama"
    AutoModelForCausalLM.from_pretrained(foundation / "llama").bfloat16().save_pretrained(llama)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).write_bytes((foundation / "llama" / name).read_bytes())
    recipe = make_recipe(foundation, "ground", "instruct", dtype="bfloat16", snapshot_steps=2)
    recipe["model"]["language_model"] = str(llama)
    held: list[set[torch.dtype]] = []

    @contextmanager
    def watched(model: Any, dtype: torch.dtype) -> Iterator[None]:
        with frozen_in_bfloat16(model, dtype):
            held.append({parameter.dtype for parameter in model.parameters()})
            yield

    monkeypatch.setattr("agevlm.training.run.frozen_in_bfloat16", watched)
    run(recipe, tmp_path / "narrow")
    assert held == [{torch.float32, torch.bfloat16}, {torch.float32}]
    monkeypatch.setattr("agevlm.training.run.frozen_in_bfloat16", lambda *_: nullcontext())
    run(recipe, tmp_path / "plain")
    losses = [[line["loss"] for line in read_losses(tmp_path / name)] for name in ("narrow", "plain")]
    assert losses[0] == losses[1]
    for place in ("model", "1-ground", "snapshots/1-ground-2"):
        narrow, plain = (read_weights(tmp_path / name / place) for name in ("narrow", "plain"))
        assert narrow.keys() == plain.keys()
        for name, tensor in plain.items():
            assert narrow[name].dtype == torch.float32
            assert torch.equal(narrow[name], tensor), name
