"""Words of ASGI, and the one thing that all of it needs here: work that ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
Value = TypeVar("Value")


class GoneError(Exception):
    """The client went away before its answer was there."""


async def until_gone(work: Awaitable[Value], receive: Any) -> Value:
    """What `work` gives. Where the client goes away first, the work is cancelled and has ended: GoneError."""
    task: asyncio.Task[Value] = asyncio.ensure_future(work)  # type: ignore[assignment]
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
