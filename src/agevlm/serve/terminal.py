"""A conversation in a terminal: answers as they come, and heat maps in half-block pixels. No server, no HTTP."""

from __future__ import annotations

import hashlib
import os
import queue
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.learned import unlearned_notice
from agevlm.data.images import open_image
from agevlm.data.schema import Message
from agevlm.serve.asks import Ask, Done, Event, Failed, Piece
from agevlm.serve.conversations import Conversation, context_of, too_long, written
from agevlm.serve.engine import Engine
from agevlm.serve.errors import ApiError
from agevlm.serve.limits import Limits
from agevlm.serve.looking import Chosen, SeenWord
from agevlm.serve.pictures import Encoded

MADE_UP = 0.5  # from this share of attention without a place on, a word is marked
_MAX_COLUMNS = 48
_HELP = """\
/look WORD      show where the model looked at a word of the last question or answer
/picture FILE   talk about another picture
/quit           end; so do Ctrl-D and, at the prompt, Ctrl-C
Anything else is a question. Each question stands by itself. Ctrl-C gives an answer up."""


class CtrlCError(KeyboardInterrupt):
    """Ctrl-C in a conversation."""


def half_blocks(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, 3), H even, as lines of "▀": the upper pixel is the colour of the block, the lower its ground."""
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = [
            f"\x1b[38;2;{r};{g};{b}m\x1b[48;2;{x};{y};{z}m▀" for (r, g, b), (x, y, z) in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def drawn(picture: Image.Image, word: SeenWord, columns: int) -> str:
    """The picture under the map of a word that has one, at most `columns` wide and as many half rows high."""
    from agevlm.analysis.figures import overlay

    scale = min(columns / picture.width, columns / picture.height)
    size = max(1, round(picture.width * scale)), max(2, 2 * round(picture.height * scale / 2))
    return half_blocks(overlay(picture.resize(size, Image.Resampling.BOX), word.maps[-1]))


class Talk:
    """A model, the picture that is talked about, and what was seen at last."""

    def __init__(self, engine: Engine, out: TextIO, max_tokens: int, maps: bool, colours: bool) -> None:
        self.engine, self.out, self.max_tokens, self.maps, self.colours = engine, out, max_tokens, maps, colours
        self.picture: Image.Image | None = None
        self._encoded: tuple[Encoded, ...] = ()
        self.words: Sequence[SeenWord] = ()

    def show(self, path: Path) -> None:
        """Talk about the picture in this file from now on. ValueError where it is none."""
        try:
            self.picture = open_image(path, max_pixels=self.engine.limits.max_image_pixels)
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        self._encoded, self.words = (Encoded(data, hashlib.sha256(data).hexdigest()),), ()
        self._say(f"{path.name}: {self.picture.width} × {self.picture.height} pixels\n")

    def ask(self, question: str) -> None:
        """Answer a question, piece by piece; then say where the model looked. ApiError where it cannot be answered."""
        self.words = ()
        for event in self._events(question):
            if isinstance(event, Piece):
                self._say(event.text)
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Done):
                self._say("\n")
                self.words = event.words or ()
                if event.notice is not None:
                    self._say(f"{event.notice}\n")
        if self.words and self.maps:
            self._summarise()

    def look(self, wanted: str) -> None:
        """Draw the map of a word. ValueError where the last turn has no such word."""
        if self.picture is None:
            raise ValueError("there is no picture to look at: /picture FILE takes one")
        found = [word for word in self.words if word.word == wanted.lower()]
        if not found:
            known = ", ".join(dict.fromkeys(word.word for word in self.words))
            looked = f"words that were: {known}" if known else "ask about something first"
            raise ValueError(f"no word {wanted!r} was looked at; {looked}")
        if self.colours and found[-1].maps:
            self._say(drawn(self.picture, found[-1], min(_MAX_COLUMNS, shutil.get_terminal_size().columns)) + "\n")
        self._say(self._described(found[-1]) + "\n")

    def _events(self, question: str) -> Iterator[Event]:
        vlm, told = self.engine.vlm, queue.SimpleQueue[Event]()
        conversation = written(vlm, (Message("user", question, len(self._encoded)),), self._encoded)
        ids, max_tokens = self._fitted(conversation)
        seen = self.engine.see(self._encoded).result()
        looks = Chosen() if seen and vlm.note is None else None
        ask = Ask(conversation, ids, seen, told.put, max_tokens, streamed=True, looks=looks)
        self.engine.submit(ask)
        try:
            while True:
                event = told.get()
                yield event
                if isinstance(event, Done | Failed):
                    return
        finally:
            ask.cancelled = True

    def _fitted(self, conversation: Conversation) -> tuple[list[int], int]:
        """The tokens of a conversation and the longest answer behind them. Models without memories count alone."""
        vlm = self.engine.vlm
        if not self.engine.remembers:
            return [], self.max_tokens
        ids: list[int] = vlm.processor.tokenizer(conversation.chat.text, add_special_tokens=False)["input_ids"]
        context = context_of(vlm)
        if context is None:
            return ids, self.max_tokens
        if len(ids) >= context:
            raise too_long(f"the conversation has {len(ids)} tokens", context, "messages")
        return ids, min(self.max_tokens, context - len(ids))

    def _summarise(self) -> None:
        """One map, that of the word with the most to see, and a line for each word."""
        mapped = [word for word in self.words if word.maps]
        best = max(mapped, key=lambda word: (word.where == "answer", float(word.maps[-1].max())), default=None)
        if best and self.colours and self.picture is not None and (best.made_up or 0) < MADE_UP:
            self._say(drawn(self.picture, best, min(_MAX_COLUMNS, shutil.get_terminal_size().columns)) + "\n")
        for word in {word.word: word for word in self.words}.values():
            mark = "*" if word is best else " "
            self._say(f"{mark} {self._described(word)}\n")

    def _described(self, word: SeenWord) -> str:
        """Where a word was looked at, in words; of one that the model did not learn, that."""
        if word.learned is False:
            return unlearned_notice(word.word, self.engine.name, self.engine.vlm.model.config.known_words)
        return _described(word)

    def _say(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _described(word: SeenWord) -> str:
    """Where a word with a map was looked at, in words."""
    if word.made_up is not None and word.made_up >= MADE_UP:
        return f"{word.word}: found no place in the picture ({word.made_up:.0%} of its attention)"
    attention = word.maps[-1]
    row, column = np.unravel_index(int(attention.argmax()), attention.shape)
    vertical = ("top", "middle", "bottom")[int(3 * row / attention.shape[0])]
    horizontal = ("left", "centre", "right")[int(3 * column / attention.shape[1])]
    return f"{word.word}: {vertical} {horizontal} ({float(attention.max()):.0%} of its attention in one cell)"


def talk(
    model: Any,
    processor: Any,
    *,
    name: str = "the model",
    picture: Path | None = None,
    max_tokens: int = 256,
    maps: bool = True,
    lines: Callable[[str], str] = input,
    out: TextIO | None = None,
) -> None:
    """Talk until the input ends. `lines` asks for a line with a prompt; errors are said and the talk goes on.

    `name` is what the model is called where it is said which words it did not learn.
    Maps are drawn where the output is a terminal and NO_COLOR is not set; elsewhere they are described.
    """
    out = out or sys.stdout
    engine = Engine(name, model, processor, Limits())
    asking = lines is not input or sys.stdin.isatty()
    here = Talk(engine, out, max_tokens, maps, out.isatty() and not os.environ.get("NO_COLOR"))
    try:
        if picture is not None:
            here.show(picture)
        without = "No picture yet: /picture FILE takes one. " if picture is None else "Ask about the picture; "
        out.write(f"{without}/help lists the commands.\n")
        with _ctrl_c_told():
            while (line := _next(lines, out, asking)) is not None:
                _obey(here, line)
    finally:
        engine.close()


@contextmanager
def _ctrl_c_told() -> Iterator[None]:
    """Within, Ctrl-C is an error of its own, so that what else ends the process is not taken for it.

    Outside of the main thread, where Python hears no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(number: int, frame: Any) -> None:
        raise CtrlCError

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _next(lines: Callable[[str], str], out: TextIO, asking: bool) -> str | None:
    """The next line; None at the end. Somebody who types is shown where."""
    try:
        line = lines("> " if asking else "").strip()
    except (EOFError, KeyboardInterrupt):
        out.write("\n")  # the shell's prompt has a line of its own
        return None
    return None if line in ("/quit", "/exit") else line


def _obey(here: Talk, line: str) -> None:
    command, _, rest = line.partition(" ")
    try:
        if command == "/help":
            here.out.write(_HELP + "\n")
        elif command == "/picture":
            if not rest.strip():
                raise ValueError("/picture needs the name of a file")
            here.show(Path(" ".join(shlex.split(rest))))
        elif command == "/look":
            here.look(rest.strip())
        elif command.startswith("/"):
            raise ValueError(f"there is no command {command}: /help lists them")
        elif line:
            here.ask(line)
    except CtrlCError:
        here.out.write("\n")  # that answer is given up
    except ApiError as error:
        here.out.write(f"error: {error.message}\n")
    except ValueError as error:
        here.out.write(f"error: {error}\n")
