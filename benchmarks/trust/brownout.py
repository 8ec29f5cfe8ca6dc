"""Brownout: twice the load that the contract asked for can bear, with and without giving way inside the contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.peers.open_loop import OpenJob, run_open_loop
from benchmarks.stats import spread
from benchmarks.thresholds import interleaved
from benchmarks.trust.answers import (
    answered,
    ask_each,
    disagreement,
    exit_mix,
    mean_compute,
    read_metrics,
    reasons,
    total,
)
from benchmarks.trust.loads import MOST_CONNECTIONS, measured_of, outcome
from benchmarks.trust.setting import FULL_DEPTH, Listening, Setting, metrics_of, say
from benchmarks.wrk import run_wrk

STRICT, LOOSE = 0.005, 0.1
OVERLOAD = 2.0
MAX_WAIT_S, BROWNOUT_WAIT_S = 0.5, 0.1
# A little more than the longest wait that the server takes a picture in for.
OBJECTIVE_S = 0.6
# Of the capacity, once the overload is gone.
REST = 0.1
LOOK_EVERY_S = 0.2
LOAD_PICTURES = 2000
WAYS = {"without": (), "with": ("--brownout-wait-s", str(BROWNOUT_WAIT_S))}


@dataclass(frozen=True)
class Level:
    """The brownout's level from `from_s` on, in seconds from the start of the overload."""

    from_s: float
    level: int


@dataclass(frozen=True)
class Overload:
    """What is sent. full: classes at full depth. strict, loose: the contract asked for, and how far it may give way."""

    setting: Setting
    folder: Path
    full: dict[int, int]
    capacity: float
    strict: float
    loose: float

    def job(self, server: Listening, rate: float, duration_s: float, seed: int) -> OpenJob:
        """Poisson arrivals."""
        warmup_s = self.setting.options.warmup_seconds
        return OpenJob(
            *(server.port, str(self.folder), MOST_CONNECTIONS, rate, warmup_s, duration_s, seed),
            timeout_s=10.0,
            keep_bodies=True,
        )


def brownout(setting: Setting) -> dict[str, Any]:
    """Rounds by turns; then levels over the time of an overload and after it."""
    options = setting.options
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(setting.serve("--max-wait-s", str(MAX_WAIT_S), *flags))
            for way, flags in WAYS.items()
        }
        load = prepared_load(setting, servers["without"])
        cells = [run_round(load, servers[way], way, round) for round, way in interleaved(tuple(WAYS), options.rounds)]
        course = course_of(load, servers["with"])
    return {
        "asked": load.strict,
        "degrade_to": load.loose,
        "capacity": load.capacity,
        "overload": OVERLOAD,
        "max_wait_s": MAX_WAIT_S,
        "brownout_wait_s": BROWNOUT_WAIT_S,
        "objective_s": OBJECTIVE_S,
        "connections": MOST_CONNECTIONS,
        "seconds": options.open_seconds,
        "rounds_each": options.rounds,
        "rows": [row(way, [cell for cell in cells if cell["way"] == way]) for way in WAYS],
        "course": course,
        "rounds": cells,
    }


def prepared_load(setting: Setting, server: Listening) -> Overload:
    """Measures the capacity of the contract asked for, and what full depth answers."""
    promises = setting.promises
    strict = STRICT if STRICT in promises else promises[0]
    loose = max(promise for promise in promises if promise <= max(LOOSE, promises[0]))
    count, connections = min(LOAD_PICTURES, len(setting.png)), setting.options.connections
    full = ask_each(server.port, setting.requests(FULL_DEPTH, count), connections)
    folder = setting.requests_folder(f"max_disagreement={strict}", count)
    loops = [run_wrk(server.port, folder, connections, setting.options.seconds) for _ in range(2)]
    say(f"capacity at max_disagreement {strict}: {loops[-1].throughput:.0f} pictures/s")
    return Overload(
        setting,
        setting.requests_folder(f"max_disagreement={strict}&degrade_to={loose}", count),
        {one.picture: one.class_id for one in full},
        loops[-1].throughput,
        strict,
        loose,
    )


def run_round(load: Overload, server: Listening, way: str, round: int) -> dict[str, Any]:
    """One overload: speed and answers."""
    job = load.job(server, OVERLOAD * load.capacity, load.setting.options.open_seconds, round)
    sent = measured_of(run_open_loop(job))
    answers = answered(sent)
    cell = {
        "round": round,
        "way": way,
        **asdict(outcome(sent, job.duration_s, OBJECTIVE_S)),
        "exit_mix": exit_mix(answers, load.setting.bundle.net.num_exits),
        "reasons": reasons(answers),
        "disagreement": disagreement(answers, load.full),
        "compute": mean_compute(answers),
    }
    say(f"overload {way} brownout: {cell}")
    return cell


def course_of(load: Overload, server: Listening) -> dict[str, Any]:
    """The level while the overload lasts, and under light load after it."""
    seconds = load.setting.options.open_seconds
    with watched(lambda: int(total(read_metrics(metrics_of(server)), "offramp_brownout_level"))) as looks:
        start_s = time.perf_counter()
        run_open_loop(load.job(server, OVERLOAD * load.capacity, seconds, seed=0))
        over_s = time.perf_counter() - start_s
        run_open_loop(load.job(server, REST * load.capacity, load.setting.options.recovery_seconds, seed=1))
    levels = changes([(at_s - start_s, level) for at_s, level in looks])
    return {"over_s": over_s, "levels": [asdict(level) for level in levels], "recovered_s": recovered(levels, over_s)}


def changes(looks: Sequence[tuple[float, int]]) -> list[Level]:
    """Of many looks, those that found another level than the one before."""
    return [Level(*next(same)) for _, same in groupby(looks, key=lambda look: look[1])]


def recovered(levels: Sequence[Level], over_s: float) -> float | None:
    """Seconds from the end of the overload until the level was 0 for good; None where it was not."""
    if not levels or levels[-1].level:
        return None
    return max(0.0, levels[-1].from_s - over_s)


@contextmanager
def watched(look: Callable[[], int]) -> Iterator[list[tuple[float, int]]]:
    """A list that grows by (time, what a look found) until the block ends."""
    looks: list[tuple[float, int]] = []
    over = Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            looks.append((time.perf_counter(), look()))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield looks
        finally:
            over.set()
        watching.result()


def row(way: str, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One way over all rounds: medians and extremes; mixes are means."""
    figures = ("answered_per_s", "goodput", "refused", "p50_ms", "p99_ms", "disagreement", "compute")
    names = sorted({reason for cell in cells for reason in cell["reasons"]})
    return {
        "way": way,
        "offered_per_s": spread([cell["offered_per_s"] for cell in cells]).median,
        **{name: asdict(spread([cell[name] for cell in cells])) for name in figures},
        "failed": sum(cell["failed"] for cell in cells),
        "exit_mix": [sum(column) / len(cells) for column in zip(*(cell["exit_mix"] for cell in cells), strict=True)],
        "reasons": {name: sum(cell["reasons"].get(name, 0.0) for cell in cells) / len(cells) for name in names},
    }
