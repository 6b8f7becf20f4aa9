"""A grounded dataset of your own: pictures, conversations, and a mask for each object word, written as Parquet.

python examples/own_data.py own_data
agevlm data inspect own_data
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from agevlm.data.masks import encode_mask
from agevlm.data.parquet import Record, Summary, write_parquet
from agevlm.data.schema import RLE, Conversation, Grounding, ImageSource, Message, Sample

SIDE = 96


def main(out: str | Path = "own_data") -> Summary:
    """Write two samples to the directory `out`."""
    left, right = np.zeros((2, SIDE, SIDE), dtype=bool)
    left[20:60, 10:40] = True
    right[30:80, 50:90] = True
    picture = ImageSource("boxes", SIDE, SIDE, data=paint({"red": left, "blue": right}))
    caption = Conversation(
        "boxes/caption",
        "caption",
        (
            Message("user", "describe the picture.", num_images=1),
            Message("assistant", "a red box and a blue box."),
        ),
        # one word, one thing: content[6:9] of message 1 is the first "box", content[21:24] the second
        (
            Grounding(1, 6, 9, "box", present=True, masks=(encode_mask(left),)),
            Grounding(1, 21, 24, "box", present=True, masks=(encode_mask(right),)),
        ),
    )
    count = ask("boxes/count", "counting", "how many boxes are there?", "boxes", "two", [left, right])
    absent = ask("boxes/ball", "presence", "is there a ball?", "ball", "no", [])
    plain = ImageSource("nothing", SIDE, SIDE, data=paint({}))
    empty = ask("nothing/box", "presence", "is there a box?", "box", "no", [])
    samples = [Sample("boxes", (picture,), (caption, count, absent)), Sample("nothing", (plain,), (empty,))]
    return write_parquet(out, (Record(sample) for sample in samples), vocabulary=["ball", "box"])


def ask(identity: str, kind: str, question: str, phrase: str, answer: str, masks: list[np.ndarray]) -> Conversation:
    """A question that names one thing once; no masks: the thing is surely not in the picture."""
    start = question.index(phrase)
    codes: tuple[RLE, ...] = tuple(encode_mask(mask) for mask in masks)
    word = Grounding(0, start, start + len(phrase), phrase, present=bool(codes), masks=codes)
    turns = (Message("user", question, num_images=1), Message("assistant", answer))
    return Conversation(identity, kind, turns, (word,))


def paint(boxes: dict[str, np.ndarray]) -> bytes:
    """A PNG file: masks filled with their colours on grey. Yours would be read from disk."""
    picture = Image.new("RGB", (SIDE, SIDE), "grey")
    for colour, mask in boxes.items():
        picture.paste(Image.new("RGB", (SIDE, SIDE), colour), mask=Image.fromarray(mask))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
