"""Train a model of somebody else's in the drawn world: transformers' own LLaVA, small, and beside it our concatenation.

    python benchmarks/train_llava.py llava --out runs/llava
    python benchmarks/train_llava.py concat --out runs/concat

Both start from the packaged language model, read the same pictures and questions in the same order, take the same
steps with the same optimiser, and are guided alike: words of things that are there look at their masks, in every layer
of the decoder (`--guidance-weight 0` lets them look where they like). A picture is 6 by 6 image tokens, and questions
about it do not see each other. Concatenation has the packaged ConvNeXt, pooled. LLaVA needs a tower that gives tokens:
a SigLIP encoder, which first learns to give that ConvNeXt's features (`--distil-steps`), for a transformer that sees
its first picture in the drawn world learns too slowly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import quiet
from torch import Tensor, nn

from agevlm import AgeVlmProcessor, ConcatVlmForConditionalGeneration
from agevlm.checkpoints import load_vlm, resolve_model
from agevlm.data.collate import Collator
from agevlm.data.language import make_conversations
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene, split_seed
from agevlm.data.schema import Sample
from agevlm.files import write_beside
from agevlm.guidance.losses import guidance_loss
from agevlm.modeling.vision import load_backbone
from agevlm.training.arithmetic import autocast, choose_arithmetic
from agevlm.training.muon import Muon
from agevlm.vlms.attention import RowReader, reading

SIDE, PATCH, WIDTH = 96, 16, 128
GRID = (SIDE // PATCH, SIDE // PATCH)
OTHER_KINDS = {  # of what is not presence
    "caption": 0.25,
    "presence.colour": 0.15,
    "counting": 0.15,
    "colour": 0.15,
    "location": 0.1,
    "relation.choice": 0.1,
    "relation.yes_no": 0.1,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Shapes: I pictures, R rows of text about them, T tokens of a row, S of it behind the picture, P up to the picture's
# last, X tokens of a packed sequence, K guided positions of a row, Q of all rows of a picture, N image tokens,
# C channels, H heads (of features: their grid H by W).


@dataclass(frozen=True)
class Drawn:
    """Pictures (I, 3, SIDE, SIDE) in [-1, 1], what is in them, and what the packaged ConvNeXt makes of them."""

    pictures: Tensor
    annotations: list[Any]
    features_ICHW: Tensor  # float16, before pooling


@torch.inference_mode()
def draw(num: int, seed: int) -> Drawn:
    """Pictures of the training split."""
    scenes = [draw_scene(WorldSpec(), split_seed("train", seed), index) for index in range(num)]
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    pictures, teacher = pixels.float() / 127.5 - 1, load_backbone(resolve_model("tiny-convnext")).eval()
    features = [teacher(pictures[n : n + 64]).feature_maps[-1].half() for n in range(0, num, 64)]
    return Drawn(pictures.clone(), [scene.annotation for scene in scenes], torch.cat(features).clone())


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


def distil(model: Any, drawn: Drawn, steps: int, dtype: torch.dtype) -> None:
    """Let the tower give the pooled features of the packaged ConvNeXt, up to a linear map."""
    wanted_INC = nn.functional.avg_pool2d(drawn.features_ICHW.float(), 2).flatten(2).transpose(1, 2)
    wanted_INC = (wanted_INC - wanted_INC.mean((0, 1))) / wanted_INC.std((0, 1))
    tower, head = model.model.vision_tower, nn.Linear(WIDTH, wanted_INC.shape[-1])
    optimiser, schedule = optimise([tower, head], steps, 2e-3, dtype)
    for step, batch in enumerate(batches(len(wanted_INC), 64, steps, seed=1)):
        with autocast(dtype):
            seen = tower(pixel_values=drawn.pictures[batch], output_hidden_states=True).hidden_states[-1]
        loss = (head(seen.float()) - wanted_INC[batch]).square().mean()
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


def asked(drawn: Drawn, batch: list[int], rng: np.random.Generator, args: Any) -> list[tuple[Sample, Any]]:
    """Pictures with several questions about each, and their features, as a collator takes them."""
    kinds = {"presence": args.presence} | {kind: (1 - args.presence) * of for kind, of in OTHER_KINDS.items()}
    items = []
    for number in batch:
        annotation = drawn.annotations[number]
        made = make_conversations(annotation, rng, CATEGORIES, kinds, args.questions)
        items.append(
            (Sample(annotation.image.id, (annotation.image,), made), drawn.features_ICHW[number, None].numpy())
        )
    return items


def packed(told: dict[str, Any], image_id: int, num_image_tokens: int) -> dict[str, Tensor]:
    """Rows (R, T) about I pictures as sequences (I, X): a picture once, then its questions, blind to each other.

    `positions` (R, K) are the guided positions in the sequence.
    """
    each, ids_RT = told["rows_per_image"], told["input_ids"]
    place_R = (ids_RT == image_id).int().argmax(1)
    before = int(told["attention_mask"][0, : place_R[0]].sum())  # tokens in front of the picture
    front, num_text = before + num_image_tokens, ids_RT.shape[1] - int(place_R.min()) - 1
    columns_RS = place_R[:, None] + 1 + torch.arange(num_text)
    real_RS = columns_RS < ids_RT.shape[1]
    ids_RS, labels_RS = (
        told[name].gather(1, columns_RS.clamp(max=ids_RT.shape[1] - 1)) for name in ("input_ids", "labels")
    )
    ids_IT, start_I1 = ids_RT[::each], place_R[::each, None]
    pictures_IN = ids_IT.new_full((len(ids_IT), num_image_tokens), image_id)
    prefix_IP = torch.cat([ids_IT.gather(1, start_I1 - before + torch.arange(before)), pictures_IN], 1)
    labels_IX = labels_RS.masked_fill(~real_RS, -100).view(len(ids_IT), -1)
    block_R = torch.arange(len(ids_RT)) % each
    shift_R = front + block_R * num_text - place_R - 1
    block_X = torch.cat([torch.full((front,), -1), torch.arange(each).repeat_interleave(num_text)])
    causal_XX = torch.ones(len(block_X), len(block_X)).tril().bool()
    seen_XX = causal_XX & ((block_X[:, None] == block_X) | (block_X == -1))
    place_X = torch.cat([torch.arange(front), (front + torch.arange(num_text)).repeat(each)])
    return {
        "input_ids": torch.cat([prefix_IP, ids_RS.view(len(ids_IT), -1)], 1),
        "labels": torch.cat([torch.full_like(prefix_IP, -100), labels_IX], 1),
        "position_ids": place_X.expand(len(ids_IT), -1),
        "attention_mask": seen_XX.expand(len(ids_IT), 1, -1, -1),
        "positions": (told["attention_rows"] + shift_R[:, None]).clamp(min=0),
    }


def step_of_llava(model: Any, told: dict[str, Any], pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss of a batch, and of each layer the attention (R, H, K, N) of guided positions on image tokens, sum 1."""
    each, num_image_tokens = told["rows_per_image"], GRID[0] * GRID[1]
    made = packed(told, model.config.image_token_id, num_image_tokens)
    positions_RK, decoder = made.pop("positions"), model.get_decoder()
    reader = RowReader(
        {module: number for number, layer in enumerate(decoder.layers) for module in layer.modules()},
        positions_RK.view(len(pictures), -1),
    )
    with reading(reader, decoder):
        loss = model(**made, pixel_values=pictures, use_cache=False).loss
    start = int((made["input_ids"][0] == model.config.image_token_id).int().argmax())
    weights = []
    for weights_IHQX in reader.weights.values():
        of_picture = weights_IHQX[..., start : start + num_image_tokens]
        of_picture = of_picture / of_picture.sum(-1, keepdim=True).clamp(min=1e-9)
        weights.append(of_picture.unflatten(2, (each, -1)).transpose(1, 2).flatten(0, 1))
    return loss, weights


def step_of_concat(model: Any, told: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The same of our concatenation."""
    names = (
        "input_ids",
        "attention_mask",
        "labels",
        "image_features",
        "images_seen",
        "rows_per_image",
        "attention_rows",
    )
    output = model(**{name: told[name] for name in names}, use_cache=False)
    return output.loss, list(output.row_weights)


def train(model: Any, processor: Any, drawn: Drawn, args: Any, dtype: torch.dtype) -> None:
    """The same questions in the same order for every model."""
    collate = Collator(processor, GRID, guided=True, free_answers=("counting",))
    optimiser, schedule = optimise([model], args.steps, args.learning_rate, dtype)
    rng = np.random.default_rng(args.seed)
    model.train()
    for step, batch in enumerate(batches(len(drawn.pictures), args.batch_size, args.steps, args.seed)):
        told = collate(asked(drawn, batch, rng, args))
        with autocast(dtype):
            if args.model == "llava":
                loss, weights = step_of_llava(model, told, drawn.pictures[batch])
            else:
                loss, weights = step_of_concat(model, told)
        guidance, num = guidance_loss(weights, told["guidance_shares"], told["guidance_present"])
        guidance = guidance / max(num, 1)
        name = f"{args.model} guidance {guidance.item():.3f}"
        advance(loss + args.guidance_weight * guidance, optimiser, schedule, step, args.steps, name)
    model.eval()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("llava", "concat"))
    parser.add_argument("--out", type=Path, required=True, help="the directory of the checkpoint")
    parser.add_argument("--num-scenes", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--distil-steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures of a step")
    parser.add_argument("--questions", type=int, default=4, help="questions about each picture of a step")
    parser.add_argument("--presence", type=float, default=0.6, help="the share of questions whether a thing is there")
    parser.add_argument("--init", type=Path, help="go on from a checkpoint of this script, in place of a new model")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--guidance-weight", type=float, default=1.5)
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
    ours: Any = AgeVlmProcessor.from_pretrained(resolve_model("tiny"))
    processor, drawn = ours, draw(args.num_scenes, args.seed)
    if args.init is not None:
        model, processor = load_vlm(args.init, "cpu", "float32")
        if args.model == "concat":
            model.vision_model.requires_grad_(False)
    elif args.model == "llava":
        model, processor = make_llava(ours)
        distil(model, drawn, args.distil_steps, dtype)
    else:
        model = ConcatVlmForConditionalGeneration.from_backbones(
            resolve_model("tiny-llama"),
            resolve_model("tiny-convnext"),
            image_token_id=ours.image_token_id,
            pool_size=2,
        )
        model.vision_model.requires_grad_(False)
    train(model, ours, drawn, args, dtype)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    took = {"cpu_s": time.process_time(), "wall_s": time.perf_counter() - started}
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "init")} | {
        "went_on": args.init is not None
    }
    with write_beside(args.out / "training.json") as beside:
        beside.write_text(json.dumps({**settings, **took, "dtype": str(dtype)}, indent=1) + "\n", encoding="utf-8")
    print(f"{args.out}: {took['cpu_s']:.0f} s of one core")


if __name__ == "__main__":
    main()
