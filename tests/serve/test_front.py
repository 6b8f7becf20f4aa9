"""The front of many replicas, with replicas that die at any message: what a client gets is whole, and the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tiny_served import asked, scene

from agevlm.serve.errors import ApiError, StoppingError, TooBusyError
from agevlm.serve.front import Front, ReplicaDiedError, Request, passed_on
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Metrics
from agevlm.serve.server import _told_alike, application

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"content-length", b"7")]}
START = "http.response.start"


def event(number: int, text: str, name: str) -> bytes:
    return b"data: " + json.dumps({"id": name, "created": number, "text": text}).encode() + b"\n\n"


def stream(name: str, words: str = "a fish swims") -> list[dict[str, Any]]:
    """The messages of a streamed reply, under the name and time of its replica."""
    created = len(name)
    bodies = [*(event(created, word, name) for word in words.split()), b"data: [DONE]\n\n"]
    head = {"type": START, "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
    sent = [{"type": "http.response.body", "body": body, "more_body": True} for body in bodies]
    return [head, *sent, {"type": "http.response.body", "body": b""}]


def whole(status: int = 200) -> list[dict[str, Any]]:
    head = {"type": START, "status": status, "headers": [(b"content-type", b"application/json")]}
    halves = [{"type": "http.response.body", "body": b'{"a":', "more_body": True}]
    return [head, *halves, {"type": "http.response.body", "body": b"1}"}]


def replies(*runs: list[dict[str, Any]] | Exception) -> tuple[Any, list[Request]]:
    """Replicas that send these messages one after another; all but the last die at the end of theirs."""
    left, requests = list(runs), []

    async def ask(request: Request) -> AsyncGenerator[dict[str, Any], None]:
        requests.append(request)
        run = left.pop(0)
        if isinstance(run, Exception):
            raise run
        for message in run:
            yield message
        if left:
            raise ReplicaDiedError

    return ask, requests


async def exchanged(app: Any, scope: Any, body: bytes = b"") -> list[dict[str, Any]]:
    """What an application sends to a client that stays."""
    given: list[dict[str, Any]] = []
    incoming = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        if not incoming:
            await asyncio.sleep(60)
        return incoming.pop()

    async def send(message: dict[str, Any]) -> None:
        given.append(message)

    await app(dict(scope), receive, send)
    return given


def sent(ask: Any, limits: Limits | None = None) -> list[dict[str, Any]]:
    """What a client gets."""
    return asyncio.run(exchanged(Front(ask, limits or Limits(), Metrics()), SCOPE, b"{}"))


def text(messages: list[dict[str, Any]]) -> str:
    return b"".join(message.get("body", b"") for message in messages).decode()


@pytest.mark.parametrize("died_after", range(7))
def test_a_stream_is_whole_wherever_its_replica_dies(died_after: int) -> None:
    ask, requests = replies(stream("first")[:died_after], stream("another"))
    got = sent(ask)
    events = [json.loads(line[6:]) for line in text(got).splitlines() if line.startswith("data: {")]
    assert [one["text"] for one in events] == ["a", "fish", "swims"]
    assert len({(one["id"], one["created"]) for one in events}) == 1
    assert [message["type"] for message in got].count(START) == 1
    assert got[-1] == {"type": "http.response.body", "body": b""}
    assert len(requests) == 2


@pytest.mark.parametrize("died_after", range(3))
def test_a_whole_reply_is_asked_for_again(died_after: int) -> None:
    got = sent(replies(whole()[:died_after], whole())[0])
    assert [message["type"] for message in got] == [START, "http.response.body"]
    assert text(got) == '{"a":1}'


def test_a_refusal_is_passed_on() -> None:
    assert sent(replies(whole(400))[0])[0]["status"] == 400
    with pytest.raises(TooBusyError):
        sent(replies(TooBusyError(3))[0])


def test_what_was_taken_once_waits_where_the_others_are_busy() -> None:
    got = sent(replies(stream("first")[:2], TooBusyError(3), whole(429), stream("another"))[0])
    assert [line for line in text(got).splitlines() if "fish" in line or "DONE" in line][-1] == "data: [DONE]"


def test_an_answer_in_other_words_ends_with_an_error() -> None:
    got = sent(replies(stream("first")[:3], stream("another", "a bird flies"))[0])
    assert "in other words" in text(got)
    assert "bird" not in text(got)


def test_a_request_that_replicas_die_of_is_given_up() -> None:
    ask, requests = replies([], [], [], whole())
    with pytest.raises(ApiError, match="3 replicas went away") as error:
        sent(ask)
    assert (error.value.status, len(requests)) == (503, 3)


def test_a_reply_that_takes_too_long() -> None:
    async def ask(_: Request) -> AsyncGenerator[dict[str, Any], None]:
        yield whole()[0]
        await asyncio.sleep(60)

    with pytest.raises(ApiError, match=r"longer than the 0\.1 seconds") as error:
        sent(ask, limits=Limits(max_request_s=0.1))
    assert error.value.status == 504


def test_a_front_that_stops_takes_nothing_new() -> None:
    front = Front(replies(whole())[0], Limits(), Metrics())
    front.stop()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    with pytest.raises(StoppingError):
        asyncio.run(front(dict(SCOPE), receive, None))


def got_from(front: Front, path: str, method: str = "GET") -> list[dict[str, Any]]:
    """What a client gets of a path."""
    return asyncio.run(exchanged(front, {**SCOPE, "method": method, "path": path}))


def test_what_all_replicas_tell_alike_is_asked_once_and_told_while_they_are_full() -> None:
    asked_for: list[str] = []

    async def ask(request: Request) -> AsyncGenerator[dict[str, Any], None]:
        path = request.scope["path"]
        asked_for.append(path)
        if asked_for.count("/full"):
            raise TooBusyError(3)
        first, *rest = whole(404 if path == "/none" else 200)
        yield {**first, "headers": [*first["headers"], (b"x-replica", b"first")]}
        for message in rest:
            yield message

    front = Front(ask, Limits(), Metrics())
    asyncio.run(front.learn(["/health", "/none", "/v1/models", "/full"]))
    assert asked_for == ["/health", "/none", "/v1/models", "/full"]
    for _ in range(2):
        for path in ("/health", "/v1/models"):
            first, *rest = got_from(front, path)
            assert (first["status"], text(rest)) == (200, '{"a":1}')
            assert b"x-replica" not in dict(first["headers"])
    assert got_from(front, "/health", "HEAD")[0]["status"] == 200
    assert len(asked_for) == 4
    for path, method in (("/none", "GET"), ("/full", "GET"), ("/health", "POST"), ("/v1/chat/completions", "POST")):
        with pytest.raises(TooBusyError):
            got_from(front, path, method)
    front.stop()
    with pytest.raises(StoppingError):
        got_from(front, "/health")


def test_what_is_served_and_the_page_are_kept(tiny: tuple[str, Any, Any]) -> None:
    app, (engine,) = application([tiny], Limits(), Metrics())
    lent = [app]

    async def ask(request: Request) -> AsyncGenerator[dict[str, Any], None]:
        for message in await exchanged(lent[0], request.scope, request.body):
            yield message

    front = Front(ask, Limits(), Metrics())
    paths = _told_alike(["tiny"])
    asyncio.run(front.learn(paths))
    lent.clear()
    engine.close()
    assert {"/", "/main.js", "/health", "/v1/models", "/v1/models/tiny", "/examples", "/examples/0.png"} < set(paths)
    for path in paths:
        first, only = got_from(front, path)
        assert (first["status"], only["type"]) == (200, "http.response.body")
    assert json.loads(text(got_from(front, "/v1/models")))["data"][0]["id"] == "tiny"
    assert json.loads(text(got_from(front, "/health"))) == {"status": "ok", "models": ["tiny"]}


def body(**changes: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": asked(scene()), **changes}).encode()


def test_questions_about_one_picture_have_one_key() -> None:
    keys = [passed_on(SCOPE, body(messages=asked(scene(), question))).key for question in ("what?", "is there a fish?")]
    follow_up = [*asked(scene()), {"role": "assistant", "content": "yes"}, *asked(scene(1))]
    keys.append(passed_on(SCOPE, body(messages=follow_up)).key)
    assert len(set(keys)) == 1
    assert passed_on(SCOPE, body(messages=asked(scene(1)))).key not in keys
    for odd in (b"", b"[1]", b"{", b'{"messages": 3}', b'{"messages": [{"content": [{"image_url": 1}]}]}', b"[" * 9999):
        assert passed_on(SCOPE, odd) == Request(passed_on(SCOPE, b"").scope, odd)
    assert passed_on(SCOPE, body(messages=asked(None))).key == ""


def test_a_stream_that_draws_gets_a_seed() -> None:
    request = passed_on(SCOPE, body(stream=True, temperature=1.0))
    assert 0 <= json.loads(request.body)["seed"] < 2**31
    assert dict(request.scope["headers"])[b"content-length"] == str(len(request.body)).encode()
    for unchanged in (body(stream=True), body(temperature=1.0), body(stream=True, temperature=1.0, seed=3)):
        assert passed_on(SCOPE, unchanged).body == unchanged
