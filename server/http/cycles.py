"""uvicorn's cycle runs the application for a request. This makes the cycles of a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from offramp.server.http.parser import Head
from offramp.server.http.proxies import forwarded_scheme

if TYPE_CHECKING:
    from offramp.server.http.uvicorn_config import HttpConfig

uvicorn_logger = logging.getLogger("uvicorn.error")


class Flow(FlowControl):
    """uvicorn's flow control, which does not read on while unparsed bytes wait."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self) -> None:
        """Stop reading until `release`."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on."""
        self._held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, unless held."""
        if not self._held:
            super().resume_reading()


class Outlet:
    """The part of a transport that a cycle uses. close: called in the transport's place."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Cycles:
    """Makes and starts the cycles of one connection.

    close: called after an answer that is the connection's last. on_response: called after every whole answer.
    """

    def __init__(
        self,
        config: HttpConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        on_response: Callable[[], None],
    ) -> None:
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = loop
        self._on_response = on_response
        self._proxies = config.connections.proxies

    def connect(self, transport: asyncio.Transport, flow: Flow, close: Callable[[], None]) -> str:
        """The connection is open. Returns the address of its other end."""
        self._flow = flow
        self._outlet = cast(asyncio.Transport, Outlet(transport, close))
        self._server = get_local_addr(transport)
        self._client = get_remote_addr(transport)
        address = self._client[0] if self._client else ""
        self._by_proxy = self._proxies.trust(address)
        return address

    def scope(self, head: Head) -> HTTPScope:
        """The request's ASGI scope."""
        client, scheme = self._client, "http"
        if self._by_proxy and client is not None:
            client = self._proxies.client(client[0], head.headers), 0
            scheme = forwarded_scheme(head.headers) or scheme
        return {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": client,
            "scheme": scheme,
            "method": head.method,
            "root_path": "",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }

    def start(self, scope: HTTPScope, head: Head) -> RequestResponseCycle:
        """Run the application for a request; returns the request's cycle."""
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self._outlet,
            flow=self._flow,
            logger=uvicorn_logger,
            access_logger=uvicorn_logger,
            access_log=False,
            default_headers=self._state.default_headers,
            message_event=asyncio.Event(),
            # The server must ignore it in HTTP/1.0 (RFC 9110, 10.1.1).
            expect_100_continue=head.version == "1.1" and head.fields.get(b"expect", b"").lower() == b"100-continue",
            keep_alive=head.keep_alive and not self._config.connections.draining,
            on_response=self._on_response,
        )
        task = self._loop.create_task(cycle.run_asgi(self._config.loaded_app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)
        return cycle
