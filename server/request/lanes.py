"""Threads for work beside the event loop. Clients take turns, and the work of an abandoned request does not start."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offramp.server.engine.fair_queue import FairQueue

# Weight of the newest duration in the mean that predicts waits.
NEWEST = 0.1


@dataclass(eq=False)
class Work:
    """One call for the threads of a lane.

    run: returns the result, or PASSED_ON. future: of the event loop; work whose future is done is dropped.
    memory_bytes: upper estimate of the memory of the call.
    """

    client: str
    run: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    memory_bytes: int = 0

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Set the future; on the event loop's thread."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


# The result of a call that has put its work into another lane.
PASSED_ON = object()


class Lane:
    """A fair queue of work, its threads, and their shared budget of memory.

    memory_bytes: of all calls at the same time; a call that needs more runs alone. niceness: of the threads; a higher
    one lets other threads run first. after_each: called on the thread after each call, when its result is freed.
    first_mean_s: mean duration of a call, before the first has ended.
    Threads are daemons: the process can end while they run.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        memory_bytes: int,
        niceness: int = 0,
        after_each: Callable[[], None] | None = None,
        first_mean_s: float = 0.0,
    ) -> None:
        self.closed = False
        self._after_each = after_each
        self._memory_bytes = memory_bytes
        self._niceness = niceness
        self._queue: FairQueue[Work] = FairQueue()
        self._num_threads = threads
        self._mean_s = first_mean_s
        self._running = 0
        self._reserved_bytes = 0
        self._changed = threading.Condition()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def put(self, work: Work) -> None:
        """Queue one call; from any thread."""
        with self._changed:
            self._queue.append(work.client, work)
            self._changed.notify()

    def wait_s(self, client: str) -> float:
        """Predicted wait of a new call of this client."""
        return self._mean_s * (self._queue.ahead(client) + self._running) / self._num_threads

    def close(self) -> None:
        """Start no more calls. Does not wait for running calls."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        if self._niceness:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while (work := self._next()) is not None:
            start_s = time.monotonic()
            result, error = _call(work)
            _empty_frames(error)
            self._finish(work, time.monotonic() - start_s)
            if result is not PASSED_ON:
                _hand_over(work, result, error)
            # A waiting thread must not keep a picture or the frames of an error alive.
            del work, result, error
            if self._after_each is not None:
                self._after_each()

    def _next(self) -> Work | None:
        """The next call whose request waits, with its memory reserved; None if the lane is closed."""
        with self._changed:
            while True:
                while not self.closed and not self._queue:
                    self._changed.wait()
                if self.closed:
                    return None
                work = self._queue.popleft()
                while not self.closed and not work.future.done() and not self._has_room(work):
                    self._changed.wait()
                if not self.closed and not work.future.done():
                    self._running += 1
                    self._reserved_bytes += work.memory_bytes
                    return work

    def _has_room(self, work: Work) -> bool:
        return not self._running or self._reserved_bytes + work.memory_bytes <= self._memory_bytes

    def _finish(self, work: Work, duration_s: float) -> None:
        with self._changed:
            self._running -= 1
            self._reserved_bytes -= work.memory_bytes
            self._mean_s += NEWEST * (duration_s - self._mean_s)
            self._changed.notify_all()


def _call(work: Work) -> tuple[Any, BaseException | None]:
    try:
        return work.run(), None
    except Exception as error:  # noqa: BLE001 - the future delivers it, as in concurrent.futures
        return None, error


def _empty_frames(error: BaseException | None) -> None:
    """Clear the local variables in the traceback: they hold pictures, bodies, and the future that holds the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _hand_over(work: Work, result: Any, error: BaseException | None) -> None:
    if not work.loop.is_closed():
        work.loop.call_soon_threadsafe(work.settle, result, error)
