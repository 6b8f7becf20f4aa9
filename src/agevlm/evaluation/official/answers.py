"""What an answer says, as each protocol reads it. Pure functions on strings; None where the rule finds nothing.

The rules are restated here from what the protocols' code does; `evaluation/parsing.py` has the project's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agevlm.evaluation.parsing import parse_yes_no, words_of

# -- yes or no ---------------------------------------------------------------------------------------------------------


def pope_yes_no(answer: str) -> str | None:
    """POPE's own rule, which guesses yes where it finds no "no": see `parsing.parse_yes_no`, `original`."""
    return parse_yes_no(answer, "original")


def guessed_yes(answer: str) -> bool:
    """Whether POPE's rule says yes of an answer whose first sentence does not: it guesses then, also at "NO"."""
    return pope_yes_no(answer) == "yes" and "yes" not in words_of(answer.split(".")[0])


def exact_yes_no(answer: str) -> str | None:
    """lmms-eval: the whole answer is yes or no, in any case, with nothing else."""
    return parse_yes_no(answer, "strict")


_MARKS = ';/[]"{}()=+\\_->@<`,?!'
_MAX_FULL_STOPS = 32  # a flag given in the place of a count: VLMEvalKit takes out no more


def vlmevalkit_yes_no(answer: str) -> str | None:
    """VLMEvalKit: one of the words yes and no, and not the other.

    A mark of punctuation joins its neighbours where it stands beside a space somewhere in the answer (or where the
    answer has a number with a comma), and parts them elsewhere; full stops go, but before a digit.
    """
    text = answer.lower()
    joins = re.search(r"\d,\d", text) is not None
    words = text
    for mark in _MARKS:
        words = words.replace(mark, "" if joins or f"{mark} " in text or f" {mark}" in text else " ")
    found = {"yes", "no"} & set(re.sub(r"\.(?!\d)", "", words, count=_MAX_FULL_STOPS).split())
    return found.pop() if len(found) == 1 else None


# -- one letter --------------------------------------------------------------------------------------------------------


def leading_letter(answer: str, letters: str) -> str | None:
    """lmms-eval's CV-Bench: the first character of the answer, behind brackets and spaces, if it is one of `letters`.

    A word counts as its first letter.
    """
    first = answer.strip().lstrip("( \t\r\n\f\v")[:1].upper()
    return first if first and first in letters else None


_A_OR_B = (
    r"^\s*\(?([AB])\)?\.?\s*$",
    r"^\s*\(?([AB])\)?[.\s]",
    r"answer\s+is\s+\(?([AB])\)?",
    r"option\s+\(?([AB])\)?",
    r"\(?([AB])\)?(?:\s|$)",
)


def a_or_b(answer: str) -> str | None:
    """lmms-eval's MMVP: A or B alone, then at the start, behind "answer is" or "option", before a space; else the first
    character.
    """
    text = answer.strip()
    for pattern in _A_OR_B:
        if found := re.search(pattern, text, re.IGNORECASE):
            return found.group(1).upper()
    return text[0].upper() if text[:1].upper() in ("A", "B") else None


def behind_answer_is(answer: str) -> str:
    """Cambrian: the answer in lower case; what stands behind the last "answer is" or "answer:", where it says so."""
    text = answer.lower().strip()
    for opening in ("answer is", "answer is:", "answer:"):
        text = text.split(opening)[-1]
    return text.strip()


def cambrian_text(answer: str, end: str = ".") -> str:
    """Cambrian: what stands behind "answer is", without the marks `end` at its end, then without brackets."""
    return behind_answer_is(answer).rstrip(end).lstrip("(").rstrip(")")


_PHRASES = (
    "the answer is|answer is|the correct answer is|correct answer is|the best answer is|best answer is"
    "|the correct option is|correct option is|the best option is|best option is|the choice is|choice is"
    "|the correct choice is|correct choice is|i choose|i select|i pick|my answer is|my choice is"
    "|옵션|정답은|답은|답:|答案是|答案为|选|答えは"
).split("|")


def lmms_eval_letter(answer: str, letters: Sequence[str]) -> str | None:
    """lmms-eval's rule for multiple choice: of all places where a letter stands, the surest; of equal ones the last.

    In this order: the answer starts with it, ends with it, it stands somewhere behind a phrase such as "the answer
    is", as (A), A., A:, A), or before a space. Where none is found: anywhere.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    if not text.strip():
        return None
    inner, text = text.strip(), f" {text} "
    found: list[tuple[int, int, int]] = []  # how sure, place, and the earlier letter first where both are equal
    for number, letter in enumerate(letters):
        for sure, form in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
            (2, f"{letter} "),
        ):
            if form in text:
                found.append((sure, text.rfind(form), -number))
        for phrase in _PHRASES:
            start = text.lower().find(phrase)
            place = text.find(letter, start + len(phrase)) if start >= 0 else -1
            if place >= 0:
                found.append((7, place, -number))
        if inner.startswith(letter) and not inner[1:2].isalpha():
            found.append((10, 0, -number))
        if inner.endswith(letter) and not inner[-2:-1].isalpha():
            found.append((9, len(text) - 1, -number))
    if not found:
        found = [(0, text.rfind(letter), -number) for number, letter in enumerate(letters) if letter in text]
    return letters[-max(found)[2]] if found else None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def vlmevalkit_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit without a judge: the only letter among the words, if among the last five; else the only option whose
    text stands in the answer, unless that is more than twice as long as all options.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return None
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if not letters and "Z" in words:
        return None
    text = answer.lower()
    if len(text) > 2 * sum(len(option) for option in options.values()):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text]
    return named[0] if len(named) == 1 else None


def mmstar_letter(answer: str) -> str | None:
    """MMStar's own rule: the first character, behind a bracket, "option " or "the answer is " where it starts so."""
    text = answer.lower().strip().replace("\n", " ")
    candidates = [text[:1]]
    candidates += [text[1:2]] if text[:1] == "(" else []
    candidates += [text[len(start) :][:1] for start in ("option ", "the answer is ") if text.startswith(start)]
    return next((c.upper() for c in reversed(candidates) if c and c in "abcd"), None)
