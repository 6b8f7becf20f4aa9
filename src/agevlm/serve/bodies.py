"""The body of a request: from its bytes to a checked model, or to one sentence that says what is wrong with it.

A body of 32 MB is a few long texts, which pictures are, and takes milliseconds. The same bytes as millions of short
values would take half a minute, in which no other thread of Python runs. So values are counted before anything is read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agevlm.serve.errors import ApiError, bad_request, shortened

Model = TypeVar("Model", bound=BaseModel)

MAX_MARKS = 100_000  # commas and opening brackets: each value has one of them in front of it, or is the only one
_FEW_MARKS = 2000  # of a body that is read in passing; one with more goes to a thread
_MAX_DIGITS = 100  # of a number: reading one takes the square of its length


async def read(model: type[Model], body: bytes) -> Model:
    """A checked model from JSON. ApiError 400, with the first thing that is wrong."""
    marks = num_marks(body)
    if marks > MAX_MARKS:
        raise bad_request(f"the body has more than {MAX_MARKS:,} commas and brackets: send less at once")
    return parsed(model, body) if marks <= _FEW_MARKS else await asyncio.to_thread(parsed, model, body)


def num_marks(body: bytes) -> int:
    """How many values JSON may have, at most, but for the first: those in texts are counted too."""
    return sum(map(body.count, (b",", b"[", b"{")))


def parsed(model: type[Model], body: bytes) -> Model:
    """The same without asking how many values there are."""
    value = _value(body)
    if not isinstance(value, dict):
        raise no_object()
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explained(error.errors(include_url=False, include_input=False)) from error


def _value(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), parse_int=_number)
    except UnicodeDecodeError as error:
        raise bad_request("the body is not UTF-8, which JSON is written in") from error
    except json.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON: {error.msg}, at character {error.pos}") from error
    except RecursionError as error:
        raise bad_request("the body is nested too deeply") from error


def _number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise bad_request(f"the body has a number of {len(digits):,} digits: {_MAX_DIGITS} are taken")
    return int(digits)


def no_object() -> ApiError:
    """What is said of a body that is none."""
    return bad_request("the body is no JSON object: send one, with Content-Type: application/json")


def explained(errors: Sequence[Any]) -> ApiError:
    """What pydantic finds wrong, as one sentence: of a field with several forms, what is wrong with the one meant."""
    first = max(errors, key=lambda one: (len(one["loc"]), one["type"] == "too_long"))
    place, context = _place(first["loc"]), {name: _short(value) for name, value in first.get("ctx", {}).items()}
    if first["type"] == "extra_forbidden":
        place = [*_place(first["loc"][:-1]), str(first["loc"][-1])]
    name = shortened(".".join(place)) or None
    if first["type"] == "extra_forbidden" or (first["type"] == "too_long" and context["max_length"] == 0):
        return bad_request(f"{name} is not supported here: leave it out", name, "unsupported_parameter")
    said = _SENTENCES.get(first["type"], "").format_map(context) or first["msg"]
    return bad_request(f"{name or 'the body'}: {said.removeprefix('Value error, ')}", name)


_SENTENCES = {  # pydantic's types of errors → what they mean to somebody who has never heard of it
    "missing": "is missing",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "dict_type": "expected an object",
    "list_type": "expected a list",
    "string_type": "expected a text",
    "union_tag_invalid": "type is {tag!r}; expected one of {expected_tags}",
    "union_tag_not_found": "its type is missing",
    "too_long": "has {actual_length}; at most {max_length} are taken",
    "too_short": "has {actual_length}, and {min_length} or more are expected",
    "string_too_long": "has more than {max_length} characters",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "literal_error": "expected {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
}


def _short(value: Any) -> Any:
    if value is None:  # pydantic does not count what is too much
        return "more"
    return shortened(value) if isinstance(value, str) else value


def _place(location: Sequence[str | int]) -> list[str]:
    """Where in a body something is, without the names of the forms that it might have."""
    found: list[str] = []
    for before, part in pairwise(["", *location]):
        name = str(part)
        kind = name in ("text", "image_url") and isinstance(before, int)  # which of the parts of a message it is
        if not kind and "[" not in name and name not in ("str", "bool", "Attention"):
            found.append(name)
    return found
