"""What a model of real size takes on this machine: memory and time of a forward, a training step and an answer.

    python benchmarks/full_size.py --out full_size.json

The shapes are those of Llama-3.2-1B and SmolLM2-135M with random weights in bfloat16, built without a copy in float32.
Pictures come as feature maps. The training step is the trainer's own, of the grounding stage: projector and
cross-attention train, held in float32, beside a frozen decoder in bfloat16, with gradient checkpointing and guidance.
Answers take turns with transformers' Llama, which holds the same weights and answers text alone. What the added weights
allow is the bytes that Llama reads for a token over those that ours reads; `share_of_allowed` is how much of it is
reached. A third arm is ours compiled. Memory is the most that the process held then, on Linux.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import begin, clocks, compare, load, machine_rates, write_result
from stacks import NUM_CHANNELS, BatchShape, StackShape, build_batch, build_guidance
from transformers import ConvNextConfig, LlamaConfig, LlamaForCausalLM

from agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration
from agevlm.training.recipe import GuidanceRecipe, StageRecipe
from agevlm.training.timing import prepared, step_times

LARGE = {"text_len": 64, "grid": (32, 32), "num_pictures": 1, "questions_per_picture": 4, "supervised_ratio": 0.25}
SHAPES = {
    "135m": StackShape(49_152, 576, 1536, 30, (), 9, 3, tied=True),
    "1b": StackShape(128_256, 2048, 8192, 16, (), 32, 8, tied=True),
}
MAX_WIDE = 20_000  # layers times width of a shape that answers in float32 as well
TOY = StackShape(64, 32, 48, 4, (), 4, 2, tied=True)
STAGE = StageRecipe(
    name="ground",
    trainable=("projector", "cross_attention"),
    guidance=GuidanceRecipe(weight=0.3),
    steps=1,
    learning_rate=1e-4,
    gradient_checkpointing=True,
)


def build(shape: StackShape, dtype: torch.dtype) -> Any:
    """An AGE-VLM with cross-attention layers where it would have them by default, and open gates."""
    decoder = LlamaConfig(num_hidden_layers=shape.num_layers, **shape.decoder)
    vision = ConvNextConfig(num_stages=1, hidden_sizes=[NUM_CHANNELS], depths=[1], out_features=["stage1"])
    config = AgeVlmConfig(
        text_config=decoder, vision_config=vision, null_token=True, attn_gate_init=0.1, mlp_gate_init=0.1
    )
    torch.manual_seed(0)
    model = AgeVlmForConditionalGeneration._from_config(config, dtype=dtype)
    return model.eval()


def text_alone(model: Any) -> Any:
    """transformers' Llama with the decoder's own weights, not a copy of them."""
    with torch.device("meta"):
        llama = LlamaForCausalLM(model.config.text_config)
    llama.load_state_dict(model.language_model.state_dict(), assign=True)
    llama.tie_weights()
    llama.model.rotary_emb = model.language_model.model.rotary_emb  # its buffers are in no checkpoint
    return llama.eval()


def peak_of(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a piece of work, and the most bytes that the process held in it; null where no system says so."""
    gc.collect()
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if clear.exists():
        clear.write_text("5", encoding="ascii")  # the peak so far is forgotten
    wall, processor = clocks(work)
    lines = status.read_text(encoding="ascii").splitlines() if clear.exists() else []
    peak = next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return {"seconds": wall, "processor_seconds": processor, "peak_bytes": peak}


def measure_forward(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """All logits of a batch's last tokens, without gradients, behind a pass that is not counted."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    inputs["image_features"] = inputs["image_features"].to(model.dtype)

    @torch.no_grad()
    def run() -> None:
        model(**inputs, logits_to_keep=1)

    run()
    return peak_of(run)


def measure_step(model: Any, batch: dict[str, Any], guidance: Any, turns: int) -> dict[str, Any]:
    """The second step of the grounding stage and those behind it; the model is left in the dtypes of training."""
    asked, shares, present = guidance
    batch = {name: value for name, value in batch.items() if name != "use_cache"}
    batch |= {"attention_rows": asked, "guidance_shares": shares, "guidance_present": present}
    times: list[tuple[float, float]] = []
    with prepared(model, STAGE) as counts:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        whole = peak_of(lambda: times.extend(step_times(model, STAGE, [batch] * (turns + 1), torch.bfloat16)))
    wall, processor = (sorted(clock)[len(clock) // 2] for clock in zip(*times, strict=True))
    trained = sum(count["trainable"] for count in counts.values())
    return {
        "seconds": wall,
        "processor_seconds": processor,
        "peak_bytes": whole["peak_bytes"],
        "trainable_parameters": trained,
    }


def bytes_a_token(model: Any) -> dict[str, int]:
    """Bytes of weights that a new token reads: all of the decoder's, and of cross-attention all but keys and values."""
    decoder = sum(parameter.nbytes for parameter in model.language_model.parameters())
    once = ("k_proj", "v_proj", "position_proj", "k_norm", "null_")  # read when a picture is encoded
    added = sum(p.nbytes for name, p in model.cross_attention.named_parameters() if not any(x in name for x in once))
    return {"llama": decoder, "ours": decoder + added}


def measure_answers(model: Any, batch: dict[str, Any], num_tokens: int, turns: int) -> dict[str, Any]:
    """Answers of ours on an encoded picture, in turns with those of Llama on the text alone."""
    llama = text_alone(model)
    prompt = batch["input_ids"][:1]
    features = batch["image_features"].to(model.dtype)
    fixed = {"do_sample": False, "max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    with torch.no_grad():
        memory = model.encode_images(image_features=features)
    images = {"image_memory": memory, "images_seen": torch.ones_like(prompt)}
    arms = {
        "ours": lambda: model.generate(prompt, **images, **fixed),
        "llama": lambda: llama.generate(prompt, **fixed),
        "compiled": lambda: model.generate(prompt, **images, **fixed, compiled=True),
    }
    peaks = {name: peak_of(arm)["peak_bytes"] for name, arm in arms.items()}  # they warm up, too
    same = (arms["ours"]() == arms["compiled"]()).float().mean()
    timed = [{name: clocks(arm) for name, arm in arms.items()} for _ in range(turns)]
    read = bytes_a_token(model)
    allowed = read["llama"] / read["ours"]
    found: dict[str, Any] = {"num_tokens": num_tokens, "bytes_a_token": read, "allowed": allowed, "peak_bytes": peaks}
    found["same_tokens_compiled"] = float(same)
    for number, clock in enumerate(("wall", "processor")):
        seconds = {name: [turn[name][number] for turn in timed] for name in arms}
        times = compare(seconds["llama"], seconds["ours"])
        faster = compare(seconds["ours"], seconds["compiled"])
        found[clock] = {
            "llama_tokens_per_s": 1e3 * num_tokens / times["median_a_ms"],
            "ours_tokens_per_s": 1e3 * num_tokens / times["median_b_ms"],
            "share_of_allowed": times["ratio"] / allowed,
            "share_interval": [end / allowed for end in times["ratio_interval"]],
            "compiled_tokens_per_s": 1e3 * num_tokens / faster["median_b_ms"],
            "compiled_times_as_fast": faster["ratio"],
            "compiled_interval": faster["ratio_interval"],
        }
    return found


def measure(shape: StackShape, args: argparse.Namespace) -> dict[str, Any]:
    """One shape: answers and a forward in bfloat16, then a training step."""
    batch_shape = BatchShape(**LARGE)
    if args.toy:
        batch_shape = replace(batch_shape, grid=(4, 4), text_len=16)
    batch = build_batch(batch_shape, shape.vocabulary_size)
    model = build(shape, torch.bfloat16)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    found: dict[str, Any] = {"parameters": parameters}
    found["answer"] = measure_answers(model, batch, args.num_tokens, args.turns)
    if shape.num_layers * shape.width < MAX_WIDE:
        model.float()
        found["answer_float32"] = measure_answers(model, batch, args.num_tokens, args.turns)
        model.bfloat16()
    found["forward"] = measure_forward(model, batch)
    found["step"] = measure_step(model, batch, build_guidance(batch_shape), args.turns)
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Three lines for a shape."""
    for kind in ("forward", "step"):
        work = found[kind]
        print(f"{name:5} {kind:8} {work['seconds']:8.2f} s  {(work['peak_bytes'] or 0) / 2**30:6.2f} GiB", flush=True)
    for kind in [key for key in found if key.startswith("answer")]:
        for clock in ("wall", "processor"):
            times = found[kind][clock]
            low, high = times["share_interval"]
            print(
                f"{name:5} {kind:14} {times['ours_tokens_per_s']:7.2f} tokens/s, Llama "
                f"{times['llama_tokens_per_s']:.2f}: {times['share_of_allowed']:.3f} of allowed ({low:.3f} to "
                f"{high:.3f}); compiled {times['compiled_tokens_per_s']:.2f}, {times['compiled_times_as_fast']:.2f} "
                f"times as fast; {clock} time",
                flush=True,
            )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--turns", type=int, default=3, help="times that every arm is timed")
    parser.add_argument("--num-tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--toy", action="store_true", help="a tiny shape: shows that it runs, says nothing of time")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/full_size.json if not given")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings = begin(args)
    shapes = {"toy": TOY} if args.toy else {name: SHAPES[name] for name in args.shapes}
    before, rates = load(), machine_rates(torch.bfloat16)
    results = {}
    for name, shape in shapes.items():
        results[name] = measure(shape, args)
        show(name, results[name])
    print(f"load before {before}, after {load()}")
    result = {"settings": settings, "load_before": before, "rates": rates, "results": results}
    print(write_result("full_size", result, args.out))


if __name__ == "__main__":
    main()
