"""Who may speak to the HTTP door. Asked before anything else of a request is looked at.

The token alone would do against other users of this computer. Host and Origin are for
the web page that a person has open meanwhile: a page can make the browser send requests
to 127.0.0.1 (CSRF), and by DNS rebinding under a name of its own (T14 of the threats).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

from kachery_p2p.errors import DaemonAuthError
from kachery_p2p.node.http_wire import Request

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Refused(DaemonAuthError):
    """A request that may not come in, with its HTTP status."""

    def __init__(self, status: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Guard:
    """`names` and `origins` are those that the configuration allows beside the local ones."""

    def __init__(
        self, token: str, names: Collection[str] = (), origins: Collection[str] = ()
    ) -> None:
        self._token = token.encode()
        self._names = frozenset(name.lower() for name in names)
        self._origins = frozenset(origins)

    def check(self, request: Request, local: tuple[str, int]) -> None:
        """Raise `Refused` for a request to another host, from a web page, or without the token."""
        self._check_host(request.header("host"), local)
        origin = request.header("origin")
        if origin is not None and origin not in self._origins:
            raise Refused(403, "requests from web pages are not allowed")
        if request.header("upgrade") is not None:
            raise Refused(403, "this server speaks HTTP/1.1 only")
        self._check_token(request.header("authorization"))

    def _check_host(self, host: str | None, local: tuple[str, int]) -> None:
        """The address the client connected to is always good: a page cannot rebind a number."""
        address, port = local
        numeric = f"[{address}]" if ":" in address else address
        name, separator, given_port = (host or "").lower().rpartition(":")
        allowed = {*_LOCAL, numeric, *self._names}
        if not separator or given_port != str(port) or name not in allowed:
            raise Refused(
                403,
                "the request is addressed to another host",
                hint="use the host and port that `kachery-p2p status` shows",
            )

    def _check_token(self, authorization: str | None) -> None:
        scheme, _, token = (authorization or "").partition(" ")
        given = token.strip().encode("latin-1", "replace")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._token):
            raise Refused(
                401,
                "the token is missing or wrong",
                hint="set KACHERY_DAEMON_TOKEN to the content of api-token "
                "in the daemon's configuration directory",
            )
