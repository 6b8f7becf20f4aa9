"""Many questions about one picture: encoded once into an ImageMemory, against encoded anew for each question.

    python benchmarks/answering.py --threads 1

Two ways to ask, both by `generate`: one question after another, and all of them in one batch. The arms alternate within
one run, and their answers are checked to be the same. The floor is the work that cannot be left out: the picture
once, and each question.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import begin, build_network, compare, load, machine_rates, write_result
from PIL import Image
from torch import Tensor

from agevlm.data.chat import render_conversation
from agevlm.data.nouns import article
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene
from agevlm.data.schema import Message
from agevlm.training.timing import flops, seconds


class Questions:
    """A model, a picture and questions about it, ready to be asked in any of the four ways."""

    def __init__(self, num: int, max_new_tokens: int, attention: str) -> None:
        self.model, self.processor = build_network(attention)
        self.max_new_tokens = max_new_tokens
        picture = Image.fromarray(draw_scene(WorldSpec(), seed=0, index=0).image)
        names = [CATEGORIES[number % len(CATEGORIES)] for number in range(num)]
        questions = [f"is there {article(name)} {name} in the picture?" for name in names]
        self.batch = self.encode(picture, questions)
        self.pixels = self.batch["pixel_values"][:1]
        self.rows = [self.encode(picture, [question])["input_ids"] for question in questions]

    def encode(self, picture: Image.Image, questions: list[str]) -> Any:
        """Chat text and the picture, once a row, as tensors."""
        asked = [[Message("user", question, num_images=1)] for question in questions]
        texts = [render_conversation(self.processor, messages, add_generation_prompt=True).text for messages in asked]
        pictures = [[picture]] * len(texts)
        return self.processor(text=texts, images=pictures, return_tensors="pt", add_special_tokens=False)

    def generate(self, **inputs: Any) -> Tensor:
        """Greedy tokens, always as many as allowed: answers of one length are answers of one cost."""
        tokens = self.max_new_tokens
        return self.model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)

    def one_by_one(self, reuse: bool) -> list[Tensor]:
        """Each question by itself."""
        if not reuse:
            return [self.generate(input_ids=ids, pixel_values=self.pixels) for ids in self.rows]
        memory = self.model.encode_images(self.pixels)
        return [self.generate(input_ids=ids, image_memory=memory) for ids in self.rows]

    def at_once(self, reuse: bool) -> list[Tensor]:
        """All questions in one batch."""
        text = {name: self.batch[name] for name in ("input_ids", "attention_mask")}
        if not reuse:
            return [self.generate(**text, pixel_values=self.batch["pixel_values"])]
        memory = self.model.encode_images(self.pixels)
        index = torch.zeros(len(text["input_ids"]), 1, dtype=torch.long)
        return [self.generate(**text, image_memory=memory, image_index=index)]

    def count_work(self) -> dict[str, float]:
        """Floating-point operations of a picture (seen, and made into keys and values) and of one question."""
        features = self.model.vision_features(self.pixels)
        memory = self.model.encode_images(image_features=features)
        return {
            "vision_flops": flops(lambda: self.model.vision_features(self.pixels)),
            "memory_flops": flops(lambda: self.model.encode_images(image_features=features)),
            "question_flops": flops(lambda: self.generate(input_ids=self.rows[0], image_memory=memory)),
            "memory_bytes": float(sum(t.nbytes for t in (*memory.keys, *memory.values))),
        }


def measure(questions: Questions, way: Callable[[bool], list[Tensor]], repeats: int, floor_flops: float) -> Any:
    """One way to ask: anew against reused, times for all questions together."""
    for one, other in zip(way(False), way(True), strict=True):
        if not torch.equal(one, other):
            raise AssertionError("a reused memory gave other answers")
    anew, reused = [], []
    for _ in range(repeats):
        anew.append(seconds(lambda: way(False)))
        reused.append(seconds(lambda: way(True)))
    times = compare(anew, reused)
    rate = machine_rates(torch.float32)["flops_per_s"]
    return {
        "way": way.__name__,
        "anew_ms": times["median_a_ms"],
        "reused_ms": times["median_b_ms"],
        "speedup": times["ratio"],
        "speedup_interval": times["ratio_interval"],
        "num_pairs": times["num_pairs"],
        "floor_ms": 1e3 * floor_flops / rate,
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=32, help="how many questions about the picture")
    parser.add_argument("--new-tokens", type=int, default=2, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of each arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--attention", default="eager", choices=("eager", "sdpa"))
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/answering.json if not given")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings = begin(args)
    before = load()
    questions = Questions(args.questions, args.new_tokens, args.attention)
    work = questions.count_work()
    floor = work["vision_flops"] + work["memory_flops"] + args.questions * work["question_flops"]
    results = [measure(questions, way, args.repeats, floor) for way in (questions.one_by_one, questions.at_once)]
    print(f"{args.questions} questions  {'anew':>9} {'reused':>9} {'speedup':>8}  {'95 % interval':15} {'floor':>8}")
    for result in results:
        low, high = result["speedup_interval"]
        print(
            f"{result['way']:12} {result['anew_ms']:6.0f} ms {result['reused_ms']:6.0f} ms {result['speedup']:8.2f}"
            f"  {low:.2f} to {high:.2f}    {result['floor_ms']:5.1f} ms"
        )
    print(
        f"a picture {work['vision_flops'] / 1e6:.0f} MFLOP and {work['memory_flops'] / 1e6:.0f} for its memory of "
        f"{work['memory_bytes'] / 1e3:.0f} kB, a question {work['question_flops'] / 1e6:.0f}"
    )
    print(f"load before {before}, after {load()}")
    result = {"settings": settings, "load_before": before, "work": work, "results": results}
    print(write_result("answering", result, args.out))


if __name__ == "__main__":
    main()
