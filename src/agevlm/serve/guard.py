"""The layer around the routes that holds clients to the limits: who asks, key, size and time of bodies, stalls.

Each request gets a name, which its reply has as `x-request-id`: the one that the client gave, else a new one.
Plain ASGI, so that it counts bytes as they come and sees a client go away while its answer is written.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from typing import Any

from agevlm.serve.asgi import App, Message
from agevlm.serve.errors import ApiError, FailedError
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Metrics
from agevlm.serve.origins import Origins

_log = logging.getLogger("agevlm.serve")
_ID = b"x-request-id"
_SAFE_ID = re.compile(rb"[\w.:-]{1,100}", re.ASCII)

# Nothing but what the server itself sends is loaded, run or asked; no other page may frame this one.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class StalledError(Exception):
    """The client leaves its answer unread."""


class Guard:
    """Around an ASGI application: refuses by itself, else passes on and watches."""

    def __init__(
        self, app: App, limits: Limits, metrics: Metrics, origins: Origins | None = None, key: str | None = None
    ) -> None:
        self.app, self.limits, self.metrics, self._origins = app, limits, metrics, origins
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _Call(self, scope, receive, send)
        try:
            await self._answer(call)
        except StalledError:
            call.status = 499
        finally:
            route = getattr(call.scope.get("route"), "path", "other")
            self.metrics.answered(route, call.status, time.monotonic() - call.began)

    async def _answer(self, call: _Call) -> None:
        try:
            self._check_origin(call.scope)
            self._check_key(call.scope)
            self._check_length(call.scope)
            await self.app(call.scope, call.receive, call.send)
            if call.refused is not None:
                raise call.refused
        except ApiError as error:
            await call.refuse(error)
        except StalledError:
            raise
        except Exception:
            _log.exception("request %s failed", call.id.decode())
            await call.refuse(FailedError())

    def _check_origin(self, scope: Any) -> None:
        if self._origins is not None:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            self._origins.check(headers.get(b"host"), headers.get(b"origin"))

    def _check_key(self, scope: Any) -> None:
        if self._key is None or not scope["path"].startswith(("/v1/", "/metrics")):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise ApiError(
                401, "this server wants an API key: send it as Authorization: Bearer KEY", code="invalid_api_key"
            )

    def _check_length(self, scope: Any) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            raise _too_large(self.limits)


class _Call:
    """One request on its way: bytes counted, times kept."""

    def __init__(self, guard: Guard, scope: Any, receive: Any, send: Any) -> None:
        self._guard, self._receive, self._send = guard, receive, send
        self.id, self.scope = _named(scope)
        self.began = time.monotonic()
        self.status = 499  # a client that went away before anything was sent
        self._num_bytes, self._uploading = 0, True
        self.refused: ApiError | None = None

    async def receive(self) -> Message:
        """The next piece of the body; ApiError 413 for too many bytes, 408 for too slow ones."""
        limits = self._guard.limits
        if not self._uploading:
            return await self._receive()
        left = limits.max_upload_s - (time.monotonic() - self.began)
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message: Message = await self._receive()
        except TimeoutError as error:
            self.refused = ApiError(408, f"the request did not arrive within {limits.max_upload_s:g} seconds")
            raise self.refused from error
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > limits.max_body_bytes:
            self.refused = _too_large(limits)
            raise self.refused
        self._uploading = bool(message.get("more_body"))
        return message

    async def send(self, message: Message) -> None:
        """Send a piece; a client that leaves it unread for too long, or takes all of it too slowly, is dropped.

        What an application says of a body that was refused, whose error it may have taken for one of its own, is not
        sent: the refusal is.
        """
        if self.refused is None:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (_ID, self.id), *_HEADERS]}
        limits = self._guard.limits
        left = self.began + limits.max_upload_s + limits.max_request_s + limits.max_stall_s - time.monotonic()
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that falls together with the end.
            async with asyncio.timeout(max(0.001, min(limits.max_stall_s, left))):
                await self._send(message)
        except TimeoutError as error:
            raise StalledError from error

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error. The connection ends where a body is left unread, or where an answer has begun."""
        if self.status != 499:
            return  # one that is not complete ends its connection
        body = json.dumps(error.body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        if self._uploading:
            headers.append((b"connection", b"close"))
        await self._pass_on({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._pass_on({"type": "http.response.body", "body": body})


def _named(scope: Any) -> tuple[bytes, Any]:
    """The name of a request, and its scope with that name. A HEAD is a GET whose body the server leaves out."""
    given = dict(scope["headers"]).get(_ID, b"")
    name = given if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}".encode()
    headers = [*((key, value) for key, value in scope["headers"] if key != _ID), (_ID, name)]
    method = {"method": "GET"} if scope.get("method") == "HEAD" else {}
    return name, {**scope, "headers": headers, **method}


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the request has more than {limits.max_body_bytes:,} bytes: send smaller or fewer pictures")
