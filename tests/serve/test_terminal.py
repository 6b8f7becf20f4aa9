"""A conversation in a terminal, line by line."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_served import endless, scene

from agevlm.serve.terminal import CtrlCError, half_blocks, talk


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(tiny: tuple[str, Any, Any], *lines: str, out: io.StringIO | None = None, **options: Any) -> str:
    script: Iterator[str] = iter(lines)

    def next_line(_: str) -> str:
        for line in script:
            return line
        raise EOFError

    out = out or io.StringIO()
    talk(*tiny[1:], lines=next_line, out=out, **options)
    return out.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a scene.png"
    scene().resize((192, 96)).save(path)
    return path


def test_half_blocks_hold_two_rows_of_pixels_each() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    (line,) = half_blocks(pixels).split("\n")
    colours = [tuple(map(int, found)) for found in re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+)m", line)]
    grounds = [tuple(map(int, found)) for found in re.findall(r"\x1b\[48;2;(\d+);(\d+);(\d+)m", line)]
    assert colours == [tuple(pixel) for pixel in pixels[0].tolist()]
    assert grounds == [tuple(pixel) for pixel in pixels[1].tolist()]
    assert line.endswith("\x1b[0m")


def test_it_answers_describes_and_draws(
    tiny: tuple[str, Any, Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = said(tiny, "what is in the picture?", "is there a zebra?", "/look picture", picture=file)
    assert "a scene.png: 192 × 96 pixels" in plain
    assert "\x1b" not in plain
    assert re.search(r"of its attention in one cell", plain)
    shown = said(tiny, "what is in the picture?", out=Terminal(), picture=file)
    rows = [line for line in shown.split("\n") if "▀" in line]
    assert {row.count("▀") for row in rows} == {48}
    assert len(rows) == 12  # twice as wide as high, two pixels a row


def test_of_a_word_that_was_not_learned_it_says_so(
    tiny: tuple[str, Any, Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(tiny[1].config, "known_words", ["boat", "red"])
    notice = "fish: not among the 2 words that tiny learned (boat, red, …), so its answer means nothing"
    told = said(tiny, "is there a fish?", "/look fish", out=Terminal(), picture=file, name="tiny")
    assert told.count(notice) == 2
    assert "▀" not in told
    assert "attention" not in told
    both = said(tiny, "is there a fish or a boat?", picture=file)
    assert "  fish: not among the 2 words that the model learned" in both
    assert re.search(r"^[* ] boat: .* of its attention", both, re.MULTILINE)


def test_of_a_kind_of_question_that_was_never_asked_it_says_so(
    tiny: tuple[str, Any, Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny[1].config, "known_questions", ["presence", "counting"])
    told = said(tiny, "where is the fish?", "how many fish are there?", picture=file, name="tiny")
    notice = "tiny learned to answer “is there a …?” and “how many … are there?” and was hardly ever asked this"
    assert told.count(notice) == 1


def test_what_goes_wrong_is_said_and_the_talk_goes_on(tiny: tuple[str, Any, Any], file: Path) -> None:
    heard = said(
        tiny,
        "/picture none.png",
        "/nothing",
        "/look fish",
        "/picture",
        "<image>",
        "/help",
        f"/picture '{file}'",
        "/look fish",
        "is there a fish?",
    )
    assert "error: no word 'fish' was looked at; ask about something first" in heard
    assert "error: none.png: no such file" in heard
    assert "error: there is no command /nothing" in heard
    assert heard.startswith("No picture yet: /picture FILE takes one.")
    assert "error: there is no picture to look at" in heard
    assert "error: /picture needs the name of a file" in heard
    assert "stands for a picture" in heard
    assert heard.rstrip().splitlines()[-1].startswith(("*", " "))
    assert re.search(r"^(yes|no)$", heard, re.MULTILINE)


def test_a_question_that_does_not_fit_the_context_is_one_sentence(tiny: tuple[str, Any, Any], file: Path) -> None:
    heard = said(tiny, "is there a fish? " * 200, "is there a fish?", picture=file, max_tokens=5000)
    refused, answered = re.findall(r"^error: .*|^(?:yes|no)$", heard, re.MULTILINE)
    assert re.fullmatch(
        r"error: the conversation has \d+ tokens; the context of this model takes 512 in all: shorten it", refused
    )
    assert answered in ("yes", "no")


def answer_of(heard: str) -> str:
    """What was answered to the only question of a conversation without a picture."""
    return heard.partition("/help lists the commands.")[2].partition("/look WORD")[0]


def test_an_answer_ends_where_the_context_does() -> None:
    model = endless()
    context = model[1].config.get_text_config().max_position_embeddings
    words = answer_of(said(model, "is there a fish ?", max_tokens=10 * context)).split()
    assert context / 2 < len(words) < context


@pytest.mark.parametrize("name", ["notes.txt", "cut.png"])
def test_a_file_that_is_no_picture_is_named(tiny: tuple[str, Any, Any], file: Path, name: str) -> None:
    broken = file.parent / name
    broken.write_bytes(b"no picture" if name == "notes.txt" else file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=re.escape(f"{broken}: ")):
        said(tiny, picture=broken)
    assert f"error: {broken}: " in said(tiny, f"/picture '{broken}'")


class Impatient(io.StringIO):
    """A terminal where somebody presses Ctrl-C, or ends the process, when the first word of an answer comes."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number: int | None = number

    def write(self, text: str) -> int:
        if self.number is not None and "/help" in self.getvalue():
            number, self.number = self.number, None
            os.kill(os.getpid(), number)
        return super().write(text)


def test_ctrl_c_gives_an_answer_up_and_the_next_question_is_answered() -> None:
    before = signal.getsignal(signal.SIGINT)
    question, out = "is there a fish ?", Impatient(signal.SIGINT)
    heard = said(endless(), question, "/help", question, out=out, max_tokens=50)
    assert len(answer_of(heard).split()) < 5
    assert len(heard.partition("gives an answer up.")[2].split()) > 25
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_at_the_prompt_ends_the_conversation(tiny: tuple[str, Any, Any]) -> None:
    asked: list[str] = []

    def next_line(prompt: str) -> str:
        asked.append(prompt)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("Ctrl-C does nothing")

    out = io.StringIO()
    talk(*tiny[1:], lines=next_line, out=out)
    assert asked == ["> "]
    assert out.getvalue().endswith("commands.\n\n")


def test_what_else_ends_the_process_is_not_taken_for_ctrl_c() -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(KeyboardInterrupt) as error:
            said(endless(), "is there a fish ?", out=Impatient(signal.SIGTERM), max_tokens=50)
        assert not isinstance(error.value, CtrlCError)
    finally:
        signal.signal(signal.SIGTERM, before)
