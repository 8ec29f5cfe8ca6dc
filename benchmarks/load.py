"""The load generator: a process of its own, so that its work is never taken for the server's.

    python -m benchmarks.load < job.json > result.json

Latency of the open loop counts from the *scheduled* time: a request that had to wait in the generator because the
server fell behind is as late as its user would find it (no coordinated omission). Answers are parsed after the run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from benchmarks.errors import BenchmarkError
from benchmarks.pictures import read_pictures
from benchmarks.plan import Job, Planned, plan

ROOT = Path(__file__).resolve().parent.parent
REQUEST_TIMEOUT_S = 60.0
# Below the five seconds after which uvicorn closes an idle connection: a request never meets a closing one.
KEEP_ALIVE_S = 3.0


@dataclass(frozen=True)
class Record:
    """One request and its fate; times in seconds from the start of the run.

    due_s: when it was to be sent; in a closed loop, when it was. sent_s: when the generator got to it.
    status: of HTTP; 0 where no answer came, and `error` says why. The rest is None unless the status is 200.
    """

    picture: int
    threshold: float
    due_s: float
    sent_s: float
    done_s: float
    status: int
    error: str | None = None
    exit: int | None = None
    class_id: int | None = None
    label: str | None = None
    confidence: float | None = None

    @property
    def latency_s(self) -> float:
        """From when it was due to the last byte of its answer."""
        return self.done_s - self.due_s

    @property
    def answered(self) -> bool:
        """Whether there was a prediction."""
        return self.status == 200


@dataclass(frozen=True)
class LoadResult:
    """All requests of one run, warm-up included. cpu_s: what the generator itself computed while it ran.

    served: name and version of the model that answered, num_exits: its exits; "" and 0 where nothing did.
    """

    job: Job
    records: tuple[Record, ...] = field(repr=False)
    cpu_s: float
    served: str
    num_exits: int


def run_load(job: Job) -> LoadResult:
    """Run the job in a new process and wait for it. Raises BenchmarkError with its last words if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        input=json.dumps(asdict(job)).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"the load generator failed with {done.returncode}: {done.stderr.decode()[-2000:]}")
    result = json.loads(done.stdout)
    records = tuple(Record(**record) for record in result["records"])
    return LoadResult(job, records, result["cpu_s"], result["served"], result["num_exits"])


@dataclass(frozen=True)
class _Raw:
    planned: Planned
    due_s: float
    sent_s: float
    done_s: float
    status: int
    body: bytes


class _Client:
    """Sends pictures and keeps what came back, unread."""

    def __init__(self, session: aiohttp.ClientSession, job: Job, pictures: list[bytes]) -> None:
        self.raw: list[_Raw] = []
        self._session = session
        self._pictures = pictures
        self._urls = {t: URL(f"{job.url}/v1/predict?threshold={t!r}", encoded=True) for t in job.thresholds}
        self._start_s = time.perf_counter()

    def now_s(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._start_s

    async def send(self, planned: Planned) -> None:
        sent_s = self.now_s()
        status, body = 0, b""
        try:
            async with self._session.post(
                self._urls[planned.threshold],
                data=self._pictures[planned.picture],
                headers={"Content-Type": "image/png"},
            ) as response:
                body = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            body = f"{type(error).__name__}: {error}".encode()
        due_s = sent_s if planned.at_s is None else planned.at_s
        self.raw.append(_Raw(planned, due_s, sent_s, self.now_s(), status, body))


async def generate(job: Job) -> tuple[list[_Raw], float]:
    """Make all the job's requests: what came back, and the CPU seconds this process spent on it."""
    pictures = read_pictures(Path(job.pictures_folder))
    connector = aiohttp.TCPConnector(limit=job.connections, keepalive_timeout=KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        before_s = _cpu_s()
        client = _Client(session, job, pictures)
        requests = plan(job, len(pictures))
        if job.rate is None:
            await _closed_loop(client, requests, job)
        else:
            await _open_loop(client, requests)
        return client.raw, _cpu_s() - before_s


async def _closed_loop(client: _Client, requests: Iterator[Planned], job: Job) -> None:
    async def connection() -> None:
        while client.now_s() < job.total_s and (planned := next(requests, None)) is not None:
            await client.send(planned)

    async with asyncio.TaskGroup() as group:
        for _ in range(job.connections):
            group.create_task(connection())


async def _open_loop(client: _Client, requests: Iterator[Planned]) -> None:
    async with asyncio.TaskGroup() as group:
        for planned in requests:
            assert planned.at_s is not None
            await asyncio.sleep(max(0.0, planned.at_s - client.now_s()))
            group.create_task(client.send(planned))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_answer(raw: _Raw) -> Record:
    """What the server said; an answer with status 200 that is not of the documented form raises KeyError."""
    times = {"due_s": raw.due_s, "sent_s": raw.sent_s, "done_s": raw.done_s}
    asked: dict[str, Any] = {"picture": raw.planned.picture, "threshold": raw.planned.threshold, **times}
    if raw.status != 200:
        return Record(**asked, status=raw.status, error=raw.body.decode("utf-8", "replace")[:500])
    (prediction,) = json.loads(raw.body)["predictions"]
    told = {name: prediction[name] for name in ("exit", "class_id", "label", "confidence")}
    return Record(**asked, status=raw.status, **told)


def perform(job: Job) -> LoadResult:
    """Run the job in this process."""
    # select() waits to the microsecond; epoll, and uvloop's timers, round up to whole milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        raw, cpu_s = runner.run(generate(job))
    served, num_exits = _served(raw)
    return LoadResult(job, tuple(read_answer(answer) for answer in raw), cpu_s, served, num_exits)


def _served(raw: list[_Raw]) -> tuple[str, int]:
    for answer in raw:
        if answer.status == 200:
            document = json.loads(answer.body)
            return f"{document['model']} {document['version']}", document["predictions"][0]["exits"]
    return "", 0


def main() -> None:
    """Read a job from stdin, run it, write the result to stdout."""
    given = json.load(sys.stdin)
    # A collection over all kept answers would stop the clock for milliseconds, and the run is short.
    gc.disable()
    result = perform(Job(**{**given, "thresholds": tuple(given["thresholds"])}))
    json.dump({**vars(result), "job": given, "records": [vars(record) for record in result.records]}, sys.stdout)


if __name__ == "__main__":
    main()
