"""Connections from a listening socket that several processes share, so that each gets its part.

An event loop's own server accepts all that wait as soon as it wakes up: of connections that come at once, which is how
clients open their pools, the process that wakes first would get all, and keep them for as long as they live. Here a
process takes one at a time, and lets those go first who have fewer.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Callable, Sized

import numpy as np

from offramp.server.http.tcp import open_accepted

logger = logging.getLogger(__name__)

# How long a process with more connections than another leaves a new one to it. The other may be busy, or dead.
COURTESY_S = 0.001

# After an error of the system, such as too many open files, which a new attempt at once would meet again.
PAUSE_S = 1.0


class OpenConnections:
    """How many connections each of several processes has, where all of them see it. memory_fd: an anonymous file."""

    def __init__(self, memory_fd: int, num_processes: int, own: int) -> None:
        size_bytes = 4 * num_processes
        os.ftruncate(memory_fd, size_bytes)
        self._counts = np.frombuffer(mmap.mmap(memory_fd, size_bytes), np.uint32)
        self._own = own

    def tell(self, count: int) -> None:
        """So many are ours."""
        self._counts[self._own] = count

    @property
    def more_than_others(self) -> bool:
        """Whether some process has fewer than this."""
        return bool(self._counts[self._own] > self._counts.min())


class Acceptor:
    """Gives each connection to a protocol of its own, until closed; the socket stays its owner's.

    connections: those that the protocols have open. courtesy_s, pause_s: see COURTESY_S and PAUSE_S.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        shares: OpenConnections,
        *,
        courtesy_s: float = COURTESY_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._shares = shares
        self._courtesy_s = courtesy_s
        self._pause_s = pause_s
        self._later: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Take nothing more."""
        self._pause()
        if self._later is not None:
            self._later.cancel()

    def tell(self) -> None:
        """Let the others know how many connections there are here; for when some have been closed."""
        self._shares.tell(len(self._connections) + len(self._opening))

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._consider)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener)

    def _consider(self) -> None:
        self.tell()
        if not self._shares.more_than_others:
            self._accept()
            return
        self._pause()
        self._later = self._loop.call_later(self._courtesy_s, self._take_what_is_left)

    def _take_what_is_left(self) -> None:
        self._resume()
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # Another process was quicker, or the client is gone already.
            return
        except OSError as error:
            logger.error("no connections are accepted for %g s: %s", self._pause_s, error)
            self._pause()
            self._later = self._loop.call_later(self._pause_s, self._resume)
            return
        opening = self._loop.create_task(open_accepted(connection, self._make_protocol))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        self.tell()
