"""How uvicorn runs the application behind our protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn._types import HTTPScope

from server.connections import Connections
from server.http_protocol import HttpProtocol

# Refuses a request by its scope, before its body: a whole response with Connection: close, or None to let it pass.
Refuse = Callable[[HTTPScope], bytes | None]


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol.

    refuse: asked about every request that has none before it in progress on its connection.
    """

    def __init__(self, app: Any, connections: Connections, refuse: Refuse | None = None, **options: Any) -> None:
        # X-Forwarded-For is the protocol's, since limits of a client hold before there is a request.
        super().__init__(app, http=HttpProtocol, proxy_headers=False, **options)
        self.connections = connections
        self.refuse = refuse
