"""Two replicas on a Ray of this machine: a picture's requests go to one, and when one is killed nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_served import asked, data_url, scene

from agevlm.serve.errors import TooBusyError
from agevlm.serve.front import Request
from agevlm.serve.limits import Limits
from agevlm.serve.replicas import Replicas, _fitting, _options, asker

with_ray = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("grpc") is None, reason="Ray Serve is not installed: pip install 'ray[serve]'"
)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def replicated() -> Iterator[str]:
    """The base URL of two replicas of `tiny`."""
    command = [sys.executable, "-m", "agevlm.cli", "serve", "tiny", "--port", "0", "--replicas", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found
    yield found.group()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


def replicas() -> list[int]:
    """The processes of the replicas that this one has started, by way of others."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    known = {
        int(pid): (int(parent), args) for pid, parent, args in (line.split(None, 2) for line in found.splitlines()[1:])
    }

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in known and is_ours(known[pid][0]))

    return [pid for pid, (_, args) in known.items() if "ray::ServeReplica:agevlm" in args and is_ours(pid)]


async def ask(client: httpx.AsyncClient, number: int, question: str, stream: bool) -> tuple[str, str]:
    """The text of an answer about picture `number`, and the replica that began it."""
    body = {"model": "tiny", "messages": asked(data_url(scene(number)), question), "stream": stream}
    reply = await client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    if not stream:
        return str(reply.json()["choices"][0]["message"]["content"]), reply.headers["x-replica"]
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines
    choices = (choice for line in lines[:-1] for choice in json.loads(line)["choices"])
    return "".join(choice["delta"].get("content", "") for choice in choices), reply.headers["x-replica"]


@pytest.mark.slow
@with_ray
def test_each_picture_has_one_replica_and_one_killed_under_load_loses_nothing(replicated: str) -> None:
    async def load() -> None:
        async with httpx.AsyncClient(base_url=replicated, timeout=100) as client:
            alone = [await ask(client, number, "what is in the picture?", stream=False) for number in range(8)]
            again = [await ask(client, number, "is there a fish?", stream=True) for number in range(8)]
            assert [where for _, where in again] == [where for _, where in alone]
            assert len({where for _, where in alone}) == 2
            running = replicas()
            assert len(running) == 2
            jobs = [ask(client, number % 8, "what is in the picture?", stream=number % 2 == 0) for number in range(64)]
            asking = [asyncio.ensure_future(job) for job in jobs]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            os.kill(running[0], signal.SIGKILL)
            answers = [text for text, _ in await asyncio.gather(*asking)]
            assert answers == [alone[number % 8][0] for number in range(64)]

    asyncio.run(load())


@pytest.mark.parametrize("text", ["0", "two", "3:2", "1:", "-1", "1:2:3"])
def test_a_number_of_replicas_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="write 2, or 1:4"):
        Replicas.parse(text, ["tiny"])


def test_numbers_of_replicas() -> None:
    assert (Replicas.parse("2", ["tiny"]).least, Replicas.parse("2", ["tiny"]).most) == (2, 2)
    assert (Replicas.parse("1:4", ["tiny"]).least, Replicas.parse("1:4", ["tiny"]).most) == (1, 4)


class Refused:
    """The reply to a request that Ray refuses: it tells so to whoever reads it, and to whoever cancels it."""

    def __aiter__(self) -> Refused:
        return self

    async def __anext__(self) -> Any:
        self.cancel()

    def cancel(self) -> None:
        from ray.serve.exceptions import BackPressureError

        raise BackPressureError(7, 7)


class Full:
    """A handle of replicas that are all full."""

    def options(self, **_: Any) -> Full:
        return self

    def remote(self, _: Request) -> Refused:
        return Refused()


@with_ray
def test_replicas_that_are_full_are_told_as_a_server_that_is() -> None:
    async def ask_all() -> None:
        async for _ in asker(Full())(Request({}, b"")):
            pass

    with pytest.raises(TooBusyError, match="7 requests are waiting") as error:
        asyncio.run(ask_all())
    assert (error.value.status, error.value.headers) == (429, {"Retry-After": "1"})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What Ray says that it has: two cores."""
    resources = {"CPU": 2.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    return resources


@with_ray
def test_more_replicas_than_there_is_room_for(cluster: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    two, three, up_to_three = (Replicas.parse(text, ["tiny"]) for text in ("2", "3", "1:3"))
    assert _fitting(two) == two
    with pytest.raises(ValueError, match=r"^no room for 3 replicas: each takes a core, and there are 2; choose fewer"):
        _fitting(three)
    assert not caplog.messages
    assert _fitting(up_to_three) == replace(up_to_three, most=2)
    (said,) = caplog.messages
    assert said == "no room for 3 replicas: each takes a core, and there are 2; no more than 2 are started"
    cluster["GPU"] = 1.0
    with pytest.raises(ValueError, match="each takes a GPU, and there is 1;"):
        _fitting(two)
    assert _fitting(replace(two, device="cpu")) == replace(two, device="cpu")


@with_ray
def test_ray_is_told_how_to_scale_as_it_is_documented(cluster: dict[str, float]) -> None:
    from ray.serve.config import AutoscalingConfig

    limits = Limits(max_running=8, max_waiting=16)
    options = _options(Replicas.parse("1:2", ["tiny"]), limits, 30)
    scaling = AutoscalingConfig(**options["autoscaling_config"])
    assert "num_replicas" not in options
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 2, 4)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (30, 600)
    assert (options["max_ongoing_requests"], options["max_queued_requests"]) == (8, 16)
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    cluster["GPU"] = 2.0
    fixed = _options(Replicas.parse("2", ["tiny"]), limits, 30)
    assert (fixed["num_replicas"], fixed["ray_actor_options"]) == (2, {"num_cpus": 1, "num_gpus": 1})
    assert "autoscaling_config" not in fixed


@pytest.mark.slow
@with_ray
def test_replicas_of_a_model_that_cannot_be_loaded_are_not_started(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    command = [sys.executable, "-m", "agevlm.cli", "serve", str(tmp_path), "--port", "0", "--replicas", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path} is a model of the type 'llama'")
    assert done.stderr.count("\n") == 1
