"""A client on bare sockets: an open or a closed loop of whole requests, some 0.15 ms of CPU each with a new connection.

    python -m benchmarks.hostile.client LOAD_AS_JSON FOLDER_OF_REQUESTS

The open loop of `benchmarks.peers` costs thirty times as much where each refusal ends its connection: at five times the
capacity it would take the server's cores. Latency counts from the scheduled time.
"""

from __future__ import annotations

import gc
import json
import random
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from threading import Event

from benchmarks.errors import BenchmarkError
from benchmarks.peers.requests import read_requests
from benchmarks.plan import poisson_arrivals

ROOT = Path(__file__).resolve().parents[2]
# Why a request has no answer: the body of its record, whose status is 0.
REFUSED, BROKEN, SILENT = "no connection", "connection ended", "no answer in time"
TICK_S = 0.05
AFTER_REFUSAL_S = 0.02
# The last bytes of a request that is sent slowly go one a tick.
LAST_BYTES = 1000
CONTENT_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
INTERIM = re.compile(rb"\AHTTP/1\.1 1\d\d.*?\r\n\r\n", re.DOTALL)
CLOSE = re.compile(rb"(?i)\r\nconnection: *close")


@dataclass(frozen=True)
class Load:
    """One run against 127.0.0.1.

    connections: most at a time. A request of an open loop that finds none free waits, and its latency counts.
    rate: requests a second, Poisson arrivals, or evenly spaced; None is a closed loop. source: the client's address.
    way: "ask" for one answer after another on a kept connection; "close": the sending half is closed after each request
    and the answers are read to the end; "mute": nothing is read; "drip": the last bytes go one a TICK_S.
    bodies: keep those of the answers.
    """

    port: int
    connections: int
    duration_s: float
    rate: float | None = None
    evenly: bool = False
    source: str = "127.0.0.1"
    way: str = "ask"
    timeout_s: float = 10.0
    bodies: bool = False
    seed: int = 0

    def planned(self, num_requests: int) -> Iterator[tuple[float, int]]:
        """When to send each request, in seconds from the start, and its number; in a closed loop at once."""
        if self.rate is None:
            return ((0.0, number) for number in cycle(range(num_requests)))
        if self.evenly:
            count = round(self.rate * self.duration_s)
            return ((turn / self.rate, turn % num_requests) for turn in range(count))
        draw = random.Random(self.seed)
        return (
            (at_s, draw.randrange(num_requests)) for at_s in poisson_arrivals(self.rate, self.duration_s, self.seed)
        )


@dataclass(frozen=True)
class Sent:
    """One request and its fate; seconds by the system's monotonic clock.

    status 0: no answer came, and body says why. Otherwise body is the answer's, where the load keeps bodies.
    """

    number: int
    due_s: float
    sent_s: float
    done_s: float
    status: int
    body: str = ""


@dataclass(frozen=True)
class Seen:
    """Requests in the order of their ends. load_cpu_s: the client's own."""

    load: Load
    sent: tuple[Sent, ...] = field(repr=False)
    start_s: float
    load_cpu_s: float

    def statuses(self) -> dict[str, int]:
        """How often each status came; requests without an answer are counted by the reason."""
        return dict(sorted(Counter(str(one.status) if one.status else one.body for one in self.sent).items()))


def run_load(load: Load, folder: Path, started: Event | None = None) -> Seen:
    """Send the requests in `folder` from a new process. started: set when it begins.

    Raises BenchmarkError with its last words if it fails.
    """
    command = [sys.executable, "-m", "benchmarks.hostile.client", json.dumps(asdict(load)), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if started:
            started.set()
        rest = process.stdout.read()
    if process.returncode:
        raise BenchmarkError(f"the client failed with {process.returncode}: {(first + rest)[-2000:]}")
    result = json.loads(rest)
    return Seen(load, tuple(Sent(*each) for each in result["sent"]), result["start_s"], result["load_cpu_s"])


def send(load: Load, requests: Sequence[bytes]) -> Seen:
    """Run the load in this process."""
    return _seen(load, ((at_s, number, requests[number]) for at_s, number in load.planned(len(requests))))


def send_each(load: Load, requests: Iterable[tuple[int, bytes]]) -> Seen:
    """Each numbered request once, as fast as the connections let it."""
    return _seen(load, ((0.0, number, request) for number, request in requests))


def _seen(load: Load, planned: Iterator[tuple[float, int, bytes]]) -> Seen:
    before_s, client = time.process_time(), _Client(load, planned)
    client.run()
    return Seen(load, tuple(client.sent), client.start_s, time.process_time() - before_s)


class _Connection:
    """A socket, the request that it carries, and what is left to send of it."""

    def __init__(self, load: Load) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((load.source, 0))
        self.socket.connect_ex(("127.0.0.1", load.port))
        self.carries: tuple[float, int, float] | None = None
        self.rest = memoryview(b"")
        self.answer = b""
        self.watched = 0


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
        self._selector = selectors.DefaultSelector()
        self._pause_until_s = 0.0

    def run(self) -> None:
        """Send what is planned until the time is up, and wait for the answers."""
        end_s, tick_s = self.start_s + self._load.duration_s, self.start_s
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
        """Until the next request may be sent, as far as that is known now."""
        if len(self._busy) >= self._load.connections:
            return TICK_S
        return min(TICK_S, max(self.start_s + at_s, self._pause_until_s) - time.monotonic())

    def _begin(self, at_s: float, number: int, request: bytes) -> None:
        now_s = time.monotonic()
        connection = self._idle.pop() if self._idle else _Connection(self._load)
        due_s = now_s if self._load.rate is None else self.start_s + at_s
        connection.carries, connection.answer, connection.rest = (due_s, number, now_s), b"", memoryview(request)
        self._busy.add(connection)
        self._write(connection, len(request) - LAST_BYTES if self._load.way == "drip" else None)

    def _write(self, connection: _Connection, most: int | None = None) -> None:
        """Send what the system takes, then wait for the answer. A client that is mute does not."""
        try:
            connection.rest = connection.rest[connection.socket.send(connection.rest[:most]) :]
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            return self._end(connection, 0, REFUSED)
        except OSError:
            # The server has closed; it may have said why.
            connection.rest = memoryview(b"")
        listens = 0 if self._load.way == "mute" else selectors.EVENT_READ
        writes = selectors.EVENT_WRITE if connection.rest and self._load.way != "drip" else 0
        if self._load.way == "close" and not connection.rest:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        self._watch(connection, listens | writes)

    def _read(self, connection: _Connection) -> None:
        why = BROKEN
        try:
            data = connection.socket.recv(2**16)
        except BlockingIOError:
            return
        except OSError as error:
            data, why = b"", REFUSED if isinstance(error, ConnectionRefusedError) else BROKEN
        # A server may say in between that it goes on (RFC 9110, 15.2).
        connection.answer = INTERIM.sub(b"", connection.answer + data)
        if connection.carries is None:
            self._idle.remove(connection)
            self._close(connection)
        elif not data:
            answered = self._load.way == "close" and connection.answer.startswith(b"HTTP/1.1 ")
            self._end(connection, int(connection.answer[9:12]) if answered else 0, "" if answered else why)
        elif self._load.way != "close":
            head, blank, body = connection.answer.partition(b"\r\n\r\n")
            length = CONTENT_LENGTH.search(head)
            if blank and length and len(body) >= int(length[1]):
                self._end(connection, int(head[9:12]), body.decode("latin-1"), CLOSE.search(head) is None)

    def _tick(self) -> None:
        """Give up requests that have waited too long; send the next byte of each slow one."""
        now_s = time.monotonic()
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
        kept = body if self._load.bodies or not status else ""
        self.sent.append(Sent(number, due_s, sent_s, time.monotonic(), status, kept))
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
    """Run a load. Writes a line at its start, and the result as JSON at its end, to stdout."""
    load, folder = Load(**json.loads(sys.argv[1])), Path(sys.argv[2])
    requests = read_requests(folder)
    if not requests:
        raise BenchmarkError(f"{folder}: no requests to send")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A collection over all records would stop the clock for milliseconds, and the run is short.
    gc.disable()
    print("started", flush=True)
    seen = send(load, requests)
    rows = [list(vars(one).values()) for one in seen.sent]
    json.dump({"sent": rows, "start_s": seen.start_s, "load_cpu_s": seen.load_cpu_s}, sys.stdout)


if __name__ == "__main__":
    main()
