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
    """Answers in the application's place: a whole response with Connection: close, and with the given headers."""

    def refuse(self, scope: HTTPScope, headers: Headers) -> bytes | None:
        """The answer to a request before its body; None to let it pass."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """The answer to a client that has sent no request, or none that is whole."""


class OpenDoor:
    """Lets every request pass, and keeps no account."""

    def refuse(self, scope: HTTPScope, headers: Headers) -> None:
        """See Doorkeeper."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """See Doorkeeper."""
        return raw_response(problem, headers)


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol.

    door: asked about every request that has none before it in progress on its connection.
    """

    def __init__(self, app: Any, connections: Connections, door: Doorkeeper | None = None, **options: Any) -> None:
        # X-Forwarded-For is the protocol's, since limits of a client hold before there is a request.
        super().__init__(app, http=HttpProtocol, proxy_headers=False, **options)
        self.connections = connections
        self.door: Doorkeeper = door or OpenDoor()
