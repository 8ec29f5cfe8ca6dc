"""Open loops of made-up requests, and each request once: a process of its own, light beside any server.

    python -m benchmarks.peers.open_loop < job.json > result.json

`benchmarks.load` knows our own API alone; this one writes whole requests of any API to its connections and reads the
answers with httptools. Latency counts from the scheduled time, as it does there.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httptools

from benchmarks.errors import BenchmarkError
from benchmarks.load import KEEP_ALIVE_S, REQUEST_TIMEOUT_S, ROOT
from benchmarks.peers.requests import read_requests
from benchmarks.plan import poisson_arrivals


@dataclass(frozen=True)
class OpenJob:
    """One run against 127.0.0.1.

    requests_folder: of `write_requests`. connections: most at a time; what finds none free waits, and its latency
    counts. rate: Poisson arrivals a second for warm-up and measured time, of requests drawn by `seed`; None: each
    request once, in order, as fast as the connections let it, and the bodies of the answers are kept. keep_bodies: in
    any case.
    """

    port: int
    requests_folder: str
    connections: int
    rate: float | None = None
    warmup_s: float = 0.0
    duration_s: float = 0.0
    seed: int = 0
    timeout_s: float = REQUEST_TIMEOUT_S
    keep_bodies: bool = False

    def planned(self, num_requests: int) -> list[tuple[float, int]]:
        """When to send which request."""
        if self.rate is None:
            return [(0.0, number) for number in range(num_requests)]
        draw = random.Random(self.seed)
        arrivals = poisson_arrivals(self.rate, self.warmup_s + self.duration_s, self.seed)
        return [(at_s, draw.randrange(num_requests)) for at_s in arrivals]


@dataclass(frozen=True)
class Sent:
    """One request and its fate. status 0: no answer came. body: only where it was to be kept."""

    number: int
    due_s: float
    sent_s: float
    done_s: float
    status: int
    body: str = ""


@dataclass(frozen=True)
class OpenResult:
    """All requests of a run, warm-up included. load_cpu_s: what the generator computed."""

    job: OpenJob
    sent: tuple[Sent, ...]
    load_cpu_s: float


def run_open_loop(job: OpenJob) -> OpenResult:
    """Run the job in a new process. Raises BenchmarkError with its last words if it fails."""
    command = [sys.executable, "-m", "benchmarks.peers.open_loop"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(asdict(job)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the open loop failed with {done.returncode}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    return OpenResult(job, tuple(Sent(*each) for each in told["sent"]), told["load_cpu_s"])


class _Connection(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, client: _Client) -> None:
        self.client = client
        self.job: tuple[float, int, float] | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.client.connections.add(self)

    def send(self, due_s: float, number: int) -> None:
        self.job, self.body = (due_s, number, self.client.now_s()), b""
        self.transport.write(self.client.requests[number])

    def data_received(self, data: bytes) -> None:
        if self.job is not None:
            self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self._end(self.parser.get_status_code())
        if not self.parser.should_keep_alive():
            self.transport.close()
        else:
            self.idle_since_s = self.client.now_s()
            self.client.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(0)
        self.client.lost(self)

    def _end(self, status: int) -> None:
        if self.job is not None:
            (due_s, number, sent_s), self.job = self.job, None
            self.client.done(Sent(number, due_s, sent_s, self.client.now_s(), status, self.body.decode("latin-1")))


class _Client:
    """The connections and what waits for one."""

    def __init__(self, job: OpenJob, requests: Sequence[bytes]) -> None:
        self.requests = requests
        self.sent: list[Sent] = []
        self._job = job
        self._idle: list[_Connection] = []
        self._waiting: deque[tuple[float, int]] = deque()
        self.connections: set[_Connection] = set()
        # Counts to zero only once everything is sent.
        self._missing = 0
        self._all_answered = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()
        self._start_s = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    async def run(self) -> None:
        """Send what is planned, and wait for the answers."""
        planned = self._job.planned(len(self.requests))
        for due_s, number in planned:
            if (wait_s := due_s - self.now_s()) > 0:
                await asyncio.sleep(wait_s)
            self._waiting.append((due_s, number))
            self._advance()
        self._missing = len(planned) - len(self.sent)
        if self._missing:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_answered.wait(), self._job.timeout_s)
        # Those that were under way end with their connections; those left had none.
        await self._close()
        missing = len(planned) - len(self.sent)
        self.sent += [Sent(-1, self._job.warmup_s, self._job.warmup_s, self.now_s(), 0, "no answer")] * missing

    async def _close(self) -> None:
        self._waiting.clear()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in tuple(self.connections):
            connection.transport.abort()
        # What is aborted is closed by the event loop, at its next turn.
        await asyncio.sleep(0)

    def done(self, sent: Sent) -> None:
        self.sent.append(sent)
        self._missing -= 1
        if not self._missing:
            self._all_answered.set()

    def free(self, connection: _Connection) -> None:
        self._idle.append(connection)
        self._advance()

    def lost(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._advance()

    def _advance(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.pop()
            if self.now_s() - connection.idle_since_s > KEEP_ALIVE_S or connection.transport.is_closing():
                # The server may be about to close it, and the request would be lost for no fault of its own.
                connection.transport.close()
            else:
                connection.send(*self._waiting.popleft())
        room = self._job.connections - len(self.connections)
        for _ in range(min(len(self._waiting), room) - len(self._opening)):
            task = asyncio.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._advance()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._job.port)
        except OSError as error:
            if self._waiting:
                due_s, number = self._waiting.popleft()
                self.done(Sent(number, due_s, due_s, self.now_s(), 0, str(error)))
            return
        self.free(connection)


def perform(job: OpenJob) -> OpenResult:
    """Run the job in this process."""
    requests = read_requests(Path(job.requests_folder))
    if not requests:
        raise BenchmarkError(f"{job.requests_folder}: no requests to send")
    return send_all(job, requests)


def send_all(job: OpenJob, requests: Sequence[bytes]) -> OpenResult:
    """Run the job in this process, with these requests in place of those of its folder."""

    async def go() -> tuple[list[Sent], float]:
        before_s = _cpu_s()
        client = _Client(job, requests)
        await client.run()
        return client.sent, _cpu_s() - before_s

    # select() waits to the microsecond; epoll, and uvloop's timers, round up to whole milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        sent, load_cpu_s = runner.run(go())
    return OpenResult(job, tuple(sent), load_cpu_s)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Read a job from stdin, run it, write the result to stdout."""
    job = OpenJob(**json.load(sys.stdin))
    # A collection over all kept answers would stop the clock for milliseconds, and the run is short.
    gc.disable()
    result = perform(job)
    keeps_bodies = job.rate is None or job.keep_bodies

    def row(sent: Sent) -> list[Any]:
        return list(vars(sent).values())[: 6 if keeps_bodies else 5]

    json.dump({"sent": [row(sent) for sent in result.sent], "load_cpu_s": result.load_cpu_s}, sys.stdout)


if __name__ == "__main__":
    main()
