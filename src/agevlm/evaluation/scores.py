"""From answers to figures: judge each answer by its kind, then summarise by kind. Pure functions, no model, no files.

An answer that cannot be parsed is wrong, counts as neither yes nor no, and shows up in `unparsed_ratio`. All ratios lie
in [0, 1]. A ratio whose denominator is empty is 0 (precision, recall, F1) or left out (what was never asked).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agevlm.data.language import CAPTION_REQUESTS, family
from agevlm.evaluation.parsing import parse_choice, parse_number, parse_yes_no, words_of

COLOURS = (
    "black",
    "blue",
    "brown",
    "cyan",
    "gray",
    "green",
    "grey",
    "orange",
    "pink",
    "purple",
    "red",
    "white",
    "yellow",
)
POPE_SPLITS = ("random", "popular", "adversarial")
_OPPOSITES = (("left", "right"), ("above", "below"))
_CORNER = (("top", "bottom"), ("left", "right"))
_YES_NO = ("yes", "no")
_MAX_WORDS = 5

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One thing to ask: `id` is unique in its benchmark, `image` names the picture, `kind` says how to score."""

    id: str
    image: str
    kind: str
    text: str
    reference: str


@dataclass(frozen=True)
class Prediction:
    """A question and what became of it. `correct` is None where no answer is the right one (captions)."""

    question: Question
    answer: str
    parsed: str | int | None
    expected: str | int | None  # the reference, read by the same rule
    correct: bool | None
    p_yes: float | None = (
        None  # P(yes) / (P(yes) + P(no)) at the answer's first token; None where not a yes/no question
    )


def judge(
    questions: Sequence[Question],
    answers: Mapping[str, str],
    parser: str = "first_word",
    p_yes: Mapping[str, float] | None = None,
) -> list[Prediction]:
    """Read and mark the answer of every question, joined on question id, never on position.

    `parser` names the yes/no rule for answers; references are read by `first_word`. Questions that share an id or have
    no answer, references that their own rule cannot read, and answers to no question are ValueErrors.
    """
    ids = {question.id for question in questions}
    if len(ids) < len(questions):
        raise ValueError(f"{len(questions)} questions have only {len(ids)} ids: question ids must be unique")
    if ids != answers.keys():
        missing, extra = sorted(ids - answers.keys()), sorted(answers.keys() - ids)
        raise ValueError(
            f"questions and answers do not fit: {len(missing)} questions without an answer {missing[:3]}, "
            f"{len(extra)} answers without a question {extra[:3]}"
        )
    colours = sorted({*COLOURS, *(w for q in questions if q.kind == "colour" for w in words_of(q.reference))})
    chances = p_yes or {}
    return [_mark(question, answers[question.id], parser, colours, chances.get(question.id)) for question in questions]


def _mark(question: Question, answer: str, parser: str, colours: Sequence[str], p_yes: float | None) -> Prediction:
    if form_of(question) == "caption":
        return Prediction(question, answer, None, None, None)
    read = _reader(question, parser, colours)
    parsed, expected = read(answer), _reader(question, "first_word", colours)(question.reference)
    if expected is None:
        raise ValueError(
            f"question {question.id} of kind {question.kind} has the reference answer {question.reference!r}, "
            "which its own rule cannot read: correct the answer or the kind"
        )
    return Prediction(question, answer, parsed, expected, parsed == expected, p_yes)


def is_yes_no(question: Question) -> bool:
    """Whether a question is answered by yes or no: by its kind, or, for a kind unknown here, by its reference."""
    return form_of(question) == "yes_no"


def form_of(question: Question) -> str:
    """How an answer to this question is read: as yes_no, counting, colour, relation, location, words or caption.

    By its kind where that says it. Other kinds, such as conversations, may ask anything: there the reference says it.
    One of more than `_MAX_WORDS` words is free text like a caption, and not scored.
    """
    kind = family(question.kind)
    if kind in ("pope", "presence") or question.kind == "relation.yes_no":
        return "yes_no"
    if kind in ("caption", "counting", "colour", "relation", "location"):
        return kind
    words = words_of(question.reference)
    if question.text in CAPTION_REQUESTS or len(words) > _MAX_WORDS:
        return "caption"
    if words in (["yes"], ["no"]):
        return "yes_no"
    if len(words) == 1 and parse_number(words[0]) is not None:
        return "counting"
    if len(words) == 1 and words[0] in COLOURS:
        return "colour"
    if words and " ".join(words) == _parse_corner(question.reference):
        return "location"
    return "words"


def _reader(question: Question, parser: str, colours: Sequence[str]) -> Callable[[str], str | int | None]:
    """The rule that reads answers to this question."""
    opposites = next((pair for pair in _OPPOSITES if parse_choice(question.reference, pair)), ())
    rules: dict[str, Callable[[str], str | int | None]] = {
        "yes_no": lambda answer: parse_yes_no(answer, parser),
        "counting": parse_number,
        "colour": lambda answer: parse_choice(answer, colours),
        "relation": lambda answer: parse_choice(answer, opposites),
        "location": _parse_corner,
        "words": lambda answer: " ".join(words_of(answer)) or None,
    }
    return rules[form_of(question)]


def _parse_corner(answer: str) -> str | None:
    sides = [parse_choice(answer, pair) for pair in _CORNER]
    return " ".join(side for side in sides if side) if all(sides) else None


def summarise(predictions: Sequence[Prediction]) -> Metrics:
    """All figures, nested by kind: `pope.random.accuracy` is `summary["pope"]["random"]["accuracy"]`.

    `pope.mean` averages the splits that were asked. `relation` pools its forms and holds each form below itself.
    """
    by_kind: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        by_kind[prediction.question.kind].append(prediction)
    summary: Metrics = {}
    for kind, group in by_kind.items():
        _at(summary, kind).update(_scores(group))
    pope = summary.get("pope", {})
    splits = [pope[split] for split in POPE_SPLITS if split in pope]
    if splits:
        pope["mean"] = {
            name: float(np.mean([split[name] for split in splits]))
            for name in ("accuracy", "precision", "recall", "f1", "yes_ratio", "false_yes_ratio", "unparsed_ratio")
        }
    forms = [p for kind, group in by_kind.items() if kind.startswith("relation.") for p in group]
    if forms:
        summary["relation"] = {**accuracy_scores(forms), **summary["relation"]}
    return summary


def _at(summary: Metrics, path: str) -> Metrics:
    for name in path.split("."):
        summary = summary.setdefault(name, {})
    return summary


def _scores(asked: Sequence[Prediction]) -> Metrics:
    group = [prediction for prediction in asked if prediction.correct is not None]
    if not group:
        return {"num_questions": len(asked), "scored": False}
    forms = {form_of(prediction.question) for prediction in group}
    score = {"yes_no": yes_no_scores, "counting": counting_scores}.get(forms.pop(), accuracy_scores)
    left = len(asked) - len(group)
    return {**(accuracy_scores if forms else score)(group), **({"num_not_scored": left} if left else {})}


def accuracy_scores(group: Sequence[Prediction]) -> Metrics:
    """Accuracy, its 95 % interval over images, and how many answers could not be read."""
    assert group, "no questions, no scores"
    return {
        "accuracy": float(np.mean([bool(prediction.correct) for prediction in group])),
        "accuracy_interval": list(bootstrap_interval(group)),
        "unparsed_ratio": float(np.mean([prediction.parsed is None for prediction in group])),
        "num_questions": len(group),
        "num_images": len({prediction.question.image for prediction in group}),
    }


def yes_no_scores(group: Sequence[Prediction]) -> Metrics:
    """POPE's figures with yes as the positive class, and the AUROC of P(yes) where the model gave it.

    `yes_ratio` is the share of answers read as yes, not of references; `false_yes_ratio` that among the questions whose
    reference is no: things seen that are not there. An unread answer to a "yes" lowers recall.
    """
    yes = sum(prediction.expected == "yes" for prediction in group)
    said_yes = sum(prediction.parsed == "yes" for prediction in group)
    true_yes = sum(prediction.parsed == "yes" == prediction.expected for prediction in group)
    chances = {word: [p.p_yes for p in group if p.expected == word and p.p_yes is not None] for word in _YES_NO}
    return {
        **accuracy_scores(group),
        "precision": _ratio(true_yes, said_yes),
        "recall": _ratio(true_yes, yes),
        "f1": _ratio(2 * true_yes, yes + said_yes),
        "yes_ratio": said_yes / len(group),
        "false_yes_ratio": _ratio(said_yes - true_yes, len(group) - yes),
        "reference_yes_ratio": yes / len(group),
        **({"auroc": auroc(chances["yes"], chances["no"])} if all(chances.values()) else {}),
    }


def counting_scores(group: Sequence[Prediction]) -> Metrics:
    """Accuracy, the mean absolute error over the answers that hold a number, and accuracy by true number."""
    errors = [abs(int(p.parsed) - int(p.expected)) for p in group if p.parsed is not None and p.expected is not None]
    by_number: dict[int, list[bool]] = defaultdict(list)
    for prediction in group:
        assert prediction.expected is not None, prediction
        by_number[int(prediction.expected)].append(bool(prediction.correct))
    return {
        **accuracy_scores(group),
        **({"mean_absolute_error": float(np.mean(errors))} if errors else {}),
        "by_number": {
            str(number): {"accuracy": float(np.mean(marks)), "num_questions": len(marks)}
            for number, marks in sorted(by_number.items())
        },
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def bootstrap_interval(
    group: Sequence[Prediction], confidence: float = 0.95, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy, drawing whole images with all their questions.

    Questions on one picture are not independent: drawing questions would make the interval too narrow. Deterministic in
    `seed`. One image gives an interval of no width.
    """
    marks: dict[str, list[bool]] = defaultdict(list)
    for prediction in group:
        marks[prediction.question.image].append(bool(prediction.correct))
    return interval_of_mean(list(marks.values()), confidence, num_draws, seed)


def interval_of_mean(
    clusters: Sequence[Sequence[float]], confidence: float = 0.95, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values that come in clusters (one for each image), none empty."""
    sums = np.array([[sum(cluster), len(cluster)] for cluster in clusters], dtype=np.float64)
    share = np.full(len(sums), 1 / len(sums))
    draws = np.random.default_rng(seed).multinomial(len(sums), share, size=num_draws) @ sums
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def auroc(positive: Iterable[float], negative: Iterable[float]) -> float:
    """Chance that a positive scores above a negative, ties as half. Both must have a member."""
    high, low = list(positive), list(negative)
    if not high or not low:
        raise ValueError(f"AUROC needs scores of both classes, got {len(high)} positive and {len(low)} negative")
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(high, low, method="asymptotic").statistic / (len(high) * len(low)))
