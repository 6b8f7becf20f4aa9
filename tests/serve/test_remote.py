"""Which pictures are fetched: from allowed hosts, by https, from public addresses, without following anything."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agevlm.serve.errors import ApiError
from agevlm.serve.limits import Limits
from agevlm.serve.remote import Fetcher, public_address

FETCHER = Fetcher(["Pictures.example"], Limits(max_image_bytes=1000))


@pytest.mark.parametrize("url", ["https://pictures.example/a.png", "https://PICTURES.example.:443/a?b=c%20d"])
def test_an_allowed_host_is_asked(url: str) -> None:
    assert FETCHER.checked(url)[0] == "pictures.example"


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "https://pictures.example.evil.org/a.png",
        "https://evil.org/?https://pictures.example",
        "https://pictures.example:8443/a.png",
        "https://user@pictures.example/a.png",
        "https://pictures.example@evil.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://pictures.example/a",
        "https://[::1]/a.png",
        "https://[pictures.example/a.png",
        "https://pictures.example:99999/a.png",
        "https://pictures.example/a b",
        "",
    ],
)
def test_nothing_else_is(url: str) -> None:
    with pytest.raises(ApiError) as found:
        FETCHER.checked(url)
    assert found.value.status == 400


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::1",
     "::ffff:127.0.0.1", "224.0.0.1"],
)  # fmt: skip
def test_a_name_with_a_private_address_is_not_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))
    private = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public])
    assert public_address("pictures.example") == "93.184.216.34"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, private])
    with pytest.raises(ApiError, match="not public"):
        public_address("pictures.example")


class _Host(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        size = {"/small": 10, "/large": 5000}.get(self.path)
        self.send_response(302 if size is None else 200)
        self.send_header("Location", "http://127.0.0.1/secret")
        self.send_header("Content-Length", str(size or 0))
        self.end_headers()
        self.wfile.write(b"x" * (size or 0))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The allowed host, played by a server of this machine."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("agevlm.serve.remote.public_address", lambda _: "127.0.0.1")
    monkeypatch.setattr(
        Fetcher, "_connect", lambda *_: http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    )
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("reached")
def test_bytes_come_up_to_the_limit_and_redirects_are_not_followed() -> None:
    assert asyncio.run(FETCHER("https://pictures.example/small")) == b"x" * 10
    with pytest.raises(ApiError) as large:
        asyncio.run(FETCHER("https://pictures.example/large"))
    assert large.value.status == 413
    with pytest.raises(ApiError, match="302; redirects are not followed"):
        asyncio.run(FETCHER("https://pictures.example/elsewhere"))


def test_a_host_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(ApiError, match=r"cannot be fetched: .*not known"):
        asyncio.run(FETCHER("https://pictures.example/a.png"))
