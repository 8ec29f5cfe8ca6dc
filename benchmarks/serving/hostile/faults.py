"""Faults under load: wrong answers, requests left waiting, and how long ends and recoveries take."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from subprocess import TimeoutExpired
from threading import Event
from typing import Any

from benchmarks.harness.figures import Spread, spread
from benchmarks.harness.open_loop import BROKEN, REFUSED, Load, LoadResult, Sent, run_load, send_each
from benchmarks.harness.requests import prediction
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.options import parse_names
from benchmarks.serving.answers import served
from benchmarks.serving.hostile.attacks import add_counts
from benchmarks.serving.hostile.setup import PROBES_PER_S, READYZ, Setup

CONNECTIONS = 20
PICTURES = 64
DEADLINE_S = 0.2
# Longest time of a request: GRACE_S beyond its deadline, or PATIENCE_S where it has none.
GRACE_S, PATIENCE_S = 0.3, 10.0
QUERIES = ("threshold=1&top_k=3", f"threshold=1&top_k=3&deadline_ms={1000 * DEADLINE_S:g}")
END_TIMEOUT_S = 90.0
# Largest difference of a probability between batches of different sizes in bfloat16.
TOLERANCE = 0.02

# Probabilities of the likeliest classes, by class, for each picture and exit.
References = Mapping[tuple[int, int], Mapping[int, float]]


@dataclass(frozen=True)
class Fault:
    """steps: seconds from the start, signal and process: engine, frontend or first. length_s: of the load."""

    steps: tuple[tuple[float, signal.Signals, str], ...]
    length_s: float

    @property
    def ends_server(self) -> bool:
        """Whether the fault is a request to end the server."""
        return self.steps[0][2] == "first"


def _pause(seconds: float, length_s: float) -> Fault:
    return Fault(((1.0, signal.SIGSTOP, "engine"), (1.0 + seconds, signal.SIGCONT, "engine")), length_s)


# No name has a comma: `--faults` separates names by commas.
FAULTS = {
    "SIGKILL of the engine": Fault(((1.0, signal.SIGKILL, "engine"),), 40.0),
    "SIGKILL of frontends": Fault(tuple((1.0 + 2 * n, signal.SIGKILL, "frontend") for n in range(8)), 35.0),
    "SIGSTOP of the engine for 4 s": _pause(4.0, 15.0),
    "SIGSTOP of the engine for 20 s": _pause(20.0, 45.0),
    "SIGTERM": Fault(((1.0, signal.SIGTERM, "first"),), 3.0),
    "SIGINT": Fault(((1.0, signal.SIGINT, "first"),), 3.0),
}


@dataclass(frozen=True)
class FaultRun:
    """One run of a fault.

    hung: requests without an answer in time. red_s: from the first signal to the first answer of /readyz that is not
    200; green_s: from the last signal until all are 200 again. end_s, exit_status, left: seconds from the signal to the
    end of the first process, its status, and the number of other processes then, where the fault ends the server.
    """

    requests: int
    wrong: int
    hung: int
    broken: int
    longest_s: float
    statuses: dict[str, int]
    red_s: float | None = None
    green_s: float | None = None
    end_s: float | None = None
    exit_status: int | None = None
    left: int = 0


@dataclass(frozen=True)
class FaultRow:
    """All runs of a fault: sums of counts, spreads of times."""

    fault: str
    frontends: int
    runs: int
    requests: int
    wrong: int
    hung: int
    broken: int
    longest_s: Spread | None
    red_s: Spread | None
    green_s: Spread | None
    end_s: Spread | None
    statuses: dict[str, int]
    exit_statuses: dict[str, int]
    left: int


def measure_faults(setup: Setup) -> dict[str, Any]:
    """Each fault with each number of frontends, on servers of its own."""
    options, rows = setup.options, []
    for frontends in options.frontend_counts("faults"):
        references: References = {}
        for name in parse_names("faults", options.faults, FAULTS):
            if frontends == 0 and "frontend" in name:
                continue
            runs = []
            for _ in range(options.repeats if FAULTS[name].ends_server else 1):
                with setup.serve(frontends) as server:
                    references = references or read_references(setup, server)
                    runs.append(run_fault(setup, server, FAULTS[name], references))
                say(f"{name}, {frontends} frontends: {runs[-1]}")
            rows.append(summarize(name, frontends, runs))
    head = {"connections": CONNECTIONS, "deadline_s": DEADLINE_S, "grace_s": GRACE_S, "patience_s": PATIENCE_S}
    return {**head, "rows": rows}


def read_references(setup: Setup, server: Server) -> References:
    """Answers of the server while it has nothing else to do, at every exit."""
    png, references = setup.png[:PICTURES], {}
    model = served(server, prediction(png[0], QUERIES[0]).encoded())
    for exit in range(1, 1 + model.num_exits):
        requests = (prediction(picture, f"{QUERIES[0]}&max_exit={exit}").encoded() for picture in png)
        for sent in send_each(Load(server.port, 1, bodies=True), enumerate(requests)).answers():
            references[sent.number, exit] = probabilities(sent)
    return references


def probabilities(sent: Sent) -> dict[int, float]:
    """Probabilities of the likeliest classes, by class."""
    (answer,) = json.loads(sent.body)["predictions"]
    return {each["class_id"]: each["probability"] for each in answer["top_k"]}


def run_fault(setup: Setup, server: Server, fault: Fault, references: References) -> FaultRun:
    """The load, with the fault in it."""
    pairs = ((picture, query) for picture in setup.png[:PICTURES] for query in QUERIES)
    folder = setup.requests("faults", *(prediction(*pair) for pair in pairs))
    load = Load(server.port, CONNECTIONS, fault.length_s, timeout_s=60.0, bodies=True)
    probes = Load(server.port, 200, fault.length_s, PROBES_PER_S, evenly=True, timeout_s=1.0)
    started, end = (Event(), Event()), dict[str, Any]()
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(run_load, load, folder, started[0])
        probing = pool.submit(run_load, probes, setup.requests("readyz", READYZ), started[1])
        for event in started:
            event.wait()
        start_s, signals_s = time.monotonic(), []
        for at_s, number, role in fault.steps:
            time.sleep(max(0.0, start_s + at_s - time.monotonic()))
            signals_s.append(time.monotonic())
            for pid in processes(server, role)[:1]:
                # A process that was stopped for long has been replaced.
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        if fault.ends_server:
            end = wait_for_end(server, signals_s[0])
        counts = count_answers(loading.result().sent, references)
        return FaultRun(**counts, **readiness(probing.result(), signals_s), **end)


def processes(server: Server, role: str) -> list[int]:
    """Ids of its processes of that role, or of its only process."""
    assert server.process is not None
    return sorted(server.named(f"{role}_process")) or [server.process.pid]


def wait_for_end(server: Server, signal_s: float) -> dict[str, Any]:
    """The fields of `FaultRun` about the end of the server."""
    assert server.process is not None
    with suppress(TimeoutExpired):
        server.process.wait(END_TIMEOUT_S)
    end_s = time.monotonic() - signal_s
    return {"end_s": end_s, "exit_status": server.process.poll(), "left": len(server.processes())}


def count_answers(sent: Sequence[Sent], references: References) -> dict[str, Any]:
    """The fields of `FaultRun` about requests. Request n has picture n // 2, and query n % 2 of QUERIES."""
    reached = [one for one in sent if (one.status, one.body) != (0, REFUSED)]
    allowed_s = (PATIENCE_S, DEADLINE_S + GRACE_S)
    return {
        "requests": len(reached),
        "wrong": sum(one.status == 200 and not is_right(one, references) for one in reached),
        "hung": sum(one.done_s - one.sent_s > allowed_s[one.number % 2] for one in reached),
        "longest_s": max((one.done_s - one.sent_s for one in reached), default=0.0),
        "broken": sum((one.status, one.body) == (0, BROKEN) for one in reached),
        "statuses": dict(Counter(str(one.status) for one in reached if one.status)),
    }


def is_right(sent: Sent, references: References) -> bool:
    """Whether class and probabilities are those that a quiet server gives at that exit."""
    (answer,) = json.loads(sent.body)["predictions"]
    given, expected = probabilities(sent), references[sent.number // 2, answer["exit"]]
    close = all(abs(given[name] - expected[name]) <= TOLERANCE for name in given.keys() & expected.keys())
    # Either of two classes that are equally likely may be first.
    first = answer["class_id"]
    return close and first in expected and max(expected.values()) - expected[first] <= TOLERANCE


def readiness(probes: LoadResult, signals_s: Sequence[float]) -> dict[str, Any]:
    """The fields of `FaultRun` about /readyz. signals_s: on the monotonic clock."""
    looks = sorted((probes.start_s + one.done_s, one.status == 200) for one in probes.sent)
    reds_s = [at_s for at_s, green in looks if not green and at_s >= signals_s[0]]
    if not reds_s:
        return {"red_s": None, "green_s": None}
    green_s = next((at_s for at_s, green in looks if green and at_s > reds_s[-1]), None)
    return {
        "red_s": reds_s[0] - signals_s[0],
        "green_s": None if green_s is None else max(0.0, green_s - signals_s[-1]),
    }


def summarize(fault: str, frontends: int, runs: Sequence[FaultRun]) -> FaultRow:
    """All runs of a fault."""
    counts = {name: sum(getattr(run, name) for run in runs) for name in ("requests", "wrong", "hung", "broken")}
    times: dict[str, Any] = {
        name: _spread(getattr(run, name) for run in runs) for name in ("longest_s", "red_s", "green_s", "end_s")
    }
    return FaultRow(
        fault,
        frontends,
        len(runs),
        **counts,
        **times,
        statuses=add_counts(run.statuses for run in runs),
        exit_statuses=dict(Counter(str(run.exit_status) for run in runs if run.end_s is not None)),
        left=sum(run.left for run in runs),
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None
