"""Answers requests while no frontend runs. Without it they would wait until one has started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket

logger = logging.getLogger(__name__)

# A client that asks again at once must not take the processor from the frontends that start.
PAUSE_S = 0.1

# Time for the head of a request to arrive, and for the client to read the answer.
TIMEOUT_S = 2.0

MAX_CONNECTIONS = 1000


class StandIn:
    """Accepts from the frontends' listening socket while it is active, and answers one request a connection."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._active = False
        self._answering: set[asyncio.Task[None]] = set()

    def set_active(self, active: bool) -> None:
        """Begin to accept, or leave connections to the frontends."""
        if active == self._active:
            return
        self._active = active
        loop = asyncio.get_running_loop()
        if active:
            logger.warning("no frontend runs: requests are answered with 503 until one has started")
            self._listener.setblocking(False)
            loop.add_reader(self._listener, self._accept)
        else:
            loop.remove_reader(self._listener)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        # The supervisor needs descriptors to start processes.
        if len(self._answering) >= MAX_CONNECTIONS:
            connection.close()
            return
        answering = asyncio.get_running_loop().create_task(answer(connection))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)


async def answer(connection: socket.socket) -> None:
    """Answer one request, and close the connection."""
    reader, writer = await asyncio.open_connection(sock=connection)
    with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(PAUSE_S)
            writer.write(response(head))
            writer.write_eof()
            # The client loses the answer if the connection is closed before its request is read.
            while await reader.read(2**16):
                pass
    writer.close()


def response(head: bytes) -> bytes:
    """A whole HTTP/1.1 response: 200 for /livez, since the supervisor lives; 503 for everything else.

    `problems.raw_response` would load the web framework, which the supervisor does without.
    """
    path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1") if head.count(b" ") > 1 else ""
    if path == "/livez":
        status, media_type, wait = "200 OK", "application/json", []
        content: dict[str, str | int] = {"status": "alive"}
    else:
        status, media_type, wait = "503 Service Unavailable", "application/problem+json", ["retry-after: 5"]
        content = {
            "type": "urn:offramp:problem:not-ready",
            "title": "The server is not ready",
            "status": 503,
            "detail": "the processes for HTTP have died and start again; try again, or another replica",
            "instance": path,
            "request_id": secrets.token_hex(16),
        }
    body = json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status}", f"content-type: {media_type}", f"content-length: {len(body)}"]
    lines += [*wait, "connection: close", "", ""]
    return "\r\n".join(lines).encode() + (b"" if head.startswith(b"HEAD ") else body)
