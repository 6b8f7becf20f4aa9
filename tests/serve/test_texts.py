"""Tokens to text: what streams is what stands at the end, whatever the stop strings, blanks and half characters."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agevlm.serve.texts import TextStream


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def streamed(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), stops)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream


@pytest.mark.parametrize("text", ["a fish.", "  a fish \n", "naïve 🐟 fish", "🐟", "", "   "])
def test_pieces_make_the_text_without_blanks_at_its_ends(text: str) -> None:
    pieces, stream = streamed(text)
    assert "".join(pieces) == stream.text == text.strip()
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stops", "left"),
    [(("fish",), "a"), (("sh", "fi"), "a"), (("i",), "a f"), (("x",), "a fish, a boat"), ((",",), "a fish")],
)
def test_a_stop_string_and_what_follows_is_never_shown(stops: tuple[str, ...], left: str) -> None:
    pieces, stream = streamed("a fish, a boat", stops)
    assert "".join(pieces) == left
    assert stream.stopped == (left != "a fish, a boat")


def test_what_a_stop_string_may_still_take_back_is_held() -> None:
    stream = TextStream(Bytes(), ("boat",))
    shown = "".join(stream.push(byte) for byte in b"a boa")
    assert shown == "a"
    assert shown + stream.push(ord("r")) + stream.finish() == "a boar"


def test_random_texts_and_stops_agree_with_cutting_the_whole() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("ab 🐟\n") for _ in range(rng.randrange(20)))
        stops = tuple("".join(rng.choice("ab") for _ in range(rng.randrange(1, 4))) for _ in range(rng.randrange(3)))
        whole = text.lstrip()
        # bytes come one by one: the stop that is complete first ends the text
        ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
        if ends:
            first = min(ends)[0]
            whole = whole[: min(start for end, start in ends if end == first)]
        assert "".join(streamed(text, stops)[0]) == whole.strip(), (text, stops)


def test_an_unfinished_character_at_the_end_is_told_as_one() -> None:
    stream = TextStream(Bytes())
    assert "".join(stream.push(byte) for byte in "a🐟".encode()[:-1]) + stream.finish() == "a\ufffd"
