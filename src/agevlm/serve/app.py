"""The routes: FastAPI on one side, `Service` on the other. Nothing is decided here but which goes where."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from agevlm import __version__
from agevlm.serve import bodies
from agevlm.serve.asgi import GoneError, until_gone
from agevlm.serve.errors import REQUEST_ID, ApiError, FailedError, shortened
from agevlm.serve.examples import NUM_EXAMPLES, example
from agevlm.serve.protocol import (
    AnswersReply,
    AnswersRequest,
    ChatReply,
    ChatRequest,
    ErrorReply,
    LookReply,
    LookRequest,
)
from agevlm.serve.service import Service, Stream

PAGE = pathlib.Path(__file__).parent / "page"
_FRESH = {"Cache-Control": "no-cache"}  # asked again each time, sent again only where it has changed
_FORM = "#/components/schemas/{model}"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
}


def build_app(service: Service) -> FastAPI:
    """The application; `guard.Guard` belongs around it."""
    app = _App(title="agevlm", version=__version__, docs_url=None, redoc_url=None)
    _handle_errors(app)
    _add_api(app, service)
    _add_extensions(app, service)
    _add_state(app, service)
    _add_examples(app, service)
    _add_page(app)
    return app


class _App(FastAPI):
    """FastAPI, whose description has the bodies that `bodies.py` reads in place of it, and whose log names requests."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        REQUEST_ID.set(dict(scope.get("headers", ())).get(b"x-request-id", b"unknown").decode("latin-1"))
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The description of the API."""
        found = super().openapi()
        forms = [(form, "validation") for form in (ChatRequest, LookRequest, AnswersRequest)]
        _, described = models_json_schema(forms, ref_template=_FORM)  # type: ignore[arg-type]
        found["components"]["schemas"].update(described["$defs"])
        return found


def _takes(form: type[bodies.Model]) -> dict[str, Any]:
    """What the description says of a route's body."""
    content = {"application/json": {"schema": {"$ref": _FORM.format(model=form.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


async def _body(form: type[bodies.Model], http: Request) -> bodies.Model:
    """The body of a request, checked."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        body = await http.body()
    except ClientDisconnect as error:
        raise GoneError from error
    if not body or not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise bodies.no_object()
    return await bodies.read(form, body)


def _add_api(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        responses={**_REFUSALS, 200: {"model": ChatReply, "content": {"text/event-stream": {}}}},
        openapi_extra=_takes(ChatRequest),
    )
    async def chat_completions(http: Request) -> Response:
        """Continue a conversation about pictures."""
        request = await _body(ChatRequest, http)
        arrived = time.monotonic()
        if request.stream:
            return EventStream(await until_gone(service.stream(request, arrived), http.receive))
        return JSONResponse(await until_gone(service.chat(request, arrived), http.receive))

    @app.get("/v1/models", responses={401: {"model": ErrorReply}})
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [service.described(name) for name in service.engines]}

    @app.get("/v1/models/{name:path}", responses=_REFUSALS)
    async def model(name: str) -> dict[str, Any]:
        """One model that is served."""
        service.engine(name)
        return service.described(name)


def _add_extensions(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/looks",
        responses={**_REFUSALS, 200: {"model": LookReply, "content": {"image/png": {}}}},
        openapi_extra=_takes(LookRequest),
    )
    async def looks(http: Request) -> Response:
        """Where the model looks (extension): a PNG of one word, or the maps of all."""
        request = await _body(LookRequest, http)
        found = await until_gone(service.look(request, time.monotonic()), http.receive)
        return JSONResponse(found) if isinstance(found, dict) else Response(found, media_type="image/png")

    @app.post(
        "/v1/answers",
        responses={**_REFUSALS, 200: {"model": AnswersReply}},
        openapi_extra=_takes(AnswersRequest),
    )
    async def answers(http: Request) -> JSONResponse:
        """How probable each of the given answers is (extension)."""
        request = await _body(AnswersRequest, http)
        return JSONResponse(await until_gone(service.answers(request, time.monotonic()), http.receive))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: {"model": ErrorReply}})
    async def health() -> dict[str, Any]:
        """Whether the server answers requests."""
        service.check_health()
        return {"status": "ok", "models": list(service.engines)}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_examples(app: FastAPI, service: Service) -> None:
    @app.get("/examples")
    async def all_examples() -> list[dict[str, Any]]:
        """Pictures to begin with, drawn by the package; none where no model knows what they show."""
        drawn = await asyncio.to_thread(lambda: [example(number) for number in range(NUM_EXAMPLES)])
        if not service.knows({thing for one in drawn for thing in one.things}):
            return []
        return [
            {"url": f"/examples/{number}.png", "title": one.title, "questions": one.questions}
            for number, one in enumerate(drawn)
        ]

    @app.get(
        "/examples/{number}.png",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, 404: {"model": ErrorReply}},
    )
    async def example_picture(number: int) -> Response:
        """One of them."""
        if not 0 <= number < NUM_EXAMPLES:
            raise ApiError(404, f"there is no example {number}: they are 0 to {NUM_EXAMPLES - 1}")
        return Response((await asyncio.to_thread(example, number)).png, media_type="image/png")


def _add_page(app: FastAPI) -> None:
    files = {path.name: path for path in PAGE.iterdir()}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(files["index.html"], headers=_FRESH)

    @app.get("/{name}", include_in_schema=False)
    async def page_file(name: str) -> FileResponse:
        if name not in files:
            raise ApiError(404, f"there is nothing at /{shortened(name)}")
        return FileResponse(files[name], headers=_FRESH)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(bodies.explained(error.errors()).body, 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        path, method = shortened(request.url.path), request.method
        message = {404: f"there is nothing at {path}", 405: f"{method} is not for this path"}
        found = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
        return JSONResponse(found.body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(GoneError)
    async def gone(_: Request, __: GoneError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, __: Exception) -> JSONResponse:  # it is raised on, and the guard logs it
        return JSONResponse(FailedError().body, 500)


class EventStream(Response):
    """Server-sent events; the stream is closed as soon as the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, source: Stream) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send until the source ends or the client goes."""
        try:
            with contextlib.suppress(GoneError):
                await until_gone(self._pump(send), receive)
        finally:
            self._source.close()

    async def _pump(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._source:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
