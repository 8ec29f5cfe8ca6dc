"""The client of open loops, and of loads that send each request once: bare sockets, 0.15 ms of CPU a new connection.

An asyncio client takes thirty times the CPU where each refusal ends its connection.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httptools

from benchmarks.harness.open_loop import BROKEN, MOST_FOR_SELECT, REFUSED, SILENT, Load, LoadResult, Sent
from benchmarks.harness.requests import read_requests

TICK_S = 0.05
AFTER_REFUSAL_S = 0.02
# Below the five seconds after which uvicorn closes an idle connection.
KEEP_ALIVE_S = 3.0
# The last bytes of a request that is sent slowly go one a tick.
LAST_BYTES = 1000


def send(load: Load, requests: Sequence[bytes]) -> LoadResult:
    """Run the load in this process."""
    return _run(load, ((at_s, number, requests[number]) for at_s, number in load.planned(len(requests))))


def send_each(load: Load, requests: Iterable[tuple[int, bytes]]) -> LoadResult:
    """Send each numbered request once, as fast as the connections allow, from this process."""
    return _run(load, ((0.0, number, request) for number, request in requests))


def _run(load: Load, planned: Iterator[tuple[float, int, bytes]]) -> LoadResult:
    before_s, client = time.process_time(), _Client(load, planned)
    client.run()
    return LoadResult(load, tuple(client.sent), client.start_s, time.process_time() - before_s)


class _Connection:
    """A socket, the request that it carries, what is left to send of it, and the answer as far as it is parsed."""

    def __init__(self, load: Load) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if load.source:
            self.socket.bind((load.source, 0))
        self.socket.connect_ex((load.host, load.port))
        # Due, number, sent.
        self.carries: tuple[float, int, float] | None = None
        self.rest = memoryview(b"")
        self.watched = 0
        self.idle_since_s = 0.0
        self.parser = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Expect a new answer."""
        self.status, self.body, self.complete, self.keep = 0, b"", False, False

    # Called by the parser.

    def on_body(self, data: bytes) -> None:
        """Part of a body."""
        if not self.complete:
            self.body += data

    def on_message_complete(self) -> None:
        """The end of an answer. One of status 1xx comes before the answer (RFC 9110, 15.2)."""
        if not self.complete and self.parser.get_status_code() >= 200:
            self.status, self.complete = self.parser.get_status_code(), True
            self.keep = self.parser.should_keep_alive()


class _Client:
    """All state of a run; `run` is its loop. planned: seconds from the start, number and bytes of each request."""

    def __init__(self, load: Load, planned: Iterator[tuple[float, int, bytes]]) -> None:
        self.sent: list[Sent] = []
        self.start_s = time.monotonic()
        self._load = load
        self._planned = planned
        self._next = next(planned, None)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        precise = load.connections <= MOST_FOR_SELECT
        self._selector = selectors.SelectSelector() if precise else selectors.DefaultSelector()
        self._pause_until_s = 0.0

    def run(self) -> None:
        """Send the planned requests until the time is up, and wait for the answers."""
        end_s, tick_s = self.start_s + self._load.length_s, self.start_s
        while True:
            now_s = time.monotonic()
            if self._load.rate is None and now_s >= end_s:
                self._next = None
            while self._next and (wait_s := self._wait_s(self._next[0])) <= 0.0:
                self._begin(*self._next)
                self._next = next(self._planned, None)
            if not self._next and not self._busy:
                break
            for key, events in self._selector.select(wait_s if self._next else TICK_S):
                if events & selectors.EVENT_WRITE:
                    self._write(key.data)
                elif key.data.watched:
                    self._read(key.data)
            if time.monotonic() >= tick_s:
                tick_s = time.monotonic() + TICK_S
                self._tick()
        for connection in self._idle:
            connection.socket.close()
        self._selector.close()

    def _wait_s(self, at_s: float) -> float:
        """Seconds until the next request may be sent; at most TICK_S."""
        if len(self._busy) >= self._load.connections:
            return TICK_S
        return min(TICK_S, max(self.start_s + at_s, self._pause_until_s) - time.monotonic())

    def _begin(self, at_s: float, number: int, request: bytes) -> None:
        now_s = time.monotonic() - self.start_s
        while self._idle and now_s - self._idle[-1].idle_since_s > KEEP_ALIVE_S:
            self._close(self._idle.pop())
        connection = self._idle.pop() if self._idle else _Connection(self._load)
        connection.begin()
        connection.carries = (now_s if self._load.rate is None else at_s, number, now_s)
        connection.rest = memoryview(request)
        self._busy.add(connection)
        self._write(connection, len(request) - LAST_BYTES if self._load.way == "drip" else None)

    def _write(self, connection: _Connection, most: int | None = None) -> None:
        """Send as much as the system takes, then wait for the answer, unless the client is mute."""
        try:
            connection.rest = connection.rest[connection.socket.send(connection.rest[:most]) :]
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            return self._end(connection, 0, REFUSED)
        except OSError:
            # The server has closed; its answer may be there.
            connection.rest = memoryview(b"")
        listens = 0 if self._load.way == "mute" else selectors.EVENT_READ
        writes = selectors.EVENT_WRITE if connection.rest and self._load.way != "drip" else 0
        if self._load.way == "close" and not connection.rest:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        self._watch(connection, listens | writes)

    def _read(self, connection: _Connection) -> None:
        why, data = BROKEN, b""
        try:
            data = connection.socket.recv(2**16)
            connection.parser.feed_data(data)
        except BlockingIOError:
            return
        except httptools.HttpParserError:
            # No HTTP, or bytes after the last answer of a connection.
            data = data if self._load.way == "close" else b""
        except OSError as error:
            why = REFUSED if isinstance(error, ConnectionRefusedError) else BROKEN
        if connection.carries is None:
            self._idle.remove(connection)
            self._close(connection)
        elif connection.complete and (not data or self._load.way != "close"):
            self._end(connection, connection.status, connection.body.decode("latin-1"), connection.keep and bool(data))
        elif not data:
            self._end(connection, 0, why)

    def _tick(self) -> None:
        """Give up requests that have waited too long; send the next byte of each slow one."""
        now_s = time.monotonic() - self.start_s
        for connection in tuple(self._busy):
            assert connection.carries is not None
            if now_s - connection.carries[2] > self._load.timeout_s:
                self._end(connection, 0, SILENT)
            elif self._load.way == "drip":
                self._write(connection, 1)

    def _end(self, connection: _Connection, status: int, body: str, keep: bool = False) -> None:
        assert connection.carries is not None
        (due_s, number, sent_s), connection.carries = connection.carries, None
        self._busy.discard(connection)
        now_s = connection.idle_since_s = time.monotonic() - self.start_s
        self.sent.append(Sent(number, due_s, sent_s, now_s, status, body if self._load.bodies or not status else ""))
        if status == 0 and self._load.rate is None and body == REFUSED:
            self._pause_until_s = time.monotonic() + AFTER_REFUSAL_S
        if keep and not connection.rest:
            self._idle.append(connection)
        else:
            self._close(connection)

    def _watch(self, connection: _Connection, events: int) -> None:
        if events == connection.watched:
            return
        if not events:
            self._selector.unregister(connection.socket)
        elif connection.watched:
            self._selector.modify(connection.socket, events, connection)
        else:
            self._selector.register(connection.socket, events, connection)
        connection.watched = events

    def _close(self, connection: _Connection) -> None:
        self._watch(connection, 0)
        connection.socket.close()


def main() -> None:
    """Run a load: its job as JSON from stdin; a line at its start, and the result as JSON at its end, to stdout."""
    job: dict[str, Any] = json.load(sys.stdin)
    load, requests = Load(**job["load"]), read_requests(Path(job["folder"]))
    os.nice(load.niceness)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A collection over all records would stop the clock for milliseconds, and the run is short.
    gc.disable()
    print("started", flush=True)
    result = send(load, requests)
    rows = [list(vars(sent).values()) for sent in result.sent]
    json.dump({"sent": rows, "start_s": result.start_s, "load_cpu_s": result.load_cpu_s}, sys.stdout)


if __name__ == "__main__":
    main()
