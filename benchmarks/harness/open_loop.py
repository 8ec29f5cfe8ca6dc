"""Open loops: what is sent, when, and the figures of the answers.

The client runs in a process of its own (`harness.client`). Latency counts from when a request was due (no coordinated
omission).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

from benchmarks.harness.closed_loop import LoopFigures
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import percentile
from benchmarks.harness.requests import read_requests
from benchmarks.harness.server import ROOT, Server

# Why a request has no answer: the body of its record, which has status 0.
REFUSED, BROKEN, SILENT = "no connection", "connection ended", "no answer in time"
REFUSALS = (429, 503)
# select() knows file descriptors below 1024. Its timer has microseconds, that of epoll milliseconds.
MOST_FOR_SELECT = 900


@dataclass(frozen=True)
class Load:
    """One run against a server.

    connections: most at a time; a request that finds none free waits, and its latency counts. duration_s: measured
    seconds after `warmup_s` seconds of the same load. rate: requests a second, Poisson arrivals or evenly spaced; None
    is a closed loop. source: the client's address. way: "ask": one answer after another on a kept connection; "close":
    the sending half is closed after each request and the answers are read to the end; "mute": nothing is read; "drip":
    the last bytes go one by one. bodies: keep the bodies of answers. niceness: of the client's process; with a high
    one it leaves the cores to the server, as a client on another machine does.
    """

    port: int
    connections: int
    duration_s: float = float("inf")
    rate: float | None = None
    warmup_s: float = 0.0
    evenly: bool = False
    host: str = "127.0.0.1"
    source: str = ""
    way: str = "ask"
    timeout_s: float = 60.0
    bodies: bool = False
    niceness: int = 0
    seed: int = 0

    @property
    def length_s(self) -> float:
        """Warm-up and measured time."""
        return self.warmup_s + self.duration_s

    def planned(self, num_requests: int) -> Iterator[tuple[float, int]]:
        """When to send each request, in seconds from the start, and its number; in a closed loop at once."""
        if self.rate is None:
            return ((0.0, number) for number in cycle(range(num_requests)))
        if self.evenly:
            return ((n / self.rate, n % num_requests) for n in range(round(self.rate * self.length_s)))
        draw = random.Random(self.seed)
        return ((at_s, draw.randrange(num_requests)) for at_s in poisson_arrivals(self.rate, self.length_s, self.seed))


def poisson_arrivals(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    """Times within [0, duration_s) of a Poisson process of `rate` arrivals a second; the same for the same seed."""
    draw, at_s = random.Random(seed), 0.0
    while (at_s := at_s + draw.expovariate(rate)) < duration_s:
        yield at_s


@dataclass(frozen=True)
class Sent:
    """One request and its answer; seconds from the start of the run.

    status 0: no answer came, and body says why. Otherwise body is the answer's, where the load keeps bodies.
    """

    number: int
    due_s: float
    sent_s: float
    done_s: float
    status: int
    body: str = ""

    @property
    def latency_s(self) -> float:
        """From when it was due to the end of its answer."""
        return self.done_s - self.due_s


@dataclass(frozen=True)
class LoadResult:
    """All requests in the order of their ends. start_s: of the run, by the monotonic clock. load_cpu_s: client."""

    load: Load
    sent: tuple[Sent, ...] = field(repr=False)
    start_s: float
    load_cpu_s: float

    def statuses(self) -> dict[str, int]:
        """How often each status came; requests without an answer are counted by the reason."""
        return dict(sorted(Counter(str(sent.status or sent.body) for sent in self.sent).items()))

    def measured(self) -> tuple[Sent, ...]:
        """The requests that were due after the warm-up."""
        return tuple(sent for sent in self.sent if sent.due_s >= self.load.warmup_s)

    def answers(self) -> list[Sent]:
        """All requests in the order of their numbers. Raises BenchmarkError where one has no answer of status 200."""
        failed = [sent for sent in self.sent if sent.status != 200]
        if failed:
            first = f"{failed[0].status} {failed[0].body[:300]}"
            raise BenchmarkError(f"{len(failed)} of {len(self.sent)} requests failed, such as: {first}")
        return sorted(self.sent, key=lambda sent: sent.number)

    def figures(self, server_cpu_s: float = float("nan")) -> LoopFigures:
        """Figures of the requests that were due after the warm-up. Raises BenchmarkError where none was answered."""
        due = self.measured()
        late_ms = latencies_ms(due)
        if not late_ms:
            raise BenchmarkError(f"the server answered none of {len(due)} requests: {self.statuses()}")
        counts = (len(late_ms), len(due) - len(late_ms), len(late_ms) / self.load.duration_s)
        cpu_ms = (1e3 * seconds / len(self.sent) for seconds in (server_cpu_s, self.load_cpu_s))
        return LoopFigures(*counts, *(percentile(late_ms, percent) for percent in (50, 95, 99)), *cpu_ms)


def latencies_ms(sent: Iterable[Sent]) -> list[float]:
    """Milliseconds from when a request was due to its answer, for each that was answered with 200."""
    return [1e3 * each.latency_s for each in sent if each.status == 200]


@dataclass(frozen=True)
class ServiceFigures:
    """What a client gets: answers (of status 200) and refusals (429 or 503).

    offered_per_s, answered_per_s: requests, and those answered, a second. goodput: those answered in time, a second.
    refused: share. failed: number of requests that got neither. p50_ms, p99_ms: NaN without an answer.
    """

    offered_per_s: float
    answered_per_s: float
    goodput: float
    refused: float
    failed: int
    p50_ms: float
    p99_ms: float


def service_figures(sent: Sequence[Sent], seconds: float, objective_s: float = float("inf")) -> ServiceFigures:
    """Figures of the requests that were due in so many seconds. objective_s: the longest latency that is in time."""
    late_ms, refused = latencies_ms(sent), sum(each.status in REFUSALS for each in sent)
    return ServiceFigures(
        offered_per_s=len(sent) / seconds,
        answered_per_s=len(late_ms) / seconds,
        goodput=sum(ms <= 1e3 * objective_s for ms in late_ms) / seconds,
        refused=refused / max(1, len(sent)),
        failed=len(sent) - refused - len(late_ms),
        p50_ms=percentile(late_ms, 50),
        p99_ms=percentile(late_ms, 99),
    )


def open_loop(server: Server, requests_folder: Path, rate: float, seconds: float, warmup_s: float, seed: int = 0,
              connections: int = 512) -> LoopFigures:  # fmt: skip
    """Poisson arrivals at `rate` a second, from a process of its own."""
    load = Load(server.port, connections, seconds, rate, warmup_s, host=server.host, seed=seed)
    before_s = server.cpu_s()
    result = run_load(load, requests_folder)
    return result.figures(server.cpu_s() - before_s)


def run_load(load: Load, folder: Path) -> LoadResult:
    """Send the requests in `folder` from a new process. Raises BenchmarkError with its last output if it fails."""
    return start_load(load, folder)()


def start_load(load: Load, folder: Path) -> Callable[[], LoadResult]:
    """The same, begun; the function that comes back waits for the end."""
    read_requests(folder)
    command, pipe = [sys.executable, "-m", "benchmarks.harness.client"], subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"load": asdict(load), "folder": str(folder.absolute())}))
    process.stdin.close()
    # The client prints a line when it begins.
    first = process.stdout.readline()

    def finish() -> LoadResult:
        with process:
            rest = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise BenchmarkError(f"the load generator failed with {process.returncode}: {(first + rest)[-2000:]}")
        result = json.loads(rest)
        return LoadResult(load, tuple(Sent(*each) for each in result["sent"]), result["start_s"], result["load_cpu_s"])

    return finish
