"""uvicorn's configuration for our protocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import uvicorn
from uvicorn._types import HTTPScope

from offramp.server.http.connections import Connections
from offramp.server.http.problems import Problem, raw_response
from offramp.server.http.protocol import HttpProtocol

Headers = Iterable[tuple[bytes, bytes]]


class Gatekeeper(Protocol):
    """Answers in place of the application: with a whole response that has Connection: close and the given headers."""

    def refuse(self, scope: HTTPScope, headers: Headers) -> bytes | None:
        """The answer to a request before its body; None to let it pass."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """The answer to a connection that is refused, or to an invalid or incomplete request."""


class OpenGate:
    """Lets every request pass, and reports nothing."""

    def refuse(self, scope: HTTPScope, headers: Headers) -> None:
        """See Gatekeeper."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """See Gatekeeper."""
        return raw_response(problem, headers)


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol.

    gate: asked about each request that does not wait for another on its connection.
    """

    def __init__(self, app: Any, connections: Connections, gate: Gatekeeper | None = None, **options: Any) -> None:
        # X-Forwarded-For is the protocol's, since limits of a client hold before there is a request.
        super().__init__(app, http=HttpProtocol, proxy_headers=False, **options)
        self.connections = connections
        self.gate: Gatekeeper = gate or OpenGate()
