"""The kernel's facts about a TCP connection, which asyncio does not show. Linux only."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

logger = logging.getLogger(__name__)

# struct tcp_info in linux/tcp.h: the state is the first byte, tcpi_bytes_acked a 64-bit number at byte 120.
CLOSED_STATE = 7
ACKNOWLEDGED_AT, ACKNOWLEDGED = 120, struct.Struct("=Q")

# Maximum number of connections that wait to be accepted.
BACKLOG = 2048

# Connections accepted in one turn of the event loop: uvloop accepts one per listening socket, so the server listens on
# as many copies of its socket.
ACCEPTS = 32

# Unsent bytes of a connection in the kernel: enough for a fast network between two turns of the event loop.
UNSENT_BYTES = 128 * 1024


def is_reset(transport: asyncio.Transport) -> bool:
    """Whether the client has sent a reset. asyncio does not report it while it neither reads nor writes."""
    return _tcp_info(transport, 1) == bytes([CLOSED_STATE])


def acknowledged_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the client has acknowledged since the connection began; 0 if unknown."""
    info = _tcp_info(transport, ACKNOWLEDGED_AT + ACKNOWLEDGED.size)
    return ACKNOWLEDGED.unpack_from(info, ACKNOWLEDGED_AT)[0] if len(info) > ACKNOWLEDGED_AT else 0


def limit_unsent(listener: socket.socket) -> None:
    """Limit the kernel's memory for clients that do not read: by default up to 4 MB for each connection.

    Accepted connections inherit the limit.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def reset(transport: asyncio.Transport) -> None:
    """Close at once, and drop the unread bytes, which the kernel would keep for minutes."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _tcp_info(transport: asyncio.Transport, size_bytes: int) -> bytes:
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return b""
    try:
        info: bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size_bytes)
    except OSError:
        # The descriptor has been closed.
        return b""
    return info


class Unread:
    """Detects a client that does not read its answers. limit_s: to read the bytes that wait at some moment."""

    __slots__ = ("_goal_bytes", "_limit_s", "_since_s")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._goal_bytes = self._since_s = 0.0

    def is_overdue(self, transport: asyncio.Transport, now_s: float) -> bool:
        """Whether the client is too slow. Called about once a second."""
        waiting_bytes = transport.get_write_buffer_size()
        if not waiting_bytes:
            self._goal_bytes = 0
            return False
        read_bytes = acknowledged_bytes(transport)
        if not self._goal_bytes or read_bytes >= self._goal_bytes:
            self._goal_bytes, self._since_s = read_bytes + waiting_bytes, now_s
        return now_s - self._since_s > self._limit_s


async def accept_waiting(listener: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
    """Accept the connections that wait in a listening socket: its end would reset them."""
    listener.setblocking(False)
    for _ in range(BACKLOG):
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        await open_accepted(connection, make_protocol)


async def open_accepted(connection: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
    """Give an accepted connection to a new protocol."""
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().connect_accepted_socket(make_protocol, connection)
    except OSError as error:
        logger.debug("a connection broke before its first byte: %s", error)
        connection.close()
