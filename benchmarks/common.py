"""What the benchmarks share: a model of the embedded world's size, fair comparison in one run, floors, result files.

The weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ConvNextBackbone, ConvNextConfig, LlamaConfig, LlamaForCausalLM

from agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from agevlm.data.language import make_conversations
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene
from agevlm.files import write_beside
from agevlm.training.foundation import LanguageSpec, VisionSpec, image_processor
from agevlm.training.run import environment
from agevlm.training.timing import seconds
from agevlm.training.tokenizer import build_tokenizer

RESULTS = Path(__file__).parent / "results"


def build_network(attn_implementation: str = "eager", seed: int = 0) -> tuple[Any, AgeVlmProcessor]:
    """An AGE-VLM of the size of the embedded world's foundations, with open gates, and its processor."""
    torch.manual_seed(seed)
    world, language, vision = WorldSpec(), LanguageSpec(), VisionSpec()
    rng = np.random.default_rng(seed)
    drawn = (make_conversations(draw_scene(world, seed, i).annotation, rng, CATEGORIES, num=6) for i in range(200))
    tokenizer = build_tokenizer(message.content for made in drawn for c in made for message in c.messages)
    processor = AgeVlmProcessor.from_backbones(tokenizer, image_processor(world.image_size))
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            max_position_embeddings=512,
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_hidden_layers,
            num_attention_heads=language.num_attention_heads,
            num_key_value_heads=language.num_key_value_heads,
        )
    )
    backbone = ConvNextBackbone(
        ConvNextConfig(
            num_stages=len(vision.depths),
            hidden_sizes=list(vision.hidden_sizes),
            depths=list(vision.depths),
            patch_size=vision.patch_size,
            image_size=world.image_size,
            out_features=[f"stage{len(vision.depths)}"],
        )
    )
    model = AgeVlmForConditionalGeneration.from_backbones(
        decoder,
        backbone,
        image_token_id=processor.image_token_id,
        null_token=True,
        attn_gate_init=0.1,
        mlp_gate_init=0.1,
    )
    model.set_attn_implementation(attn_implementation)
    return model, processor


def clocks(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a piece of work: on the clock, and of the processor."""
    start = time.process_time()
    wall = seconds(work)
    return wall, time.process_time() - start


def compare(times_a: Sequence[float], times_b: Sequence[float], num_draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Medians of two arms timed pairwise in one run, in milliseconds, and the median ratio a / b of the pairs.

    Both members of a pair do the same work at almost the same moment, so neither long batches nor a slow moment of the
    machine sway the ratio. The interval is the 95 % percentile bootstrap over pairs.
    """
    assert len(times_a) > 1, times_a
    ratios = np.array(times_a) / np.array(times_b)
    draws = np.random.default_rng(seed).choice(ratios, size=(num_draws, len(ratios)))
    return {
        "median_a_ms": 1e3 * float(np.median(times_a)),
        "median_b_ms": 1e3 * float(np.median(times_b)),
        "ratio": float(np.median(ratios)),
        "ratio_interval": [float(q) for q in np.quantile(np.median(draws, axis=1), [0.025, 0.975])],
        "num_pairs": len(ratios),
    }


def machine_rates(dtype: torch.dtype, size: int = 1024, repeats: int = 7) -> dict[str, float]:
    """What this machine reaches now in a large product (operations a second) and a large copy (bytes a second)."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    source = torch.randn(16 * size * size)
    target = torch.empty_like(source)
    product_s = min(seconds(lambda: a @ b) for _ in range(repeats))
    copy_s = min(seconds(lambda: target.copy_(source)) for _ in range(repeats))
    return {"flops_per_s": 2 * size**3 / product_s, "bytes_per_s": 2 * source.numel() * 4 / copy_s}


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """Take the threads asked for, leave only the benchmark's own lines, and give the settings to be written."""
    torch.set_num_threads(args.threads)
    quiet()
    return {name: value for name, value in vars(args).items() if name != "out"}


def quiet() -> None:
    """Leave only the benchmark's own lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def write_result(name: str, result: dict[str, Any], out: Path | None = None) -> Path:
    """Write a result as JSON, with versions, machine and its load before and after beside the figures."""
    path = out or RESULTS / f"{name}.json"
    facts = {**environment(), "processor": _processor_name(), "num_cores": os.cpu_count(), "load_after": load()}
    with write_beside(path) as beside:
        beside.write_text(json.dumps({"environment": facts, **result}, indent=2) + "\n", encoding="utf-8")
    return path


def load() -> list[float]:
    """The machine's load over the last 1, 5 and 15 minutes: what else ran beside the benchmark."""
    return [round(value, 2) for value in os.getloadavg()]


def _processor_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())
