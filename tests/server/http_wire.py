"""A connection without a socket: what the server writes, and whether it reads, as a client would find it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

from uvicorn._types import HTTPScope
from uvicorn.server import ServerState

from offramp.server.http.connections import Connections
from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.problems import Problem, raw_response
from offramp.server.http.protocol import HttpProtocol
from offramp.server.http.proxies import TrustedProxies
from offramp.server.http.uvicorn_config import Gatekeeper, Headers, HttpConfig


class OpenGate:
    """Lets every request pass, and reports nothing."""

    def refuse(self, scope: HTTPScope, headers: Headers, keep_alive: bool) -> bytes | None:
        return None

    def reject(self, problem: Problem, address: str, headers: Headers) -> bytes:
        return raw_response(problem, headers)


class Address:
    """As much of a socket as tells where it leads to, and what has become of it. is_reset: the client has gone."""

    family = socket.AF_INET
    is_reset = False

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def getpeername(self) -> tuple[str, int]:
        return self._peer, 5

    def getsockopt(self, level: int, option: int, size_bytes: int) -> bytes:
        """The state of TCP alone: closed, or established."""
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return bytes([7 if self.is_reset else 1])

    def setsockopt(self, *options: Any) -> None:
        """Nothing to set."""

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.9", 80


class Wire(asyncio.Transport):
    """The server's end. unread_bytes: of what was written, that the client has left in the buffer."""

    def __init__(self, peer: str = "192.0.2.1") -> None:
        super().__init__({"socket": Address(peer)})
        self.written = b""
        self.unread_bytes = 0
        self.reading = True
        self.closed = self.aborted = self.ended = False

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    @property
    def answers(self) -> list[bytes]:
        """Status and body of each answer, such as `200 hello`."""
        return list(_answers(self.written))


def _answers(data: bytes) -> Iterator[bytes]:
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields.get(b"content-length", 0))
        yield head.split(b" ")[1] + b" " + data[:size]
        data = data[size:]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Echo:
    """An application that answers with the path and the body. It holds back while `open` is not set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.scopes: list[dict[str, Any]] = []
        self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body += message["body"]
            more = message["more_body"]
        await self.open.wait()
        await answer(send, scope["path"].encode() + body)


async def answer(send: Any, content: bytes, status: int = 200) -> None:
    """A whole answer with a Content-Length."""
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Site:
    """An application behind the protocol, without sockets."""

    def __init__(
        self,
        app: Any = None,
        limits: HttpLimits | None = None,
        proxies: str = "",
        gate: Gatekeeper | None = None,
    ) -> None:
        self.clock = Clock()
        self.echo = Echo()
        self.connections = Connections(limits, TrustedProxies(proxies), clock=self.clock)
        self.config = HttpConfig(
            app or self.echo, self.connections, gate or OpenGate(), lifespan="off", log_config=None
        )
        self.state = ServerState()

    def connect(self, peer: str = "192.0.2.1") -> tuple[HttpProtocol, Wire]:
        """A new client's connection."""
        protocol, wire = HttpProtocol(self.config, self.state, {}), Wire(peer)
        protocol.connection_made(wire)
        return protocol, wire

    def wait(self, seconds: float) -> None:
        """Let time pass, with a sweep each second."""
        for _ in range(round(seconds)):
            self.clock.now_s += 1
            self.connections.sweep()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - what changes here knows nothing of events
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let every task run as far as it can."""
        for _ in range(50):
            await asyncio.sleep(0)
