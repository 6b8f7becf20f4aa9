"""Errors that a client sees, in OpenAI's form: a status, and one sentence that says what to change."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="unknown")  # whose errors the log tells of
_MAX_MESSAGE_LEN = 2000

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that is answered with `status` and a sentence; `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_s = status, code, retry_s
        self.message = _sayable(shortened(message, _MAX_MESSAGE_LEN))
        self.param = None if param is None else _sayable(shortened(param))

    @property
    def body(self) -> dict[str, Any]:
        """What is sent: `{"error": {"message", "type", "param", "code"}}`."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` where it is worth trying again."""
        return {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}


class TooBusyError(ApiError):
    """So many requests wait that one more would not be answered in time."""

    def __init__(self, waiting: int) -> None:
        super().__init__(429, f"{waiting} requests are waiting already: try again in a moment", retry_s=1)


class StoppingError(ApiError):
    """The server finishes what it has begun and takes nothing new."""

    def __init__(self) -> None:
        super().__init__(503, "the server is shutting down: ask another one, or try again later", retry_s=5)


class LateError(ApiError):
    """A request took longer than it may."""

    def __init__(self, most_s: float) -> None:
        super().__init__(504, f"the answer took longer than the {most_s:g} seconds it may take here")


class FailedError(ApiError):
    """Something went wrong that is not the client's fault."""

    def __init__(self) -> None:
        super().__init__(500, "the server failed on this request; its log says why")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it stands."""
    return ApiError(400, message, param=param, code=code)


def shortened(text: str, most: int = 100) -> str:
    """The beginning of a client's own words: nobody needs all of them to know which are meant."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _sayable(text: str) -> str:
    """On one line, and in characters that can be sent: a client's own words may be in it."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
