"""What goes wrong unforeseen is OpenAI's error with status 500, told once in the log under the request's name."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from tiny_served import asked

from agevlm.serve.guard import Guard
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Metrics
from agevlm.serve.service import Service

CHAT = "/v1/chat/completions"
START = {"type": "http.response.start", "status": 200, "headers": []}


def answered(app: Any, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[list[dict[str, Any]], Metrics]:
    """What a client of this application gets through the guard."""
    sent: list[dict[str, Any]] = []
    metrics = Metrics()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers or []}
    asyncio.run(Guard(app, Limits(), metrics)(scope, receive, send))
    return sent, metrics


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": json.dumps(scope["method"]).encode()})


def test_an_application_that_breaks_before_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    sent, metrics = answered(broken, [(b"x-request-id", b"mine")])
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["error"]["type"] == "server_error"
    assert 'agevlm_requests_total{route="other",status="500"} 1.0' in metrics.text().decode()
    assert "mine" in caplog.text


def test_an_application_that_breaks_in_its_answer_says_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise RuntimeError("broken")

    sent, _ = answered(broken)
    assert len(sent) == 1
    assert "broken" in caplog.text


def test_a_route_that_breaks(served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("nobody thought of it")

    monkeypatch.setattr(Service, "chat", broken)
    body = {"model": "tiny", "messages": asked(None)}
    reply = httpx.post(f"{served[0]}{CHAT}", json=body, headers={"X-Request-Id": "mine"}, timeout=30)
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert "nobody" not in reply.text
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == 1
    assert "mine" in told[0].getMessage()
    assert f'agevlm_requests_total{{route="{CHAT}",status="500"}}' in httpx.get(f"{served[0]}/metrics").text


def test_an_answer_that_fails_is_logged_under_its_name(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(served[1][0]._decoder, "read", broken)
    body = {"model": "tiny", "messages": asked(None)}
    reply = httpx.post(f"{served[0]}{CHAT}", json=body, headers={"X-Request-Id": "mine"}, timeout=30)
    assert reply.status_code == 500
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["request mine failed"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(b"abc-1:2.3_4", True), (b"x" * 100, True), (b"x" * 101, False), (b"", False), (b"a b", False), (b"\xe9", False)],
)
def test_a_name_is_kept_where_it_is_safe(given: bytes, kept: bool) -> None:
    sent, _ = answered(hello, [(b"x-request-id", given)])
    (name,) = [value for key, value in sent[0]["headers"] if key == b"x-request-id"]
    assert (name == given) == kept
    assert kept or name.startswith(b"req_")


def test_refusals_have_names_too(served: Any) -> None:
    replies = [httpx.get(f"{served[0]}{path}") for path in ("/nothing", "/health", "/")]
    replies.append(httpx.post(f"{served[0]}{CHAT}", content=b"{"))
    replies.append(httpx.post(f"{served[0]}{CHAT}", json={"model": "tiny", "messages": asked(None), "stream": True}))
    replies.append(httpx.get(f"{served[0]}/health", headers={"Host": "elsewhere.example"}))
    names = {reply.headers["x-request-id"] for reply in replies}
    assert len(names) == len(replies)
