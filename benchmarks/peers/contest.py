"""Ours and the peers on one workload: tuned, checked, and measured by turns."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.errors import BenchmarkError
from benchmarks.load import ROOT
from benchmarks.peers.catalogue import Launch, Peer, Told
from benchmarks.peers.network import EXITS, FOLDER, SETTINGS, Settings
from benchmarks.peers.open_loop import OpenJob, OpenResult, run_open_loop
from benchmarks.peers.requests import write_requests
from benchmarks.peers.workloads import Way, Workload
from benchmarks.processes import Running, free_port, running
from benchmarks.stats import percentile
from benchmarks.wrk import Figures, run_wrk

OPEN_LOOP_CONNECTIONS = 512
CHECK_CONNECTIONS = 16
ANSWER_TIMEOUT_S = 60


@dataclass(frozen=True)
class Contender:
    """A server in a contest. bin: its environment's commands. ways: how it is asked, one after the other."""

    peer: Peer
    bin: Path
    settings: Settings
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Cell:
    """One server, asked one way, in one round of one pair. rate: of an open loop; None is a closed one.

    against: the peer of the pair. cpu_ms: the server's CPU for a request; load_cpu_ms: the generator's.
    """

    round: int
    against: str
    server: str
    way: str
    rate: float | None
    requests: int
    errors: int
    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    load_cpu_ms: float


@dataclass(frozen=True)
class Load:
    """How long, and by what. Fakes take the place of the two generators in tests."""

    connections: int
    warmup_s: int
    measured_s: int
    closed: Callable[[int, Path, int, int], Figures] = run_wrk
    open: Callable[[OpenJob], OpenResult] = run_open_loop


@dataclass(frozen=True)
class Arena:
    """Where a workload's servers are started. network: the exported one's folder. requests: files, made once."""

    workload: Workload
    network: Path
    work: Path
    load: Load
    requests: dict[tuple[str, str], Path] = field(default_factory=dict)

    @contextmanager
    def started(self, contender: Contender) -> Iterator[Running]:
        """The server, from its first answer on until the end of the block. Raises BenchmarkError if none comes."""
        peer, port = contender.peer, free_port()
        variables = {
            "PYTHONPATH": str(ROOT),
            FOLDER: str(self.network),
            SETTINGS: contender.settings.words(),
            EXITS: contender.ways[0].exits.words(),
            **peer.variables,
        }
        with TemporaryDirectory(dir=self.work) as work:
            launch = Launch(contender.bin, port, Path(work), contender.settings)
            with running(peer.command(launch), port, self._answers(contender), variables) as server:
                yield server

    def check(self, contender: Contender) -> Mapping[str, tuple[Told, ...]]:
        """Every picture once in each way. Raises BenchmarkError where one is not answered."""
        with self.started(contender) as server:
            return {way.name: self._check(server, contender, way) for way in contender.ways}

    def capacity(self, contender: Contender, seconds: int) -> float:
        """Pictures a second of a short closed loop, as the first way asks."""
        with self.started(contender) as server:
            folder = self._requests(contender, contender.ways[0])
            self.load.closed(server.port, folder, self.load.connections, 1)
            return self.load.closed(server.port, folder, self.load.connections, seconds).throughput

    def measure(self, contender: Contender, round: int, against: str, rate: float | None) -> list[Cell]:
        """A cell for each way, of one start of the server."""
        with self.started(contender) as server:
            ways = contender.ways if round % 2 == 0 else contender.ways[::-1]
            return [self._cell(server, contender, way, round, against, rate) for way in ways]

    def _cell(
        self, server: Running, contender: Contender, way: Way, round: int, against: str, rate: float | None
    ) -> Cell:
        folder = self._requests(contender, way)
        if rate is None:
            self.load.closed(server.port, folder, self.load.connections, self.load.warmup_s)
            before_s = server.cpu_s()
            loop = self.load.closed(server.port, folder, self.load.connections, self.load.measured_s)
            cpu_s, count = server.cpu_s() - before_s, loop.requests
        else:
            timing = (self.load.warmup_s, self.load.measured_s)
            before_s = server.cpu_s()
            result = self.load.open(OpenJob(server.port, str(folder), OPEN_LOOP_CONNECTIONS, rate, *timing, seed=round))
            cpu_s, count = server.cpu_s() - before_s, len(result.sent)
            loop = within_measured_time(result)
        if not loop.requests:
            raise BenchmarkError(f"{contender.peer.title} answered none of the requests in {self.load.measured_s} s")
        return Cell(
            round=round,
            against=against,
            server=contender.peer.name,
            way=way.name,
            rate=rate,
            requests=loop.requests,
            errors=loop.errors,
            throughput=loop.throughput,
            p50_ms=loop.p50_ms,
            p95_ms=loop.p95_ms,
            p99_ms=loop.p99_ms,
            cpu_ms=1e3 * cpu_s / count,
            load_cpu_ms=1e3 * loop.load_cpu_s / count,
        )

    def _check(self, server: Running, contender: Contender, way: Way) -> tuple[Told, ...]:
        folder = self._requests(contender, way)
        result = self.load.open(OpenJob(server.port, str(folder), CHECK_CONNECTIONS))
        if failed := [sent for sent in result.sent if sent.status != 200]:
            first = failed[0]
            raise BenchmarkError(
                f"{len(failed)} pictures were not answered, such as: {first.status} {first.body[:300]}"
            )
        in_order = sorted(result.sent, key=lambda sent: sent.number)
        return tuple(contender.peer.read(sent.body.encode("latin-1")) for sent in in_order)

    def _requests(self, contender: Contender, way: Way) -> Path:
        key = (contender.peer.name, way.name)
        if key not in self.requests:
            sent = self.workload.pictures
            asks = (
                contender.peer.ask(picture, sent.media_type, way.query(number))
                for number, picture in enumerate(sent.pictures)
            )
            self.requests[key] = write_requests(asks, self.work / f"requests-{len(self.requests)}")
        return self.requests[key]

    def _answers(self, contender: Contender) -> Callable[[int], bool]:
        sent = self.workload.pictures
        ask = contender.peer.ask(sent.pictures[0], sent.media_type, contender.ways[0].query(0))

        def is_ready(port: int) -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)
            try:
                connection.request("POST", ask.path, ask.body, {"Content-Type": ask.content_type, **ask.headers})
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()

        return is_ready


def within_measured_time(result: OpenResult) -> Figures:
    """The figures of an open loop's requests that were due after the warm-up."""
    job = result.job
    due = [sent for sent in result.sent if sent.due_s >= job.warmup_s]
    answered = [sent for sent in due if sent.status == 200]
    latencies_ms = [1e3 * (sent.done_s - sent.due_s) for sent in answered]
    p50_ms, p95_ms, p99_ms = (percentile(latencies_ms, percent) for percent in (50, 95, 99))
    throughput = len(answered) / job.duration_s
    return Figures(len(answered), len(due) - len(answered), throughput, p50_ms, p95_ms, p99_ms, result.load_cpu_s)
