"""Who may ask: the name that a request calls this server by (Host), and the web page that sends it (Origin).

A server on 127.0.0.1 is open to every page in the browser of the same machine. A page cannot read what it asks across
origins, but it can send; and one whose own name is made to point to 127.0.0.1 (DNS rebinding) can even read. Both tell
on themselves in these two headers. What is no browser sends no Origin and is asked for nothing here.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from agevlm.serve.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PORTS = {"http": 80, "https": 443}


class Origins:
    """The names that a server listening on `host` answers to: `allowed` ones, its own, and this machine's.

    Where it listens to a network and no name is allowed, every name is its own: it may have many.
    """

    def __init__(self, host: str, allowed: Collection[str] = ()) -> None:
        self._allowed = {name.lower().rstrip(".") for name in allowed}
        any_name = host.lower() not in LOOPBACK and not allowed
        self._names = None if any_name else {*LOOPBACK, host.lower(), *self._allowed}

    def check(self, host: str | None, origin: str | None) -> None:
        """ApiError 403 for a foreign Host, and for a page of another origin. None where a header is not there."""
        if host is not None and self._names is not None and _name_and_port(f"//{host}")[0] not in self._names:
            known = ", ".join(sorted(self._names))
            raise ApiError(403, f"this server does not answer to the name {host!r}, only to {known}: see --allow-host")
        if origin is not None and not self._is_own(origin, host):
            raise ApiError(403, f"a page of {origin!r} may not ask this server: see --allow-host")

    def _is_own(self, origin: str, host: str | None) -> bool:
        name, port = _name_and_port(origin)
        scheme = origin.partition(":")[0].lower()
        default = _PORTS.get(scheme)
        own_name, own_port = _name_and_port(f"//{host or ''}")
        same = (name, port or default) == (own_name, own_port or default)
        return bool(name) and default is not None and (same or name in self._allowed)


def _name_and_port(url: str) -> tuple[str, int | None]:
    """Both empty where they cannot be read."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None
