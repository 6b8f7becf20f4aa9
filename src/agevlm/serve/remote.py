"""Pictures from hosts that the server was allowed to ask: https alone, no redirects, no private addresses.

The name is resolved once, and the address that was checked is the one that is connected to: a name that changes its
address in between gains nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from agevlm.serve.errors import ApiError, bad_request
from agevlm.serve.limits import Limits

_PORT = 443
_PIECE_LEN = 65536


class Fetcher:
    """Gets the bytes of pictures from `hosts` (names, without a port), and from nowhere else."""

    def __init__(self, hosts: Sequence[str], limits: Limits) -> None:
        self.hosts, self.limits = frozenset(host.lower().rstrip(".") for host in hosts), limits

    async def __call__(self, url: str) -> bytes:
        """The bytes at a URL. ApiError 400 for one that is not allowed or cannot be had, 413 for too many bytes."""
        host, path = self.checked(url)
        try:
            return await asyncio.to_thread(self._get, host, path)
        except (OSError, http.client.HTTPException) as error:
            raise bad_request(f"the picture at {host} cannot be fetched: {error}", "messages") from error

    def checked(self, url: str) -> tuple[str, str]:
        """The host and the path of a URL that may be fetched."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise bad_request(f"{url[:100]!r} is no URL: {error}", "messages", "invalid_image_url") from error
        host = (parts.hostname or "").rstrip(".")
        allowed = parts.scheme == "https" and host in self.hosts and port in (None, _PORT)
        if not allowed or parts.username is not None or parts.password is not None:
            raise bad_request(
                f"pictures are fetched by https from {', '.join(sorted(self.hosts))} and from nowhere else: "
                "send this one as a data URL",
                "messages",
                "invalid_image_url",
            )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not path.isascii() or any(character <= " " for character in path):
            raise bad_request("the URL has characters that need to be percent-encoded", "messages", "invalid_image_url")
        return host, path

    def _get(self, host: str, path: str) -> bytes:
        deadline = time.monotonic() + self.limits.max_upload_s
        connection = self._connect(host, public_address(host))
        try:
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "agevlm"})
            reply = connection.getresponse()
            if reply.status != 200:
                raise bad_request(f"{host} answers with status {reply.status}; redirects are not followed", "messages")
            return self._read(reply, deadline)
        finally:
            connection.close()

    def _connect(self, host: str, address: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPSConnection(host, _PORT, timeout=self.limits.max_upload_s)
        plain = socket.create_connection((address, _PORT), timeout=self.limits.max_upload_s)
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        return connection

    def _read(self, reply: http.client.HTTPResponse, deadline: float) -> bytes:
        pieces, left = [], self.limits.max_image_bytes + 1
        while left > 0 and (piece := reply.read1(min(left, _PIECE_LEN))):
            pieces.append(piece)
            left -= len(piece)
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not arrive within {self.limits.max_upload_s:g} seconds")
        if left <= 0:
            raise ApiError(413, f"the picture has more than {self.limits.max_image_bytes:,} bytes", param="messages")
        return b"".join(pieces)


def public_address(host: str) -> str:
    """The address of a host, if all its addresses are public. ApiError 400 where one is not."""
    found = socket.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        parsed = ipaddress.ip_address(address.split("%")[0])
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        if not mapped.is_global or mapped.is_multicast:
            raise bad_request(f"{host} has an address that is not public, and is not asked", "messages")
    return addresses[0]
