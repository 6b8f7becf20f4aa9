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
from importlib.util import find_spec

import httpx
import pytest
from tiny_served import asked, data_url, scene

from agevlm.serve.replicas import Replicas

pytestmark = pytest.mark.slow
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
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


def replicas() -> list[int]:
    """The processes of the replicas."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::ServeReplica:agevlm" in line]


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
