"""The words of this room: a benchmark, its protocols, a question, an answer that is marked. Nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agevlm.evaluation.official.files import Picture, Source

if TYPE_CHECKING:
    from agevlm.evaluation.run_figures import Figure

LMMS_EVAL_NEW_TOKENS = 1024  # where a task of lmms-eval names no length of an answer

Sections = Mapping[str, Mapping[str, "Figure | int"]]  # section → name → figure, or a count


@dataclass(frozen=True)
class Question:
    """A question as the benchmark ships it, before any protocol has put it in its words.

    `answer` is the reference. `unit` is what is drawn again for intervals: the picture, or what must stay together
    (MMVP's pair). `facts` are what figures are grouped by. `options` are answers by letter, where the file has them
    apart from the text. `extra` is whatever else the benchmark's own figures need.
    """

    id: str
    text: str
    answer: str
    picture: Picture | None
    unit: str
    facts: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    extra: Any = None


@dataclass(frozen=True)
class Reading:
    """All questions of a benchmark's files, and the files that were left out, each with its columns."""

    questions: list[Question]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marked:
    """An answer, what was read from it (None: nothing), and whether it is right.

    `unparsed`: the rule found nothing to go by. Some protocols guess then, so `parsed` may be there all the same.
    """

    question: Question
    answer: str
    parsed: str | None
    correct: bool
    unparsed: bool


def same_text(parsed: str, question: Question) -> bool:
    """Whether what was read is the reference, in any case."""
    return parsed.lower() == question.answer.lower()


@dataclass(frozen=True)
class Protocol:
    """One way to ask and to score.

    `rule` says in a line where it comes from. `parse` gives what an answer says, or None. `guessed` tells of answers
    whose `parse` is a guess. An answer ends after `max_new_tokens` or before the first of `stop`. `headline` names the
    figures that others quote, as "section.figure". `check` is a ValueError for questions that the rule is not about.
    """

    name: str
    rule: str
    prompt: Callable[[Question], str]
    parse: Callable[[str, Question], str | None]
    figures: Callable[[Sequence[Marked]], Sections]
    headline: tuple[str, ...]
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    correct: Callable[[str, Question], bool] = same_text
    guessed: Callable[[str], bool] = lambda answer: False
    keep: Callable[[Question], bool] = lambda question: True
    check: Callable[[Sequence[Question]], None] = lambda questions: None

    def mark(self, question: Question, answer: str) -> Marked:
        """Read and judge one answer."""
        parsed = self.parse(answer, question)
        right = parsed is not None and self.correct(parsed, question)
        return Marked(question, answer, parsed, right, parsed is None or self.guessed(answer))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its facts, how its files become questions, its protocols by name, the first of them the default.

    `data` says in a line what a directory must hold. `hub` are data sets of the hub that hold it. `yes_no`: the
    questions are answered yes or no, so P(yes) is kept with each answer.
    """

    name: str
    title: str
    paper: str
    source: str
    licence: str
    data: str
    hub: tuple[str, ...]
    read: Callable[[Source], Reading]
    protocols: tuple[Protocol, ...]
    yes_no: bool = False

    def protocol(self, name: str | None) -> Protocol:
        """The protocol called `name`, the first for None; an unknown one is a ValueError that names those there are."""
        known = {protocol.name: protocol for protocol in self.protocols}
        if name is None:
            return self.protocols[0]
        if name not in known:
            raise ValueError(f"{self.name} has no protocol {name!r}: choose one of {', '.join(known)}")
        return known[name]
