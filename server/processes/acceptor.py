"""Accepts connections from a listening socket that several processes share, so that each gets as many.

An event loop's own server accepts all waiting connections when it wakes up. When a client opens a pool of connections,
one process would get them all, and keep them as long as they live. Sockets of their own (SO_REUSEPORT) are no cure: the
kernel spreads by a hash, and resets what waits for a process that dies. So a process accepts one connection at a time,
and first waits a moment for processes that have fewer.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Callable, Sized

from offramp.server.http.tcp import open_accepted

logger = logging.getLogger(__name__)

# How long a process leaves a new connection to processes that have fewer. They may be busy or dead.
COURTESY_S = 0.001

# After an error of the system, such as too many open files: a new attempt at once would fail too.
PAUSE_S = 1.0


class Acceptor:
    """Gives each connection to a new protocol, until closed; it does not close the socket.

    connections: those that are open in this process. memory_fd: an anonymous file in which each of `num_processes`
    publishes how many it has. own: the number of this process. courtesy_s, pause_s: see COURTESY_S and PAUSE_S.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        memory_fd: int,
        num_processes: int,
        own: int,
        *,
        courtesy_s: float = COURTESY_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        os.ftruncate(memory_fd, 4 * num_processes)
        self._counts = memoryview(mmap.mmap(memory_fd, 4 * num_processes)).cast("I")
        self._own = own
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._courtesy_s = courtesy_s
        self._pause_s = pause_s
        self._opening: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._keep_accepting())

    async def close(self) -> None:
        """Accept nothing more. To be called before the socket is closed."""
        self._accepting.cancel()
        await asyncio.wait([self._accepting])

    def publish_count(self) -> None:
        """Write the number of connections for the other processes. To be called often, for those that were closed."""
        self._counts[self._own] = len(self._connections) + len(self._opening)

    async def _keep_accepting(self) -> None:
        while True:
            await _until_readable(self._listener)
            self.publish_count()
            if self._counts[self._own] > min(self._counts):
                await asyncio.sleep(self._courtesy_s)
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                # Another process was quicker, or the client is gone already.
                continue
            except OSError as error:
                logger.error("no connections are accepted for %g s: %s", self._pause_s, error)
                await asyncio.sleep(self._pause_s)
                continue
            opening = asyncio.create_task(open_accepted(connection, self._make_protocol))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
            self.publish_count()


async def _until_readable(listener: socket.socket) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, readable.set)
    try:
        await readable.wait()
    finally:
        # While this process waits for others, the event loop must not look at the socket again and again.
        loop.remove_reader(listener)
