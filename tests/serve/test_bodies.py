"""Bodies: whatever is in one, little work is done for it, and what is wrong with it is one short sentence."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from agevlm.serve import bodies
from agevlm.serve.errors import ApiError
from agevlm.serve.protocol import MAX_ANSWERS, MAX_MESSAGES, MAX_PARTS, AnswersRequest, ChatRequest, LookRequest

MANY = 20_000


def body(content: Any = "is there a fish?", **others: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **others}


def read(value: Any, form: type[BaseModel] = ChatRequest) -> Any:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return asyncio.run(bodies.read(form, raw))


def refused(value: Any, form: type[BaseModel] = ChatRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(value, form)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("form", "change"),
    [
        (ChatRequest, {"messages": [1] * MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}] * MANY}]}),
        (ChatRequest, {"messages": [1] * MAX_MESSAGES}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * MAX_PARTS}]}),
        (ChatRequest, {"attention": {"layers": [-1] * 256}}),
        (ChatRequest, {"modalities": [1] * 8}),
        (ChatRequest, {"stop": [1] * 4}),
        (AnswersRequest, {"answers": [1] * MAX_ANSWERS}),
        (ChatRequest, {f"key {number}": 1 for number in range(MANY)}),
        (ChatRequest, {"attention": {f"key {number}": 1 for number in range(MANY)}}),
        (ChatRequest, {"attention": {"layers": [-1] * MANY}}),
        (ChatRequest, {"stop": [1] * MANY}),
        (ChatRequest, {"tools": [1] * MANY}),
        (ChatRequest, {"modalities": [1] * MANY}),
        (ChatRequest, {"logit_bias": {str(number): "x" for number in range(MANY)}}),
        (ChatRequest, {"metadata": {str(number): "x" for number in range(MANY)}}),
        (LookRequest, {"heads": ["x"] * MANY}),
        (AnswersRequest, {"answers": [1] * MANY}),
    ],
)
def test_many_wrong_values_are_few_errors(form: type[BaseModel], change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        form.model_validate({**body(), **change})
    assert caught.value.error_count() <= 3  # one for each form that the field may have


def test_more_values_than_any_request_has_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "parsed", lambda *_: pytest.fail("it was read"))
    for many in (b"[" + b"1," * 10**6, b"[" * 10**6, b'{"a":' * 10**6, b'{"a":1,' * 10**6):
        assert "more than 100,000 commas and brackets" in refused(many).message


def test_many_values_are_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, parsed = [], bodies.parsed
    monkeypatch.setattr(bodies, "parsed", lambda *args: (threads.append(threading.current_thread()), parsed(*args))[1])
    assert read(body("fish, " * 100)).messages[0].content == "fish, " * 100
    assert read(body("fish, " * 5000)).messages[0].content == "fish, " * 5000
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON: Expecting property name enclosed in double quotes, at character 1"),
        (b"[]", "no JSON object"),
        (b'{"model": "\xe9"}', "not UTF-8"),
        ('{"model": "tiny"}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "a number of 5,000 digits: 100 are taken"),
        (body(metadata={str(number): "" for number in range(17)}), "at most 16 are taken"),
        (body([{"type": "text", "text": ""}] * 101), "messages.0.content: has 101; at most 100 are taken"),
        (body(stop=["x"] * 5), "stop: has 5; at most 4 are taken"),
        (body(stop=5), "stop: expected a text"),
        (body(**{"a[0": 1}), "a[0 is not supported here: leave it out"),
    ],
)
def test_each_has_its_own_sentence(raw: Any, what: str) -> None:
    assert what in refused(raw).message


def test_a_byte_order_mark_is_no_matter() -> None:
    assert read(b"\xef\xbb\xbf" + json.dumps(body()).encode()).model == "tiny"


@pytest.mark.parametrize(
    "change",
    [
        {"k" * 1_000_000: 1},
        {"messages": [{"role": "user", "content": [{"type": "t" * 1_000_000}]}]},
        {"attention": {"k" * 1_000_000: 1}},
        {"messages": [{"role": "r" * 1_000_000, "content": ""}]},
    ],
)
def test_a_clients_own_words_are_cut(change: dict[str, Any]) -> None:
    error = refused({**body(), **change})
    assert len(error.message) < 300
    assert len(error.param or "") <= 100
