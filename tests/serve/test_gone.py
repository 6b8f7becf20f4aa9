"""Whatever a client's going falls together with, the work for it ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from agevlm.serve.asgi import GoneError, until_gone
from agevlm.serve.guard import Guard
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Metrics


@pytest.mark.parametrize("turns", range(12))
def test_a_stream_ends_when_its_client_goes_at_any_turn_of_the_loop(turns: int) -> None:
    num_sent = 0

    async def receive() -> dict[str, str]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        nonlocal num_sent
        num_sent += 1

    async def app(_: Any, receive: Any, send: Any) -> None:
        async def pump() -> None:
            while num_sent < 1000:
                await send({"type": "http.response.body", "body": b"", "more_body": True})
                await asyncio.sleep(0)

        with contextlib.suppress(GoneError):
            await until_gone(pump(), receive)

    scope = {"type": "http", "path": "/", "headers": []}
    asyncio.run(Guard(app, Limits(), Metrics())(scope, receive, send))
    assert num_sent < 100
