"""Replicas of a server on Ray Serve, which starts, watches, scales and restarts them.

    HTTP ──▶ guard ──▶ front ── hash of the picture ──▶ Replica: a whole server without a socket

Ray's consistent hashing chooses the replica: one that comes or goes moves its own share of the pictures and no other;
one that is full passes its requests on to its neighbour.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from agevlm.serve.asgi import Message
from agevlm.serve.errors import TooBusyError
from agevlm.serve.front import ReplicaDiedError, Request
from agevlm.serve.limits import Limits

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_NAME = "agevlm"
_UNITS = {"CPU": "core", "GPU": "GPU"}  # Ray's names for what a replica takes, and ours
_log = logging.getLogger("agevlm.serve")


@dataclass(frozen=True)
class Replicas:
    """How many replicas of which models: `least` always, up to `most` as requests come, each on its own device."""

    models: Sequence[str]
    least: int = 1
    most: int = 1
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"{self.least} to {self.most} replicas: write 2, or 1:4 for one to four")

    @classmethod
    def parse(cls, text: str, models: Sequence[str], device: str = "auto", dtype: str = "auto") -> Replicas:
        """From `2`, or `1:4` for as many as the requests need, one to four. ValueError for anything else."""
        least, colon, most = text.partition(":")
        if not least.isdecimal() or (colon and not most.isdecimal()):
            raise ValueError(f"--replicas is {text!r}: write 2, or 1:4 for one to four")
        return cls(models, int(least), int(most or least), device, dtype)


class Replica:
    """A whole server without a socket, as Ray runs it."""

    def __init__(self, replicas: Replicas, limits: Limits, allow_remote: Sequence[str]) -> None:
        from ray import serve

        from agevlm.checkpoints import load_vlm
        from agevlm.serve.metrics import Metrics
        from agevlm.serve.server import application

        models = [(name, *load_vlm(name, replicas.device, replicas.dtype)) for name in replicas.models]
        self._app, _ = application(models, limits, Metrics(), allow_remote)
        self._name = serve.get_replica_context().replica_id.unique_id.encode()

    async def answer(self, request: Request) -> AsyncGenerator[Message, None]:
        """The ASGI messages of the reply, which names the replica; whoever stops listening frees its place."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        left = [{"type": "http.request", "body": request.body}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if left:
                return left.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(request.scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-replica", self._name)]
                yield message
            await task
        finally:
            gone.set()


def check_ray() -> None:
    """ValueError where Ray Serve is not installed."""
    if find_spec("ray") is None or find_spec("grpc") is None:
        raise ValueError("replicas need the extra `ray`: pip install 'agevlm[serve,ray]'")


@contextmanager
def running(
    replicas: Replicas, limits: Limits, allow_remote: Sequence[str] = (), grace_s: float = 30.0
) -> Iterator[Any]:
    """Replicas on the cluster of the environment variable RAY_ADDRESS, else on this machine: gives `ask` of a front.

    ValueError where there is no room for the least of them.
    """
    import ray
    from ray import serve

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes its time
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves replicas beside anything else that runs
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it would write a line for each request that is refused
    started_here = not ray.is_initialized()
    if started_here:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own
    try:
        replicas = _fitting(replicas)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        deployment = serve.deployment(Replica).options(name="replica", **_options(replicas, limits, grace_s))
        handle = serve.run(deployment.bind(replicas, limits, tuple(allow_remote)), name=_NAME, route_prefix=None)
        yield asker(handle)
    finally:
        serve.shutdown()
        if started_here:
            ray.shutdown()


def _taken(replicas: Replicas) -> dict[str, int]:
    """What a replica takes of the cluster."""
    import ray

    on_gpu = replicas.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    return {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1}


def _fitting(replicas: Replicas) -> Replicas:
    """These replicas, at most as many as the cluster has room for. ValueError where the least are more than that.

    Ray itself would wait, without a word, until there is room.
    """
    import ray

    there = ray.cluster_resources()
    room, scarce = min((int(there.get(kind, 0)), _UNITS[kind]) for kind in _taken(replicas))
    has = f"each takes a {scarce}, and there {'is' if room == 1 else 'are'} {room}"
    if replicas.least > room:
        raise ValueError(f"no room for {replicas.least} replicas: {has}; choose fewer with --replicas")
    if replicas.most > room:
        _log.warning("no room for %d replicas: %s; no more than %d are started", replicas.most, has, room)
        return replace(replicas, most=room)
    return replicas


def _options(replicas: Replicas, limits: Limits, grace_s: float) -> dict[str, Any]:
    """What Ray is told of a replica."""
    taken = _taken(replicas)
    number: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        scaling = {"min_replicas": replicas.least, "max_replicas": replicas.most}
        number = {"autoscaling_config": {**scaling, "target_ongoing_requests": max(1, limits.max_running // 2)}}
    return {
        **number,
        "max_ongoing_requests": limits.max_running,
        "max_queued_requests": limits.max_waiting,
        "request_router_config": {"request_router_class": _ROUTER},
        "ray_actor_options": {"num_cpus": taken["CPU"], "num_gpus": taken.get("GPU", 0)},
        "graceful_shutdown_timeout_s": grace_s,
    }


def asker(handle: Any) -> Any:
    """How a front asks the replicas behind a handle."""
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError
    from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

    async def ask(request: Request) -> AsyncGenerator[Message, None]:
        reply = handle.options(method_name="answer", stream=True, session_id=request.key).remote(request)
        try:
            async for message in reply:
                yield message
        except BackPressureError as error:
            raise TooBusyError(error.args[0]) from error
        except (RayTaskError, TaskCancelledError):  # the replica lives, and something else is wrong
            raise
        except (RayError, ReplicaUnavailableError) as error:
            raise ReplicaDiedError from error
        finally:
            with suppress(Exception):  # of one that was never taken, Ray raises once more why
                reply.cancel()

    return ask
