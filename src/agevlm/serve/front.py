"""The one address of many replicas: a request goes to the one that holds its picture, and to another where that dies.

A request changes nothing, so it can be asked again. What of a stream was sent already is not sent twice: the other
replica writes the same answer (greedy, or by the seed that is given to every stream that draws), and what the client
has is left out of it. Knows neither models nor Ray: a function asks the replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from agevlm.serve.asgi import GoneError, Message, until_gone
from agevlm.serve.bodies import MAX_MARKS, num_marks
from agevlm.serve.errors import ApiError, StoppingError, TooBusyError
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Metrics

_MAX_DEATHS = 3  # of replicas, of one request: it may be what they die of
_PAUSE_S = 0.2
_API = ("/v1/chat/completions", "/v1/looks", "/v1/answers", "/v1/models", "/health", "/metrics")


class ReplicaDiedError(Exception):
    """The replica went away before its reply was complete."""


@dataclass(frozen=True)
class Request:
    """A request as it is passed on; `key` is the same for all that begin with the same picture, "" without one."""

    scope: dict[str, Any]
    body: bytes
    key: str = ""


@dataclass(frozen=True)
class Route:
    """What the metrics call a request."""

    path: str


class Front:
    """An ASGI application in front of replicas; `guard.Guard` belongs around it. `ask` gives a replica's messages."""

    def __init__(
        self, ask: Callable[[Request], AsyncGenerator[Message, None]], limits: Limits, metrics: Metrics
    ) -> None:
        self._ask, self.limits, self.metrics = ask, limits, metrics
        self._stopping = False
        self._kept: dict[str, list[Message]] = {}

    async def learn(self, paths: Iterable[str]) -> None:
        """Ask for what all replicas tell alike, for good. It is kept, and told also while all of them are full."""
        for path in paths:
            reply: list[Message] = []
            with contextlib.suppress(ApiError):  # then a replica is asked each time
                await self._try(_got(path), Relay(_into(reply)))
            if reply and reply[0]["status"] == 200:
                headers = [header for header in reply[0]["headers"] if header[0] != b"x-replica"]
                self._kept[path] = [{**reply[0], "headers": headers}, *reply[1:]]

    def stop(self) -> None:
        """Take nothing new from now on."""
        self._stopping = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request. ApiError where it cannot be, as long as nothing was sent."""
        path = scope["path"]
        scope["route"] = Route(path if path in _API else "other")
        if path == "/metrics":
            await _send_text(send, self.metrics.text())
            return
        body = await _whole(receive)
        if self._stopping:
            raise StoppingError
        if scope["method"] in ("GET", "HEAD") and path in self._kept:
            for message in self._kept[path]:
                await send(message)
            return
        with contextlib.suppress(GoneError):
            await until_gone(self._answer(passed_on(scope, body), Relay(send)), receive)

    async def _answer(self, request: Request, relay: Relay) -> None:
        try:
            async with asyncio.timeout(self.limits.max_request_s):
                await self._try(request, relay)
        except TimeoutError:
            late = f"the answer took longer than the {self.limits.max_request_s:g} seconds it may take here"
            await relay.fail(ApiError(504, late))
        except ApiError as error:
            await relay.fail(error)

    async def _try(self, request: Request, relay: Relay) -> None:
        deaths = 0
        while True:
            try:
                async for message in self._ask(request):
                    await relay.take(message)
                return
            except ReplicaDiedError as error:
                deaths += 1
                if deaths >= _MAX_DEATHS:
                    raise ApiError(503, f"{deaths} replicas went away under this request: try it later") from error
            except TooBusyError:
                if not deaths:  # one that was taken once is not refused: it waits
                    raise
            relay.again()
            await asyncio.sleep(_PAUSE_S)


class Relay:
    """Passes a reply on. Of the same reply from another replica, after `again`, only what has not been sent yet."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._start: Message | None = None  # of the reply that comes
        self._begun = self._streamed = False
        self._held: list[bytes] = []
        self._events: list[dict[str, Any]] = []  # of a stream, that were sent
        self._place = 0

    def again(self) -> None:
        """The same reply comes once more, from its beginning."""
        self._start, self._held, self._place = None, [], 0

    async def take(self, message: Message) -> None:
        """Pass on a message of the replica. TooBusyError where a stream that has begun is refused now."""
        if message["type"] == "http.response.start":
            await self._take_start(message)
        elif self._streamed:
            await self._take_event(message)
        else:
            self._held.append(message.get("body", b""))
            if not message.get("more_body"):
                assert self._start is not None
                self._begun = True
                await self._send(self._start)
                await self._send({"type": "http.response.body", "body": b"".join(self._held)})

    async def _take_start(self, message: Message) -> None:
        if self._begun and message["status"] != 200:
            raise TooBusyError(0)
        self._start = message
        kind = dict(message["headers"]).get(b"content-type", b"")
        self._streamed = kind.startswith(b"text/event-stream")
        if self._streamed and not self._begun:
            self._begun = True
            await self._send(message)

    async def _take_event(self, message: Message) -> None:
        """One server-sent event, as `app.EventStream` sends them: one a message."""
        event = _event(message.get("body", b""))
        if event is None:
            await self._send(message)
            return
        if self._events:  # one stream has one id, whoever writes it
            event |= {name: self._events[0][name] for name in ("id", "created") if name in event}
        if self._place == len(self._events):
            self._events.append(event)
            await self._send({**message, "body": _written(event)})
        elif event != self._events[self._place]:
            raise ApiError(503, "the replica went away, and another one answers in other words: ask again")
        self._place += 1

    async def fail(self, error: ApiError) -> None:
        """Say what went wrong: in the stream where it has begun, else by raising it."""
        if not self._begun:
            raise error
        if self._streamed:
            await self._send({"type": "http.response.body", "body": _written(error.body), "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})


def passed_on(scope: Any, body: bytes) -> Request:
    """A request as a replica is asked: with the key of its first picture; a stream that draws gets a seed."""
    kept = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
    plain = {name: scope[name] for name in kept if name in scope} | {"root_path": "", "client": None, "server": None}
    if num_marks(body) > MAX_MARKS:  # would take seconds to read
        return Request(plain, body)  # the replica says what is wrong
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return Request(plain, body)
    if not isinstance(asked, dict):
        return Request(plain, body)
    if asked.get("stream") is True and asked.get("temperature") and asked.get("seed") is None:
        body = json.dumps({**asked, "seed": secrets.randbelow(2**31)}).encode()
        lengthless = [(name, value) for name, value in plain["headers"] if name != b"content-length"]
        plain["headers"] = [*lengthless, (b"content-length", str(len(body)).encode())]
    return Request(plain, body, _key(asked.get("messages")))


def _got(path: str) -> Request:
    """A request of nobody's for what stands at a path."""
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path}
    return passed_on(scope | {"raw_path": path.encode(), "query_string": b"", "headers": []}, b"")


def _key(messages: Any) -> str:
    """A hash of the URL of the first picture; a further picture of a conversation goes where its first one is."""
    for message in messages if isinstance(messages, list) else ():
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            picture = part.get("image_url") if isinstance(part, dict) else None
            url = picture.get("url") if isinstance(picture, dict) else None
            if isinstance(url, str):
                return hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
    return ""


def _event(body: bytes) -> dict[str, Any] | None:
    return json.loads(body.removeprefix(b"data: ")) if body.startswith(b"data: {") else None


def _written(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _whole(receive: Any) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _into(messages: list[Message]) -> Callable[[Message], Awaitable[None]]:
    """An ASGI `send` that keeps what is sent."""

    async def send(message: Message) -> None:
        messages.append(message)

    return send


async def _send_text(send: Any, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})
