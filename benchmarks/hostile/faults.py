"""Faults under load: wrong answers, requests left waiting, and how long ends and recoveries take."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from subprocess import TimeoutExpired
from threading import Event
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.hostile.client import BROKEN, REFUSED, Load, Seen, Sent, run_load, send_each
from benchmarks.hostile.setting import READYZ, Setting, say
from benchmarks.options import chosen
from benchmarks.peers.requests import Ask
from benchmarks.processes import members
from benchmarks.stats import spread

CONNECTIONS = 20
PICTURES = 64
DEADLINE_S = 0.2
# Longest time of a request: GRACE_S beyond its deadline, or PATIENCE_S where it has none.
GRACE_S, PATIENCE_S = 0.3, 10.0
QUERIES = ("threshold=1&top_k=3", f"threshold=1&top_k=3&deadline_ms={1000 * DEADLINE_S:g}")
PROBES_PER_S = 20.0
END_TIMEOUT_S = 90.0
# Largest difference of a probability between batches of different sizes in bfloat16.
TOLERANCE = 0.02

# The probabilities of the likeliest classes, by class, for each picture and exit.
References = dict[tuple[int, int], dict[int, float]]


@dataclass(frozen=True)
class Fault:
    """steps: seconds from the start, signal and process: engine, frontend or the first. length_s: of the load."""

    steps: tuple[tuple[float, signal.Signals, str], ...]
    length_s: float

    @property
    def ends_server(self) -> bool:
        """Whether the fault is a request to end the server."""
        return self.steps[0][2] == "first"


def _stop_of(seconds: float, length_s: float) -> Fault:
    return Fault(((1.0, signal.SIGSTOP, "engine"), (1.0 + seconds, signal.SIGCONT, "engine")), length_s)


FAULTS = {
    "SIGKILL of the engine": Fault(((1.0, signal.SIGKILL, "engine"),), 40.0),
    "SIGKILL of frontends": Fault(tuple((1.0 + 2 * n, signal.SIGKILL, "frontend") for n in range(8)), 35.0),
    "SIGSTOP of the engine, 4 s": _stop_of(4.0, 15.0),
    "SIGSTOP of the engine, 20 s": _stop_of(20.0, 45.0),
    "SIGTERM": Fault(((1.0, signal.SIGTERM, "first"),), 3.0),
    "SIGINT": Fault(((1.0, signal.SIGINT, "first"),), 3.0),
}


def faults(setting: Setting) -> dict[str, Any]:
    """Each fault with each number of frontends, on servers of its own."""
    options = setting.options
    names = chosen("faults", options.faults, FAULTS) if options.faults else tuple(FAULTS)
    rows = []
    for frontends in options.frontends_of("faults"):
        known: References = {}
        for name in names:
            if frontends == 0 and "frontend" in name:
                continue
            runs = []
            for _ in range(options.repeats if FAULTS[name].ends_server else 1):
                with setting.serve(frontends) as server:
                    known = known or references(setting, server.port)
                    runs.append(faulted(setting, server, FAULTS[name], known))
                say(f"{name}, {frontends} frontends: {runs[-1]}")
            rows.append({"fault": name, "frontends": frontends, **over_runs(runs)})
    return {"connections": CONNECTIONS, "deadline_s": DEADLINE_S, "grace_s": GRACE_S, "patience_s": PATIENCE_S} | {
        "rows": rows
    }


def references(setting: Setting, port: int) -> References:
    """What the server answers when it has nothing else to do, at every exit."""
    found: References = {}
    for exit in range(1, 1 + _exits(setting, port)):
        asks = [Ask(f"/v1/predict?{QUERIES[0]}&max_exit={exit}", "image/png", one) for one in setting.png[:PICTURES]]
        load = Load(port, 1, END_TIMEOUT_S, bodies=True)
        for one in send_each(load, ((number, ask.encoded()) for number, ask in enumerate(asks))).sent:
            if one.status != 200:
                raise BenchmarkError(f"no reference for picture {one.number}: {one.status} {one.body[:200]}")
            found[one.number, exit] = probabilities(one)
    return found


def _exits(setting: Setting, port: int) -> int:
    request = Ask(f"/v1/predict?{QUERIES[0]}", "image/png", setting.png[0]).encoded()
    (one,) = send_each(Load(port, 1, END_TIMEOUT_S, bodies=True), [(0, request)]).sent
    return int(json.loads(one.body)["predictions"][0]["exits"])


def probabilities(one: Sent) -> dict[int, float]:
    """The probabilities of the likeliest classes, by class."""
    (prediction,) = json.loads(one.body)["predictions"]
    return {each["class_id"]: each["probability"] for each in prediction["top_k"]}


def faulted(setting: Setting, server: Any, fault: Fault, known: References) -> dict[str, Any]:
    """The load with the fault in it: what became of the requests, of readiness, and of the server."""
    folder = setting.requests(
        "faults",
        *(Ask(f"/v1/predict?{q}", "image/png", p).encoded() for p in setting.png[:PICTURES] for q in QUERIES),
    )
    load = Load(server.port, CONNECTIONS, fault.length_s, timeout_s=60.0, bodies=True)
    probes = Load(server.port, 200, fault.length_s, PROBES_PER_S, evenly=True, timeout_s=1.0)
    ended: dict[str, Any] = {}
    started = (Event(), Event())
    with ThreadPoolExecutor(2) as pool:
        seen = pool.submit(run_load, load, folder, started[0])
        ready = pool.submit(run_load, probes, setting.requests("readyz", READYZ), started[1])
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
            ended = end_of(server, signals_s[0])
        return {**fate(seen.result().sent, known), **readiness(ready.result(), signals_s), **ended}


def processes(server: Any, role: str) -> list[int]:
    """Ids of its processes of that role, or of its only process."""
    return sorted(server.named(f"{role}_process")) or [server.process.pid]


def end_of(server: Any, signal_s: float) -> dict[str, Any]:
    """Seconds until the first process has ended, its status, and how many others are left then."""
    with suppress(TimeoutExpired):
        server.process.wait(END_TIMEOUT_S)
    end_s = time.monotonic() - signal_s
    return {"end_s": end_s, "exit_status": server.process.poll(), "left": len(members(server.mark))}


def fate(sent: Sequence[Sent], known: References) -> dict[str, Any]:
    """Counts of what became of the requests. Request n has picture n // 2, and query n % 2 of QUERIES."""
    reached = [one for one in sent if (one.status, one.body) != (0, REFUSED)]
    waits_s = [one.done_s - one.sent_s for one in reached]
    allowed_s = (PATIENCE_S, DEADLINE_S + GRACE_S)
    return {
        "requests": len(reached),
        "wrong": sum(one.status == 200 and not is_right(one, known) for one in reached),
        "hung": sum(wait_s > allowed_s[one.number % 2] for one, wait_s in zip(reached, waits_s, strict=True)),
        "longest_s": max(waits_s, default=0.0),
        "broken": sum((one.status, one.body) == (0, BROKEN) for one in reached),
        "statuses": dict(Counter(str(one.status) for one in reached if one.status)),
    }


def is_right(one: Sent, known: References) -> bool:
    """Whether these are the class and the probabilities that a quiet server gives at that exit."""
    (prediction,) = json.loads(one.body)["predictions"]
    found, expected = probabilities(one), known[one.number // 2, prediction["exit"]]
    close = all(abs(found[name] - expected[name]) <= TOLERANCE for name in found.keys() & expected.keys())
    # Either of two classes that are equally likely may be first.
    first = prediction["class_id"]
    return close and first in expected and max(expected.values()) - expected[first] <= TOLERANCE


def readiness(ready: Seen, signals_s: Sequence[float]) -> dict[str, float | None]:
    """Seconds from the first signal to the first answer that is not 200, and from the last until all are again."""
    looks = sorted((one.done_s, one.status == 200) for one in ready.sent)
    reds_s = [at_s for at_s, green in looks if not green and at_s >= signals_s[0]]
    if not reds_s:
        return {"red_s": None, "green_s": None}
    green_s = next((at_s for at_s, green in looks if green and at_s > reds_s[-1]), None)
    return {
        "red_s": reds_s[0] - signals_s[0],
        "green_s": None if green_s is None else max(0.0, green_s - signals_s[-1]),
    }


def over_runs(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums of counts, extremes of times."""
    statuses = Counter[str]()
    for run in runs:
        statuses.update(run["statuses"])
    times = {
        name: _spread(run.get(name) for run in runs if run.get(name) is not None)
        for name in ("longest_s", "red_s", "green_s", "end_s")
    }
    counts = {name: sum(run[name] for run in runs) for name in ("requests", "wrong", "hung", "broken")}
    ends = Counter(str(run["exit_status"]) for run in runs if "end_s" in run)
    left = sum(run.get("left", 0) for run in runs)
    return {"runs": len(runs), **counts, **times, "statuses": dict(statuses), "exit_statuses": dict(ends), "left": left}


def _spread(values: Iterable[float | None]) -> dict[str, float] | None:
    found = [value for value in values if value is not None]
    return asdict(spread(found)) if found else None
