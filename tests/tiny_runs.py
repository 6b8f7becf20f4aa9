"""Tiny foundation checkpoints and tiny recipes: a stage of three steps takes well under a second."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from agevlm.data.language import make_conversations
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene

SCENES = {"num_scenes": 12, "scenes": {"max_objects": 3}}
GUIDED = {"loss": "kl", "weight": 0.5}
STAGES: dict[str, dict[str, Any]] = {
    "align": {"trainable": ["projector", "gates"], "kinds": {"caption": 1.0, "caption.relation": 0.5}},
    "cross": {"trainable": ["projector", "cross_attention"], "kinds": {"caption": 1.0}},
    "ground": {"trainable": ["projector", "cross_attention"], "guidance": GUIDED},
    "instruct": {
        "trainable": ["projector", "cross_attention", "language_model"],
        "guidance": GUIDED,
        "text_ratio": 0.2,
    },
}


def make_foundation(directory: Path) -> Path:
    """Random `llama` and `convnext` checkpoints in `directory`, with a tokenizer of the world's words."""
    from tiny_models import make_text_config, make_vision_config
    from transformers import AutoBackbone, AutoModelForCausalLM

    from agevlm.training.foundation import image_processor
    from agevlm.training.tokenizer import build_tokenizer

    rng = np.random.default_rng(0)
    annotated = [draw_scene(WorldSpec(), 5, index).annotation for index in range(40)]
    drawn = [c for a in annotated for c in make_conversations(a, rng, CATEGORIES, num=6)]
    tokenizer = build_tokenizer((m.content for c in drawn for m in c.messages), vocab_size=420)
    tokenizer.save_pretrained(directory / "llama")
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = make_text_config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids, tie_word_embeddings=True
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory / "llama")
    vision = make_vision_config(out_features=["stage2"], patch_size=8)
    AutoBackbone.from_config(vision).save_pretrained(directory / "convnext")
    image_processor(96).save_pretrained(directory / "convnext")
    return directory


def make_recipe(foundation: Path, *stages: str | dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The content of a recipe with the named stages of `STAGES`, or stages given whole; three steps each."""
    small = {"steps": 3, "images_per_batch": 2, "questions_per_image": 2, "learning_rate": 0.01}
    named = [{"name": stage, **STAGES[stage]} if isinstance(stage, str) else stage for stage in stages]
    return {
        "name": "tiny",
        "model": {"language_model": str(foundation / "llama"), "vision_model": str(foundation / "convnext")},
        "data": {"scenes": SCENES},
        "stages": [{**small, **stage} for stage in named],
        "evaluation": None,
        "num_workers": 0,
        "save_steps": 2,
        **settings,
    }


def run(content: dict[str, Any], out: Path, **options: Any) -> Path:
    """Train a recipe given by its content, quietly."""
    from agevlm.training.recipe import parse_recipe
    from agevlm.training.run import train

    return train(parse_recipe(content, "recipe"), out, console=Console(file=io.StringIO()), **options)


def read_losses(out: Path) -> list[dict[str, Any]]:
    """The log of a run without its times."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time_s"} for line in lines]


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    """Two checkpoints hold the same weights to the last bit."""
    left, right = read_weights(first), read_weights(second)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
