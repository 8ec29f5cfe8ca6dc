"""uvicorn's configuration with HttpProtocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import uvicorn
from uvicorn._types import HTTPScope

from offramp.server.http.connections import Connections
from offramp.server.http.problems import Problem
from offramp.server.http.protocol import HttpProtocol

Headers = Iterable[tuple[bytes, bytes]]


class Gatekeeper(Protocol):
    """Answers in place of the application, with a whole response that has the given headers."""

    def refuse(self, scope: HTTPScope, headers: Headers, keep_alive: bool) -> bytes | None:
        """The answer to a request before its body; None to let it pass. keep_alive: else with Connection: close."""

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        """The last answer of a connection that is refused, or has an invalid or incomplete request."""


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration for HttpProtocol. gate: called for each request before the application."""

    def __init__(self, app: Any, connections: Connections, gate: Gatekeeper, **options: Any) -> None:
        # HttpProtocol reads X-Forwarded-For itself: limits of a client hold before its first request.
        super().__init__(app, http=HttpProtocol, proxy_headers=False, **options)
        self.connections = connections
        self.gate = gate
