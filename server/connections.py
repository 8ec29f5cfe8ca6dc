"""All connections of one process: how many there may be, who gives way to whom, and a look at each once a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from server.accounts import Accounts
from server.http_limits import HttpLimits
from server.problems import CLIENT_LIMIT, OVERLOADED, Problem, retry_after
from server.proxies import TrustedProxies

logger = logging.getLogger(__name__)

# Between two looks more time than this does not count: a process that was stopped or busy has read nothing meanwhile.
LONGEST_TURN_S = 2.0

# Pause between pipelined requests of several connections.
TURN_S = 0.001

# Connections closed at once to make room, so that looking for them is rarely needed.
GIVING_WAY = 32


class Connection(Protocol):
    """A client's connection, as far as others are concerned."""

    address: str

    @property
    def idle_since_s(self) -> float | None:
        """Since when it has had no request in progress; None while it has one."""

    def check(self, now_s: float) -> None:
        """End what takes too long. Called once a second."""

    def end(self) -> None:
        """Close at once, whatever is in progress, and leave."""


class Turns:
    """One pipelined request at a time, with a pause before the next.

    A hundred clients that send a thousand requests each without waiting for answers are served one by one, between the
    requests of those that wait. Without the pause the event loop would never be idle, and the engine's thread would
    wait for the interpreter's lock: a prediction beside 64 such clients took 58 ms instead of 15.
    """

    def __init__(self) -> None:
        self._due: deque[Callable[[], None]] = deque()

    def wait(self, act: Callable[[], None]) -> None:
        """Do it when it is its turn."""
        self._due.append(act)
        if len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        act = self._due[0]
        try:
            act()
        finally:
            self._due.popleft()
            if self._due:
                asyncio.get_running_loop().call_later(TURN_S, self._next)


class Connections:
    """The connections of this process, by the address of the client.

    accounts: connections of each address in all processes of the server. Default: this process alone.
    turns: for requests that came before the answers to those before them. now_s: seconds that this process has been
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
        self.turns = Turns()
        self.now_s = 0.0
        self.draining = self.closed = False
        self._accounts = accounts if self.limits.client_connections else None
        self._clock = clock
        self._seen_s = clock()
        self._by_address: dict[str, set[Connection]] = {}
        self._count = 0
        self._none_idle_at_s = self._noted_at_s = -1.0
        self._not_noted = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, connection: Connection) -> Problem | None:
        """Take a new connection in; why it cannot stay, if it cannot. It is one of ours until it leaves."""
        address = connection.address
        refusal = self._too_many_of(address) or self._too_many(address)
        self._by_address.setdefault(address, set()).add(connection)
        self._count += 1
        self._count_in_account(address, 1)
        return refusal

    def leave(self, connection: Connection) -> None:
        """Forget a connection; one that has left already may leave again."""
        siblings = self._by_address.get(connection.address, set())
        if connection in siblings:
            siblings.remove(connection)
            self._count -= 1
            self._count_in_account(connection.address, -1)
            if not siblings:
                del self._by_address[connection.address]

    def sweep(self) -> None:
        """Look at every connection. To be called once a second."""
        clock_s = self._clock()
        self.now_s += min(clock_s - self._seen_s, LONGEST_TURN_S)
        self._seen_s = clock_s
        for connection in [one for siblings in self._by_address.values() for one in siblings]:
            connection.check(self.now_s)

    def note(self, address: str, what: str) -> None:
        """Log what was wrong with a client's bytes; one line between two sweeps, since junk is easily sent."""
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
        """In all processes."""
        if self._accounts is None:
            return len(self._by_address.get(address, ()))
        with self._accounts.lock:
            account = self._accounts.find(address)
            return 0 if account is None else account.connections

    def _too_many_of(self, address: str) -> Problem | None:
        limit, siblings = self.limits.client_connections, self._by_address.get(address, set())
        if not limit or self._connections_of(address) < limit or self.proxies.trust(address) or _make_way(siblings, 1):
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
        """Close idle connections of the address that has most; an address gives way to itself or one that has fewer."""
        if self._none_idle_at_s == self.now_s:
            return False
        own = self._by_address.get(address, set())
        heaviest = max(self._by_address.values(), key=len)
        share = min(GIVING_WAY, 1 + len(heaviest) // GIVING_WAY)
        if (len(heaviest) > len(own) or heaviest is own) and _make_way(heaviest, share):
            return True
        for siblings in sorted(self._by_address.values(), key=len, reverse=True):
            if (len(siblings) > len(own) or siblings is own) and _make_way(siblings, 1):
                return True
        # Nothing is looked for again before the next sweep: looking must not cost more than refusing.
        self._none_idle_at_s = self.now_s
        return False


def _make_way(siblings: set[Connection], most: int) -> bool:
    """End up to `most` connections that have been idle longest; False where none is idle."""
    idle = [(since_s, connection) for connection in siblings if (since_s := connection.idle_since_s) is not None]
    idle.sort(key=lambda one: one[0])
    for _, connection in idle[:most]:
        connection.end()
    return bool(idle)
