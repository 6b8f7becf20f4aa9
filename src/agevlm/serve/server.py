"""A server on a socket: models loaded, the port taken, signals heeded.

SIGTERM and SIGINT refuse what comes and finish what runs, within a grace; a second one ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from agevlm.serve.app import PAGE, build_app
from agevlm.serve.asgi import App
from agevlm.serve.engine import Engine, settle_threads
from agevlm.serve.examples import NUM_EXAMPLES
from agevlm.serve.front import Front
from agevlm.serve.guard import Guard
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Metrics
from agevlm.serve.origins import Origins
from agevlm.serve.remote import Fetcher
from agevlm.serve.replicas import Replicas, running
from agevlm.serve.service import Service


@dataclass(frozen=True)
class Settings:
    """Where a server listens, and whom and what it lets in."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    allow_remote: Sequence[str] = ()  # hosts that pictures are fetched from
    allow_host: Sequence[str] = ()  # further names that this server is called by
    limits: Limits = field(default_factory=Limits)
    grace_s: float = 30.0


class Server(uvicorn.Server):
    """uvicorn, which calls `stop` at the first signal: from then on nothing new is taken.

    Requests that have not ended when the grace is over, or at a second signal, are cut off: `num_cut_off` counts them.
    """

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop, self.num_cut_off = stop, 0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal: finish what runs. A second one: end at once. Unlike uvicorn, raise neither once more."""
        self._stop()
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs, and count what could not be finished."""
        await super().shutdown(sockets)
        self.num_cut_off = len(self.server_state.tasks)


def listen(host: str, port: int, stall_s: float = Limits.max_stall_s) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. ValueError where that is not to be had.

    Where the system can (Linux), a connection whose other end takes nothing for `stall_s` is ended: asyncio alone would
    wait for good to send what it still has.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(
            f"there is no address of the host {host!r}: use 127.0.0.1, or an address of this machine"
        ) from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * stall_s))
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use: choose another with --port") from error
        raise ValueError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return listening


def application(
    models: Sequence[tuple[str, Any, Any]], limits: Limits, metrics: Metrics, allow_remote: Sequence[str] = ()
) -> tuple[App, list[Engine]]:
    """The routes over loaded models, each (name, model, processor), and their engines."""
    engines = {name: Engine(name, model, processor, limits, metrics) for name, model, processor in models}
    fetch = Fetcher(allow_remote, limits) if allow_remote else None
    return build_app(Service(engines, limits, metrics, fetch)), list(engines.values())


def build(models: Sequence[tuple[str, Any, Any]], settings: Settings) -> tuple[Server, list[Engine]]:
    """A server of loaded models; `server.run(sockets=[…])` runs it."""
    metrics = Metrics()
    app, engines = application(models, settings.limits, metrics, settings.allow_remote)

    def stop() -> None:
        for engine in engines:
            engine.stop()

    return _guarded(app, metrics, settings, stop), engines


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log tells more than that a request was cut off at the end: those are counted."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown exceeded" not in str(record.msg)


def _guarded(app: App, metrics: Metrics, settings: Settings, stop: Callable[[], None]) -> Server:
    origins = Origins(settings.host, settings.allow_host)
    config = uvicorn.Config(
        Guard(app, settings.limits, metrics, origins, settings.key),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.grace_s),
        timeout_keep_alive=15,
        lifespan="off",
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return Server(config, stop)


def run(models: Sequence[tuple[str, Any, Any]], settings: Settings, listening: socket.socket) -> int:
    """Serve until a signal; then finish what runs, for at most `grace_s`. How many requests were cut off."""
    settle_threads(models)
    server, engines = build(models, settings)
    gc.collect()
    gc.freeze()  # to look through all that was loaded stops every answer for a fifth of a second
    try:
        server.run(sockets=[listening])
    finally:
        gc.unfreeze()
        for engine in engines:
            engine.close(grace_s=1.0)
    return server.num_cut_off


def run_replicas(
    replicas: Replicas, settings: Settings, listening: socket.socket, ready: Callable[[], None] = lambda: None
) -> int:
    """The same with replicas on Ray behind the socket; `ready` is called once they answer."""
    metrics = Metrics()
    with running(replicas, settings.limits, settings.allow_remote, settings.grace_s) as ask:
        front = Front(ask, settings.limits, metrics)
        asyncio.run(front.learn(_told_alike(replicas.models)))
        ready()
        server = _guarded(front, metrics, settings, front.stop)
        server.run(sockets=[listening])
    return server.num_cut_off


def _told_alike(models: Sequence[str]) -> list[str]:
    """The paths where every replica tells the same: what is served, and the page with its examples."""
    served = ["/health", "/v1/models", *(f"/v1/models/{name}" for name in models), "/openapi.json"]
    examples = ["/examples", *(f"/examples/{number}.png" for number in range(NUM_EXAMPLES))]
    return [*served, *examples, "/", *(f"/{file.name}" for file in PAGE.iterdir())]


@contextmanager
def in_background(models: Sequence[tuple[str, Any, Any]], settings: Settings | None = None) -> Any:
    """A server in a thread of this process while the body runs: gives its base URL and its engines."""
    import threading
    import time

    settings = settings or Settings(port=0)
    listening = listen(settings.host, settings.port, settings.limits.max_stall_s)
    server, engines = build(models, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://{settings.host}:{listening.getsockname()[1]}", engines
    finally:
        server.should_exit = True
        thread.join(timeout=settings.grace_s + 5)
        for engine in engines:
            engine.close()
