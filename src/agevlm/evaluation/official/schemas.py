"""Rows → questions by the columns of a table: what most benchmarks need to read their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agevlm.evaluation.official.benchmark import Question, Reading
from agevlm.evaluation.official.files import Row, Source, Table


@dataclass(frozen=True)
class Schema:
    """A form in which a benchmark ships: the columns that it must have, and how a row becomes a question."""

    name: str
    columns: frozenset[str]
    question: Callable[[Row, Table, Source], Question]
    without: frozenset[str] = frozenset()  # columns that another form has

    def fits(self, table: Table) -> bool:
        """Whether a table has this form."""
        return self.columns <= set(table.columns) and not self.without & set(table.columns)

    def described(self) -> str:
        """The form and its columns, for errors."""
        without = f" without {', '.join(sorted(self.without))}" if self.without else ""
        return f"{', '.join(sorted(self.columns))}{without} ({self.name})"


def read_tables(title: str, source: Source, schemas: Sequence[Schema]) -> Reading:
    """The questions of all tables that fit one of `schemas`, in order; other files are left out and named.

    Where none fits, a ValueError says what was found and what was expected. The same question twice counts once, with
    the first picture that is at hand; two questions of one id are a ValueError.
    """
    questions: dict[str, Question] = {}
    left_out = []
    for table in source.tables:
        schema = next((s for s in schemas if s.fits(table)), None)
        if schema is None:
            left_out.append(table.described())
            continue
        for number, row in enumerate(table.rows):
            question = _question(schema, row, table, source, number)
            known = questions.setdefault(question.id, question)
            if (known.text, known.answer, known.facts) != (question.text, question.answer, question.facts):
                raise ValueError(
                    f"{table.path.name}, row {number + 1}: the id {question.id!r} was there before with another "
                    f"question: leave one of the files of {source.root} out"
                )
            questions[question.id] = _pictured(known, question)
    if not questions:
        raise ValueError(
            f"{source.root} holds no file of {title}: found {source.described()}, "
            f"expected the columns {' or '.join(schema.described() for schema in schemas)}"
        )
    return Reading(list(questions.values()), tuple(left_out))


def _pictured(known: Question, again: Question) -> Question:
    """The question as it was known, with the picture of where it stands again if its own is missing."""
    if known.picture is None or again.picture is None or known.picture.read or not again.picture.read:
        return known
    return replace(known, picture=replace(again.picture, name=known.picture.name))


def _question(schema: Schema, row: Row, table: Table, source: Source, number: int) -> Question:
    place = f"{table.path.name}, row {number + 1} ({schema.name})"
    if None in row:
        raise ValueError(f"{place}: it has more values than there are columns")
    try:
        return schema.question(row, table, source)
    except KeyError as error:
        raise ValueError(f"{place}: it has no {error}") from error
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{place}: {error}") from error


def yes_or_no(value: object) -> str:
    """A reference as "yes" or "no"; anything else is a ValueError."""
    text = str(value).strip().lower()
    if text not in ("yes", "no"):
        raise ValueError(f"the reference answer is {value!r}, expected yes or no")
    return text


def letter(value: object, letters: str = "ABCDEF") -> str:
    """A reference such as "(B)", "b" or "B." as a capital letter; anything else is a ValueError."""
    text = str(value).strip().strip("().").upper()
    if len(text) != 1 or text not in letters:
        raise ValueError(f"the reference answer is {value!r}, expected a letter of {letters}")
    return text
