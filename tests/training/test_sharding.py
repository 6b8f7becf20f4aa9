"""A model divided over processes: the run of one process, through its checkpoints, and what cannot be divided."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import launch_script
from test_resume import KilledError, kill_at
from tiny_models import make_model
from tiny_runs import STAGES, make_recipe, read_losses, read_weights, run

from agevlm.training.recipe import parse_recipe
from agevlm.training.sharding import check_divisible, drop_weights, give_weights, take_weights
from agevlm.training.trainer import find_checkpoints

KILLED = """
import gc, os, sys
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from agevlm.training.progress import RunProgress
from agevlm.training.run import train
original = RunProgress.step
def step(self, record):
    original(self, record)
    if self.first_step + record["step"] == {step}:
        gc.unfreeze()  # the model is among what training leaves out of collections
        held = [p for p in gc.get_objects() if isinstance(p, Parameter)]
        whole = sum(p.untyped_storage().nbytes() for p in held if not isinstance(p, DTensor))
        os._exit(7 if any(isinstance(p, DTensor) for p in held) and not whole else 8)  # parts are all that is held
RunProgress.step = step
train(sys.argv[1], sys.argv[2], resume=True)
"""


def recipe_of(foundation: Path) -> dict[str, Any]:
    """A stage with a frozen decoder; one that trains all, tied head included, with accumulated batches."""
    whole = {"name": "instruct", **STAGES["instruct"], "steps": 7, "gradient_accumulation_steps": 2}
    return make_recipe(foundation, "ground", whole, shard=True, seed=3)


@pytest.mark.slow
def test_a_divided_model_goes_on_with_a_whole_one_and_back(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(foundation)
    run(recipe, tmp_path / "one")
    out = tmp_path / "several"
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(3 + 3, patch)
        run(recipe, out)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "killed.py").write_text(KILLED.format(step=3 + 5))
    launch = launch_script(2, str(tmp_path / "killed.py"), str(tmp_path / "recipe.yaml"), str(out))
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert "exitcode  : 7" in done.stderr, done.stderr
    (checkpoint,) = find_checkpoints(out / "2-instruct")
    assert checkpoint.name == "checkpoint-4"  # written by two
    assert torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    run(recipe, out, resume=True)
    first, second = read_losses(tmp_path / "one"), read_losses(out)
    assert [line["global_step"] for line in second] == list(range(1, 11))
    for left, right in zip(first, second, strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert right[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
    weights, others = read_weights(tmp_path / "one" / "model"), read_weights(out / "model")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_weights_are_held_by_a_model_or_the_copy_that_trains(foundation: Path) -> None:
    model = make_model()
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight  # tied
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    taken = take_weights(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 0
    assert taken.language_model.lm_head.weight is taken.language_model.model.embed_tokens.weight
    state = {name: weight.detach().bfloat16() for name, weight in taken.state_dict().items()}
    assert all(torch.equal(weight, expected[name]) for name, weight in taken.state_dict().items())
    give_weights(model, state)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name].bfloat16().float()), name
    drop_weights(model)
    with pytest.raises(RuntimeError, match="stranger"):
        give_weights(model, {**state, "stranger": torch.zeros(1)})


def test_what_cannot_be_divided_is_named(foundation: Path) -> None:
    model = make_model()
    check_divisible(model)
    model.projector.weight = torch.nn.Parameter(model.projector.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"projector\.weight holds int8.*shard=false"):
        check_divisible(model)
    recipe = recipe_of(foundation)
    with pytest.raises(ValueError, match="compile"):
        parse_recipe({**recipe, "compile": True}, "recipe")
    recipe["stages"][1]["optimizer"] = "muon"
    with pytest.raises(ValueError, match=r"'instruct' trains by muon.*shard=false"):
        parse_recipe(recipe, "recipe")
