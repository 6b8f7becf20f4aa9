"""A client that is slower than its answer: what is kept for it is bounded, others do not wait, and it is let go."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tiny_served import asked, endless, wait_until

import agevlm.serve.server as server
from agevlm.serve.limits import Limits

LIMITS = Limits(max_tokens=150, default_tokens=150, max_stall_s=2.0)
BODY = {"model": "endless", "messages": asked(None), "stream": True}


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """A server of an endless answer on connections that hold little of it."""
    listen = server.listen

    def narrow(*arguments: Any) -> socket.socket:
        listening = listen(*arguments)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return listening

    monkeypatch.setattr(server, "listen", narrow)
    with server.in_background([endless()], server.Settings(port=0, limits=LIMITS)) as (url, engines):
        yield url, engines[0]


def connect(url: str) -> socket.socket:
    """A client that has asked for a long answer, many bytes a token, and reads nothing of it."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect((host, int(port)))
    body = json.dumps({**BODY, "n": 8, "logprobs": True, "top_logprobs": 20}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def test_it_holds_nobody_up_and_is_let_go(small_buffers: Any) -> None:
    url, engine = small_buffers
    with connect(url) as slow:
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        reply = httpx.post(f"{url}/v1/chat/completions", json={**BODY, "max_tokens": 5}, timeout=60)
        assert reply.text.endswith("data: [DONE]\n\n")
        wait_until(lambda: engine.num_running == 0, 60)  # its rows are written whether it reads them or not
        wait_until(lambda: engine.num_waiting == 0, 10)  # it has lost its place
        rest = read_on(slow)
    assert b"[DONE]" not in rest
    assert len(rest) < 1_000_000
    assert httpx.get(f"{url}/health", timeout=20).status_code == 200


def read_on(client: socket.socket) -> bytes:
    """What still comes until the connection ends, which it must.

    A system that gives a connection up says nothing to the other end; it tells it as soon as that sends something.
    """
    rest = b""
    client.settimeout(3)
    try:
        while piece := _received(client):
            rest += piece
    except ConnectionError:
        pass
    return rest


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except TimeoutError:
        client.settimeout(20)
        client.sendall(b"?")
        return client.recv(65536)


def test_one_that_reads_slowly_gets_all_of_it(small_buffers: Any) -> None:
    url, _ = small_buffers
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "max_tokens": 40}, timeout=60) as reply:
        text = b""
        for piece in reply.iter_raw(2000):
            time.sleep(0.01)
            text += piece
    assert text.endswith(b"data: [DONE]\n\n")
