"""Faults under load: wrong answers, requests left waiting, and how long ends and recoveries take."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from subprocess import TimeoutExpired
from typing import Any

from benchmarks.harness.client import send_each
from benchmarks.harness.figures import Columns, Document, add_counts, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import BROKEN, REFUSED, Load, LoadResult, Sent, start_load
from benchmarks.harness.requests import prediction, predictions
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.options import parse_names
from benchmarks.serving.answers import describe_model
from benchmarks.serving.hostile.setup import PROBES_PER_S, READYZ, HostileSetup

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


# A name has no comma: `--faults` separates names by commas.
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


def measure(setup: HostileSetup) -> dict[str, Any]:
    """Each fault with each number of frontends, on servers of its own."""
    options, rows = setup.options, []
    for frontends in options.frontend_counts("faults"):
        references: References = {}
        for name in parse_names("faults", options.faults, FAULTS):
            if frontends == 0 and "frontend" in name:
                continue
            runs = []
            for _ in range(options.repeats if FAULTS[name].ends_server else 1):
                with setup.frontends(frontends) as server:
                    references = references or read_references(setup, server)
                    runs.append(run_fault(setup, server, FAULTS[name], references))
                say(f"{name}, {frontends} frontends: {runs[-1]}")
            rows.append({"fault": name, "frontends": frontends, **summarize(runs)})
    head = {"connections": CONNECTIONS, "deadline_s": DEADLINE_S, "grace_s": GRACE_S, "patience_s": PATIENCE_S}
    return {**head, "rows": rows}


def read_references(setup: HostileSetup, server: Server) -> References:
    """Answers of the server while it has nothing else to do, at every exit."""
    png, references = setup.png[:PICTURES], {}
    _, num_exits = describe_model(server, prediction(png[0], QUERIES[0]).encoded())
    for exit in range(1, 1 + num_exits):
        requests = predictions(png, f"{QUERIES[0]}&max_exit={exit}")
        for sent in send_each(Load(server.port, 1, bodies=True), enumerate(requests)).answers():
            references[sent.number, exit] = probabilities(sent)
    return references


def probabilities(sent: Sent) -> dict[int, float]:
    """Probabilities of the likeliest classes, by class."""
    (answer,) = json.loads(sent.body)["predictions"]
    return {each["class_id"]: each["probability"] for each in answer["top_k"]}


def run_fault(setup: HostileSetup, server: Server, fault: Fault, references: References) -> FaultRun:
    """The load, with the fault in it."""
    folder = setup.write("faults", (prediction(p, query) for p in setup.png[:PICTURES] for query in QUERIES))
    load = Load(server.port, CONNECTIONS, fault.length_s, timeout_s=60.0, bodies=True)
    probes = Load(server.port, 200, fault.length_s, PROBES_PER_S, evenly=True, timeout_s=1.0)
    finish_load, finish_probes = start_load(load, folder), start_load(probes, setup.write("readyz", [READYZ]))
    start_s, signals_s = time.monotonic(), []
    for at_s, number, role in fault.steps:
        time.sleep(max(0.0, start_s + at_s - time.monotonic()))
        signals_s.append(time.monotonic())
        for pid in processes(server, role)[:1]:
            # A process that was stopped for long has been replaced.
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    end = wait_for_end(server, signals_s[0]) if fault.ends_server else {}
    counts = count_answers(finish_load().sent, references)
    return FaultRun(**counts, **readiness(finish_probes(), signals_s), **end)


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
    reached = [each for each in sent if (each.status, each.body) != (0, REFUSED)]
    allowed_s = (PATIENCE_S, DEADLINE_S + GRACE_S)
    return {
        "requests": len(reached),
        "wrong": sum(each.status == 200 and not is_right(each, references) for each in reached),
        "hung": sum(each.done_s - each.sent_s > allowed_s[each.number % 2] for each in reached),
        "longest_s": max((each.done_s - each.sent_s for each in reached), default=0.0),
        "broken": sum((each.status, each.body) == (0, BROKEN) for each in reached),
        "statuses": dict(Counter(str(each.status) for each in reached if each.status)),
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
    looks = sorted((probes.start_s + look.done_s, look.status == 200) for look in probes.sent)
    reds_s = [at_s for at_s, green in looks if not green and at_s >= signals_s[0]]
    if not reds_s:
        return {"red_s": None, "green_s": None}
    green_s = next((at_s for at_s, green in looks if green and at_s > reds_s[-1]), None)
    return {
        "red_s": reds_s[0] - signals_s[0],
        "green_s": None if green_s is None else max(0.0, green_s - signals_s[-1]),
    }


def summarize(runs: Sequence[FaultRun]) -> dict[str, Any]:
    """All runs of a fault: sums of counts, spreads of times."""
    counts = ("requests", "wrong", "hung", "broken", "left")
    return {
        "runs": len(runs),
        **{name: sum(getattr(run, name) for run in runs) for name in counts},
        **spreads(runs, "longest_s", "red_s", "green_s", "end_s"),
        "statuses": add_counts(run.statuses for run in runs),
        "exit_statuses": dict(Counter(str(run.exit_status) for run in runs if run.end_s is not None)),
    }


def section(document: Document) -> str:
    """The table."""
    columns: Columns = {
        "fault": "{fault}",
        "frontends": "{frontends}",
        "runs": "{runs}",
        "requests": "{requests:,}",
        "wrong": "{wrong:,}",
        "hung": "{hung:,}",
        "broken": "{broken:,}",
        "answers": "{statuses}",
        "longest wait, s": "{longest_s:.1f}",
        "red, s": "{red_s:.1f}",
        "green, s": "{green_s:.1f}",
        "end, s": "{end_s:.1f}",
        "exit status": "{exit_statuses}",
    }
    how = (
        "{connections} connections in a closed loop; every other request has a deadline of {deadline_s:g} s. Wrong: "
        "another class or probability than a quiet server gives. Hung: no answer {grace_s:g} s after its deadline, or "
        "after {patience_s:g} s. Broken: the connection ended. Times: the longest wait; from the first signal to "
        "`/readyz` red; from the last to green; from the signal to the end of the process: median (least–most) of the "
        "runs."
    )
    return section_of(document, table(columns, document["rows"]), how)
