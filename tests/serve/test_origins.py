"""Pages of other origins, and names that somebody made to point here, are refused; everybody else is let in."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tiny_served import asked

from agevlm.serve.errors import ApiError
from agevlm.serve.origins import Origins

BODY = {"model": "tiny", "messages": asked(None)}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST.:80"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.rebound.example:8000"}, 403),
        ({"Host": "localhost:port"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://[", "Content-Type": "text/plain"}, 403),
    ],
)
def test_who_is_let_in(served: Any, headers: dict[str, str], status: int) -> None:
    reply = httpx.post(f"{served[0]}/v1/chat/completions", json=BODY, headers=headers, timeout=60)
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["error"]["type"] == "permission_error"
        assert "--allow-host" in reply.json()["error"]["message"]


def test_the_page_of_the_server_itself_may_ask(served: Any) -> None:
    reply = httpx.post(f"{served[0]}/v1/chat/completions", json=BODY, headers={"Origin": served[0]}, timeout=60)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("listens", "allowed", "host", "origin", "let_in"),
    [
        ("127.0.0.1", ["looks.example"], "looks.example", "https://looks.example", True),
        ("127.0.0.1", ["looks.example"], "127.0.0.1:8000", "https://looks.example", True),  # behind a proxy
        ("127.0.0.1", ["looks.example"], "other.example", None, False),
        ("127.0.0.1", [], None, None, True),
        ("127.0.0.1", [], "localhost:80", "http://localhost", True),
        ("127.0.0.1", [], "localhost", "file://localhost", False),
        ("0.0.0.0", [], "any.example", None, True),
        ("0.0.0.0", [], "any.example:8000", "http://any.example:8000", True),
        ("0.0.0.0", [], "any.example:8000", "http://elsewhere.example", False),
        ("0.0.0.0", ["looks.example"], "any.example", None, False),
    ],
)
def test_names(listens: str, allowed: list[str], host: str | None, origin: str | None, let_in: bool) -> None:
    origins = Origins(listens, allowed)
    if let_in:
        origins.check(host, origin)
    else:
        with pytest.raises(ApiError) as refused:
            origins.check(host, origin)
        assert refused.value.status == 403
