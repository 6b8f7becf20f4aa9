"""Train a model of somebody else's in the drawn world: transformers' own LLaVA, small, and beside it our concatenation.

    python benchmarks/train_llava.py llava --out runs/llava
    python benchmarks/train_llava.py concat --out runs/concat

Both start from the packaged language model, read the same pictures and conversations in the same order, and take the
same steps with the same optimiser; every row has one picture and several questions about it. Concatenation has the
packaged ConvNeXt. LLaVA needs a tower that gives tokens: a SigLIP encoder, which first learns to give that ConvNeXt's
features (`--distil-steps`), for a transformer that sees its first picture in the drawn world learns too slowly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import quiet
from torch import Tensor, nn

from agevlm import AgeVlmProcessor, ConcatVlmForConditionalGeneration
from agevlm.checkpoints import resolve_model
from agevlm.data.chat import tokenise_conversation
from agevlm.data.language import make_conversations
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene, split_seed
from agevlm.data.schema import Conversation
from agevlm.files import write_beside
from agevlm.modeling.vision import load_backbone
from agevlm.training.arithmetic import autocast, choose_arithmetic
from agevlm.training.muon import Muon

SIDE, PATCH, WIDTH = 96, 8, 128
KINDS = {
    "caption": 0.1,
    "presence": 0.6,
    "presence.colour": 0.06,
    "counting": 0.06,
    "colour": 0.06,
    "location": 0.04,
    "relation.choice": 0.04,
    "relation.yes_no": 0.04,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

Pictures = Tensor  # (I, 3, SIDE, SIDE) float32 in [-1, 1]


def draw(num: int, seed: int) -> tuple[Pictures, list[Any]]:
    """Pictures of the training split, and their annotations."""
    scenes = [draw_scene(WorldSpec(), split_seed("train", seed), index) for index in range(num)]
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, [scene.annotation for scene in scenes]


def make_llava(processor: AgeVlmProcessor) -> tuple[Any, Any]:
    """LLaVA from the packaged language model and a new tower, and its processor."""
    tokenizer = processor.tokenizer
    language = transformers.AutoModelForCausalLM.from_pretrained(resolve_model("tiny-llama"))
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = transformers.LlavaConfig(
        text_config=language.config,
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = language.generation_config
    pixels = transformers.SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    llava = transformers.LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )
    return model, llava


def distil(model: Any, pictures: Pictures, steps: int, dtype: torch.dtype) -> None:
    """Let the tower give the features of the packaged ConvNeXt, up to a linear map."""
    teacher = load_backbone(resolve_model("tiny-convnext")).eval()
    tower, head = model.model.vision_tower, nn.Linear(WIDTH, teacher.channels[-1])
    with torch.no_grad():
        some = teacher(pictures[:256]).feature_maps[-1]
    mean, std = (found[None, :, None, None] for found in (some.mean((0, 2, 3)), some.std((0, 2, 3))))
    for step, batch in enumerate(batches(len(pictures), 32, steps, seed=1)):
        if step == 0:
            optimiser, schedule = optimise([tower, head], steps, 2e-3, dtype)
        with autocast(dtype):
            with torch.no_grad():
                wanted = ((teacher(pictures[batch]).feature_maps[-1].float() - mean) / std).flatten(2).transpose(1, 2)
            seen = tower(pixel_values=pictures[batch], output_hidden_states=True).hidden_states[-1]
            loss = (head(seen).float() - wanted).square().mean()
        advance(loss, optimiser, schedule, step, steps, "distil")


def batches(num: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Numbers of pictures, each order new, the same for every model."""
    rng, order = np.random.default_rng(seed), []
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(num).tolist()
        batch, order = order[:size], order[size:]
        yield batch


def optimise(modules: list[nn.Module], steps: int, rate: float, dtype: torch.dtype) -> tuple[Muon, Any]:
    """Muon for the matrices of linear layers, AdamW for all else; warm-up, then down to 0 in the last two fifths."""
    linear = {id(m.weight) for top in modules for m in top.modules() if isinstance(m, nn.Linear)}
    tied = {id(m.weight) for top in modules for m in top.modules() if isinstance(m, nn.Embedding)}
    parameters = {id(p): p for top in modules for p in top.parameters() if p.requires_grad}
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for key, parameter in parameters.items():
        groups[key in linear and key not in tied].append(parameter)
    made = [{"params": found, "muon": muon, "weight_decay": 0.01} for muon, found in groups.items() if found]
    optimiser = Muon(made, lr=rate, betas=(0.9, 0.98), arithmetic=dtype)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min((s + 1) / 20, (steps - s) / (0.4 * steps), 1))
    return optimiser, schedule


def advance(loss: Tensor, optimiser: Muon, schedule: Any, step: int, steps: int, name: str) -> None:
    """One update."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    optimiser.zero_grad()
    schedule.step()
    if step % 50 == 0 or step == steps - 1:
        print(f"{name} {step} loss {loss.item():.3f} at {time.process_time():.0f} s", flush=True)


def row_of(processor: Any, annotation: Any, rng: np.random.Generator, num_questions: int) -> Any:
    """Several questions about one picture as one conversation in tokens."""
    made = make_conversations(annotation, rng, CATEGORIES, KINDS, num_questions)
    first = True
    messages = []
    for message in (message for conversation in made for message in conversation.messages):
        shown = message.num_images if first else 0
        first = first and not message.num_images
        messages.append(replace(message, num_images=shown))
    return tokenise_conversation(processor, Conversation(made[0].id, "conversation", tuple(messages)))


def collate(rows: list[Any], image_id: int, num_image_tokens: int, pad_id: int) -> dict[str, Tensor]:
    """Rows padded on the right; an image token is as many as its picture has."""
    ids, labels = [], []
    for row in rows:
        told: list[tuple[int, int]] = []
        for token, said in zip(row.input_ids, row.supervised, strict=True):
            told += [(token, token if said else -100)] * (num_image_tokens if token == image_id else 1)
        ids.append([token for token, _ in told])
        labels.append([label for _, label in told])
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [pad_id] * (longest - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (longest - len(row)) for row in labels]),
    }


def train(model: Any, processor: Any, drawn: tuple[Pictures, list[Any]], args: Any, dtype: torch.dtype) -> None:
    """The same rows in the same order for every model."""
    pictures, annotations = drawn
    expanded = (SIDE // PATCH) ** 2 if args.model == "llava" else 1
    optimiser, schedule = optimise([model], args.steps, args.learning_rate, dtype)
    rng, pad_id = np.random.default_rng(args.seed), processor.tokenizer.pad_token_id
    model.train()
    for step, batch in enumerate(batches(len(pictures), args.batch_size, args.steps, args.seed)):
        rows = [row_of(processor, annotations[number], rng, args.questions) for number in batch]
        told = collate(rows, model.config.image_token_id, expanded, pad_id)
        with autocast(dtype):
            loss = model(**told, pixel_values=pictures[batch], use_cache=False).loss
        advance(loss, optimiser, schedule, step, args.steps, args.model)
    model.eval()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("llava", "concat"))
    parser.add_argument("--out", type=Path, required=True, help="the directory of the checkpoint")
    parser.add_argument("--num-scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--distil-steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures of a step")
    parser.add_argument("--questions", type=int, default=5, help="questions about each picture of a step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, save, and say how long it took."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    quiet()
    dtype, started = choose_arithmetic(device="cpu"), time.perf_counter()
    processor: Any = AgeVlmProcessor.from_pretrained(resolve_model("tiny"))
    drawn = draw(args.num_scenes, args.seed)
    if args.model == "llava":
        model, processor = make_llava(processor)
        distil(model, drawn[0], args.distil_steps, dtype)
    else:
        model = ConcatVlmForConditionalGeneration.from_backbones(
            resolve_model("tiny-llama"), resolve_model("tiny-convnext"), image_token_id=processor.image_token_id
        )
        model.vision_model.requires_grad_(False)
    train(model, processor, drawn, args, dtype)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    took = {"cpu_s": time.process_time(), "wall_s": time.perf_counter() - started}
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    with write_beside(args.out / "training.json") as beside:
        beside.write_text(json.dumps({**settings, **took, "dtype": str(dtype)}, indent=1) + "\n", encoding="utf-8")
    print(f"{args.out}: {took['cpu_s']:.0f} s of one core")


if __name__ == "__main__":
    main()
