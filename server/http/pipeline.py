"""The requests of one connection: answered one at a time, in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Pipeline:
    """The first request starts at once, every other when it is told to, after the answer to the one before it.

    running: the one that the application works on. newest: the one that came last; perhaps not yet whole.
    """

    def __init__(self, start: Callable[[RequestResponseCycle], None]) -> None:
        self.running: RequestResponseCycle | None = None
        self.newest: RequestResponseCycle | None = None
        self._waiting: deque[RequestResponseCycle] = deque()
        self._start = start

    @property
    def is_answering(self) -> bool:
        """Whether a whole request is in progress or waits, so that nothing is due from the client."""
        return bool(self._waiting) or (self.running is not None and not self.running.more_body)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in progress and nothing waits."""
        return self.running is None and not self._waiting

    def add(self, cycle: RequestResponseCycle) -> None:
        """A request has begun."""
        self.newest = cycle
        if self.is_empty:
            self.running = cycle
            self._start(cycle)
        else:
            self._waiting.append(cycle)

    def answered(self) -> None:
        """The running request has its answer."""
        self.running = None

    def go_on(self) -> None:
        """Start the next, if one waits."""
        if self.running is None and self._waiting:
            self.running = self._waiting.popleft()
            self._start(self.running)

    def stop(self) -> None:
        """Start nothing more."""
        self._waiting.clear()

    def cut_off(self) -> bool:
        """Give up a request that will never be whole; whether it has had no part of an answer, or there is none."""
        cycle = self.newest
        if cycle is None or not cycle.more_body:
            return True
        _disconnect(cycle)
        if cycle is self.running:
            self.running = None
        elif self._waiting:
            # Others wait before it, and none behind.
            self._waiting.pop()
        return not cycle.response_started

    def disconnect(self) -> None:
        """The client has gone."""
        for cycle in (self.running, self.newest):
            if cycle is not None and not cycle.response_complete:
                _disconnect(cycle)
        self.running = None
        self._waiting.clear()


def _disconnect(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()
