"""The pictures of docs/results/photographs.md: questions about photographs through several arms, chosen by rule.

    python benchmarks/photographs_picture.py runs/photographs instances_val2017.json
    python benchmarks/photographs_picture.py runs/photographs instances_val2017.json --pair

Only pictures that the COCO file lists under CC BY, no known restrictions or as work of the US government are shown; the
names of their files and their addresses on Flickr are printed. The rule is that of `agevlm.comparison.attention`; with
`--pair`, which makes the README's picture, questions are chosen whether or not the arms disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from agevlm.comparison.attention import choose_questions, write_attention
from agevlm.comparison.run import tests_directory
from agevlm.files import read_json_lines

FREE = (4, 7, 8)  # COCO's numbers of these licences
ARMS = {
    "concat": "concatenation",
    "cross_attention": "cross-attention, unguided",
    "concat_guided": "guided concatenation",
    "age_plus": "AGE +",
}
PAIR = {"cross_attention": "without guidance", "age_plus": "with guidance"}


def main() -> None:
    """Parse, draw, say where and whose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the directory of the finished comparison")
    parser.add_argument("instances", type=Path, help="the COCO file of the test pictures")
    parser.add_argument("--test", default="coco", help="the name of the test in the comparison's recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pair", action="store_true", help="only unguided cross-attention and AGE +")
    parser.add_argument("--out", type=Path, help="docs/images/photographs.png, or photographs-pair.png, if not given")
    asked = parser.parse_args()
    free = {
        str(picture["id"]): picture["flickr_url"]
        for picture in json.loads(asked.instances.read_text(encoding="utf-8"))["images"]
        if picture["license"] in FREE
    }
    arms = PAIR if asked.pair else ARMS
    out = asked.out or Path("docs/images") / ("photographs-pair.png" if asked.pair else "photographs.png")
    places = {arm: asked.runs / arm / str(asked.seed) for arm in arms}
    runs = {arm: run for arm, run in places.items() if tests_directory(run, asked.test).is_dir()}
    if not write_attention(runs, arms, out, across=asked.pair, disputed=not asked.pair, test=asked.test, pictures=free):
        sys.exit("there is no adversarial question to show")
    print(out)
    for picture in _shown(runs, asked.test, free, disputed=not asked.pair):
        print(picture, free[picture])


def _shown(runs: dict[str, Path], test: str, free: dict[str, str], *, disputed: bool) -> list[str]:
    """The ids of the pictures shown, in their order."""
    files = {arm: tests_directory(run, test) / "predictions.jsonl" for arm, run in runs.items()}
    answers = {arm: [row for row in read_json_lines(file) if row["image"] in free] for arm, file in files.items()}
    pictures = {row["id"]: row["image"] for row in next(iter(answers.values()))}
    return [pictures[key] for key in choose_questions(answers, disputed=disputed)]


if __name__ == "__main__":
    main()
