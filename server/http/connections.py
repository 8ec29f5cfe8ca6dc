"""All connections of one process: their number, which of them end for new ones, and a check of each every second.

At the limit, a new connection replaces others: those of the address with most connections that have waited longest for
their client. So no address can shut others out. A connection with a whole request in progress is never closed for
another.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.problems import CLIENT_LIMIT, OVERLOADED, Problem, retry_after
from offramp.server.http.proxies import TrustedProxies
from offramp.server.request.accounts import Accounts

logger = logging.getLogger(__name__)

# Longest time that counts between two sweeps: a process that was stopped or busy has read nothing meanwhile.
LONGEST_SWEEP_S = 2.0

# Pause between pipelined requests of several connections.
PIPELINE_PAUSE_S = 0.001

# Connections closed together to make room: a share of an address's connections, and the most. Their descriptors are
# free a moment later; new connections use the reserve meanwhile (http_limits.RESERVED_DESCRIPTORS).
CLOSED_SHARE, MOST_CLOSED = 1 / 32, 64


class Connection(Protocol):
    """A client's connection, as `Connections` sees it."""

    address: str

    @property
    def idle_since_s(self) -> float | None:
        """Start of the time without a request in progress; None while there is one."""

    @property
    def waits_since_s(self) -> float | None:
        """Start of the wait for its client, idle or not; None while a whole request is in progress."""

    def check(self, now_s: float) -> None:
        """End the connection if its client is too slow. Called once a second."""

    def end(self) -> None:
        """Close at once, with a request in progress too, and leave."""


class PipelineQueue:
    """Starts pipelined requests of all connections one at a time, with a pause before the next.

    So clients that send thousands of requests without waiting for answers leave room for those that wait. Without the
    pause the event loop would never be idle, and the engine's thread would wait for the interpreter's lock: a
    prediction beside 64 such clients took 58 ms instead of 15.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def put(self, start: Callable[[], None]) -> None:
        """Call `start` after those that were put in before."""
        self._waiting.append(start)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._start_next)

    def _start_next(self) -> None:
        start = self._waiting[0]
        try:
            start()
        finally:
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_later(PIPELINE_PAUSE_S, self._start_next)


class Connections:
    """The connections of this process, by the address of the client.

    accounts: connections of each address in all processes of the server. Default: this process alone.
    pipelined: requests that came before the answers to those before them. now_s: seconds that this process has been
    serving, as of the last sweep. draining: whether each connection ends with its next answer. closed: whether the
    server accepts no more.
    """

    def __init__(
        self,
        limits: HttpLimits | None = None,
        proxies: TrustedProxies | None = None,
        accounts: Accounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or HttpLimits()
        self.proxies = proxies or TrustedProxies()
        self.pipelined = PipelineQueue()
        self.now_s = 0.0
        self.draining = self.closed = False
        self._accounts = accounts if self.limits.client_connections else None
        self._clock = clock
        self._seen_s = clock()
        self._by_address: dict[str, set[Connection]] = {}
        self._count = self._unparsed_bytes = 0
        self._noted_at_s = -1.0
        self._not_noted = 0
        # Since the last sweep, an address with this many connections could close none.
        self._no_room_from = math.inf

    def __len__(self) -> int:
        return self._count

    def enter(self, connection: Connection) -> Problem | None:
        """Add a new connection; returns the problem if it cannot stay. It counts until it leaves."""
        address = connection.address
        refusal = self._too_many_of(address) or self._too_many(address)
        self._by_address.setdefault(address, set()).add(connection)
        self._count += 1
        self._count_in_account(address, 1)
        return refusal

    def leave(self, connection: Connection) -> None:
        """Remove a connection; a second call does nothing."""
        siblings = self._by_address.get(connection.address, set())
        if connection in siblings:
            siblings.remove(connection)
            self._count -= 1
            self._count_in_account(connection.address, -1)
            if not siblings:
                del self._by_address[connection.address]

    def count_unparsed(self, num_bytes: int) -> bool:
        """Count unparsed bytes of a connection; a negative number frees them. Returns False if there is no room."""
        if self._unparsed_bytes + num_bytes > self.limits.unparsed_bytes:
            return False
        self._unparsed_bytes += num_bytes
        return True

    def sweep(self) -> None:
        """Check every connection. Called once a second."""
        clock_s = self._clock()
        self.now_s += min(clock_s - self._seen_s, LONGEST_SWEEP_S)
        self._seen_s = clock_s
        self._no_room_from = math.inf
        for connection in list(chain.from_iterable(self._by_address.values())):
            connection.check(self.now_s)

    def note(self, address: str, what: str) -> None:
        """Log an error in a client's bytes, at most one line between two sweeps."""
        if self._noted_at_s == self.now_s:
            self._not_noted += 1
            return
        more = f" ({self._not_noted} like it before were not logged)" if self._not_noted else ""
        logger.warning("%s: %s%s", address or "a client", what, more)
        self._noted_at_s, self._not_noted = self.now_s, 0

    def _count_in_account(self, address: str, change: int) -> None:
        if self._accounts is not None:
            with self._accounts.lock:
                self._accounts.open(address).add_connection(change)

    def _connections_of(self, address: str) -> int:
        """Connections of an address in all processes."""
        if self._accounts is None:
            return len(self._by_address.get(address, ()))
        with self._accounts.lock:
            account = self._accounts.find(address)
            return 0 if account is None else account.connections

    def _too_many_of(self, address: str) -> Problem | None:
        limit, siblings = self.limits.client_connections, self._by_address.get(address, set())
        if not limit or self._connections_of(address) < limit or self.proxies.trust(address):
            return None
        if _close_waiting(siblings, 1, idle_only=True):
            return None
        detail = f"you have {limit} open connections, which is the limit: use one of them, or close some"
        return Problem(CLIENT_LIMIT, detail, retry_after(1), limit="max_connections", limit_connections=limit)

    def _too_many(self, address: str) -> Problem | None:
        limit = self.limits.connections
        if self._count < limit or self._make_room_for(address):
            return None
        detail = f"the server has {limit} open connections, which is the limit, and all are in use: try again later"
        return Problem(OVERLOADED, detail, retry_after(1))

    def _make_room_for(self, address: str) -> bool:
        """Close connections of the address with most; returns False if none can be closed.

        An address loses connections to itself, or to an address with fewer.
        """
        own = self._by_address.get(address, set())
        # Another search before the next sweep would cost more than a refusal.
        if len(own) >= self._no_room_from:
            return False
        for siblings in self._largest_first():
            if len(siblings) > len(own) or siblings is own:
                share = min(MOST_CLOSED, 1 + int(CLOSED_SHARE * len(siblings)))
                # Connections that have been refused are open for a while, above the limit.
                _close_waiting(siblings, max(share, 1 + self._count - self.limits.connections))
                if self._count < self.limits.connections:
                    return True
        self._no_room_from = len(own)
        return False

    def _largest_first(self) -> Iterator[set[Connection]]:
        # The first is usually enough, and sorting costs more.
        yield max(self._by_address.values(), key=len)
        yield from sorted(self._by_address.values(), key=len, reverse=True)


def _close_waiting(siblings: set[Connection], most: int, idle_only: bool = False) -> bool:
    """Close up to `most` connections with the longest waits, idle ones first; returns False if none waits."""

    def waited(connection: Connection) -> tuple[bool, float]:
        return connection.idle_since_s is None, connection.waits_since_s or 0.0

    waiting = [
        connection
        for connection in siblings
        if (connection.idle_since_s if idle_only else connection.waits_since_s) is not None
    ]
    for connection in heapq.nsmallest(most, waiting, key=waited):
        connection.end()
    return bool(waiting)
