"""How uvicorn runs the application behind our protocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import uvicorn
from uvicorn._types import HTTPScope

from server.connections import Connections
from server.http_protocol import HttpProtocol
from server.problems import Problem, raw_response

Headers = Iterable[tuple[bytes, bytes]]


class Doorkeeper(Protocol):
    """Answers in place of the application: with a whole response that has Connection: close and the given headers."""

    def refuse(self, scope: HTTPScope, headers: Headers) -> bytes | None:
        """The answer to a request before its body; None to let it pass."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """The answer to a connection that is refused, or to an invalid or incomplete request."""


class OpenDoor:
    """Lets every request pass, and reports nothing."""

    def refuse(self, scope: HTTPScope, headers: Headers) -> None:
        """See Doorkeeper."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """See Doorkeeper."""
        return raw_response(problem, headers)


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol.

    door: asked about each request that does not wait for another on its connection.
    """

    def __init__(self, app: Any, connections: Connections, door: Doorkeeper | None = None, **options: Any) -> None:
        # X-Forwarded-For is the protocol's, since limits of a client hold before there is a request.
        super().__init__(app, http=HttpProtocol, proxy_headers=False, **options)
        self.connections = connections
        self.door: Doorkeeper = door or OpenDoor()
