"""`agevlm serve` as a process: signals, ports, models that are not there."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tiny_served import asked, scene

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "agevlm.cli", "serve"]


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of `tiny` in a process of its own, and its base URL."""
    started = subprocess.Popen(
        [*COMMAND, "tiny", "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )  # fmt: skip
    assert started.stdout is not None
    line = started.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, (line, started.stderr and started.stderr.read())
    yield started, found.group()
    started.kill()
    started.wait()


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of `tiny`, and its base URL."""
    with running() as found:
        yield found


def wait_for(url: str) -> None:
    for _ in range(200):
        try:
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            threading.Event().wait(0.05)
    raise AssertionError("the server does not come up")


def test_sigterm_finishes_what_runs_and_refuses_what_comes(process: Any) -> None:
    server, url = process
    wait_for(url)
    body = {"model": "tiny", "messages": asked(scene(), "what is in the picture?"), "stream": True}
    with httpx.Client(timeout=60) as client, client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        pieces = reply.iter_text()
        text = next(pieces)
        server.send_signal(signal.SIGTERM)
        text += "".join(pieces)
    assert text.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"stop"' in text
    assert server.wait(timeout=30) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/health", timeout=5)
    assert server.stderr is not None
    assert server.stderr.read() == "stopped\n"


@pytest.mark.parametrize(("options", "num_signals"), [([], 2), (["--grace", "0"], 1)])
def test_what_is_cut_off_is_one_line_and_a_status(options: list[str], num_signals: int) -> None:
    with running("--api-key", "s3cr3t", *options) as (server, url):
        wait_for(url)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow:
            head = "POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", "Authorization: Bearer s3cr3t"
            slow.sendall("\r\n".join([*head, "Content-Length: 100", "", ""]).encode())  # and the body never comes
            wait_for(url)
            for _ in range(num_signals):
                server.send_signal(signal.SIGINT)
                threading.Event().wait(0.3)  # two at once would be one
            assert server.wait(timeout=30) == 1
        assert server.stderr is not None
        assert server.stderr.read() == "stopped; requests that were cut off: 1\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_tells_no_key(number: signal.Signals) -> None:
    with running("--api-key", "s3cr3t") as (server, url):
        wait_for(url)
        server.send_signal(number)
        assert (server.wait(timeout=30), server.stderr and server.stderr.read()) == (0, "stopped\n")


def test_an_empty_key_is_refused() -> None:
    for key in ("", " "):
        command = [*COMMAND, "tiny", "--port", "0", "--host", "0.0.0.0", "--api-key", key]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: --api-key is empty: give a key, or leave the option out")


def test_what_was_loaded_is_not_looked_through_again(
    tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full collection goes through all of transformers, with every answer halted."""
    from agevlm.serve import server

    frozen: list[int] = []
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: frozen.append(gc.get_freeze_count()))
    server.run([tiny], server.Settings(port=0), server.listen("127.0.0.1", 0))
    assert frozen[0] > 100_000
    assert gc.get_freeze_count() == 0


def test_a_port_in_use_is_one_line(process: Any) -> None:
    port = process[1].rsplit(":", 1)[1]
    done = subprocess.run([*COMMAND, "tiny", "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: port {port} of 127.0.0.1 is in use: choose another with --port"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nothing-like-this"], "no model 'nothing-like-this'"),
        (["tiny", "tiny"], "named twice"),
        (["tiny-llama"], "no pictures"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_line(arguments: list[str], what: str) -> None:
    done = subprocess.run([*COMMAND, *arguments, "--port", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert what in done.stderr
