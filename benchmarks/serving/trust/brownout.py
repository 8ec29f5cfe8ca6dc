"""Brownout: twice the load that a contract can bear, with and without looser answers inside the contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.harness.closed_loop import closed_loop
from benchmarks.harness.figures import interleaved, spread
from benchmarks.harness.open_loop import MOST_FOR_SELECT, Load, run_load
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.serving.answers import (
    FULL_DEPTH,
    ask_each,
    classes,
    disagreement,
    exit_mix,
    mean_compute,
    read_answers,
    read_metrics,
    reasons,
    total,
)
from benchmarks.serving.trust.setup import LOAD_PICTURES, Setup, goodput_figures

STRICT, LOOSE = 0.005, 0.1
OVERLOAD = 2.0
MAX_WAIT_S, BROWNOUT_WAIT_S = 0.5, 0.1
# A little more than the longest predicted wait at which the server admits a picture.
OBJECTIVE_S = 0.6
# Share of the capacity that is sent after the overload.
LIGHT_LOAD = 0.1
LOOK_EVERY_S = 0.2
WAYS = {"without": (), "with": ("--brownout-wait-s", str(BROWNOUT_WAIT_S))}


@dataclass(frozen=True)
class Level:
    """The brownout's level from `from_s` on, in seconds from the start of the overload."""

    from_s: float
    level: int


@dataclass(frozen=True)
class Overload:
    """What is sent. full: classes at full depth. strict, loose: the contract, and how far it may be loosened."""

    setup: Setup
    folder: Path
    full: dict[int, int]
    capacity: float
    strict: float
    loose: float

    def load(self, server: Server, share: float, duration_s: float, seed: int) -> Load:
        """Poisson arrivals at a share of the capacity."""
        warmup_s, rate = self.setup.options.warmup_seconds, share * self.capacity
        return Load(server.port, MOST_FOR_SELECT, duration_s, rate, warmup_s, timeout_s=10.0, bodies=True, seed=seed)


def measure_brownout(setup: Setup) -> dict[str, Any]:
    """Rounds by turns; then levels over the time of an overload and after it."""
    options = setup.options
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(setup.serve("--max-wait-s", str(MAX_WAIT_S), *flags))
            for way, flags in WAYS.items()
        }
        overload = prepare_overload(setup, servers["without"])
        rounds = [
            measure_overload(overload, servers[way], way, number)
            for number, way in interleaved(tuple(WAYS), options.rounds)
        ]
        course = measure_course(overload, servers["with"])
    return {
        "asked": overload.strict,
        "degrade_to": overload.loose,
        "capacity": overload.capacity,
        "overload": OVERLOAD,
        "max_wait_s": MAX_WAIT_S,
        "brownout_wait_s": BROWNOUT_WAIT_S,
        "objective_s": OBJECTIVE_S,
        "connections": MOST_FOR_SELECT,
        "seconds": options.open_seconds,
        "rounds_each": options.rounds,
        "rows": [summarize(way, [each for each in rounds if each["way"] == way]) for way in WAYS],
        "course": course,
        "rounds": rounds,
    }


def prepare_overload(setup: Setup, server: Server) -> Overload:
    """Measure the capacity of the contract, and the classes at full depth."""
    promises = setup.promises
    strict = STRICT if STRICT in promises else promises[0]
    loose = max(promise for promise in promises if promise <= max(LOOSE, promises[0]))
    count, options = min(LOAD_PICTURES, len(setup.pictures)), setup.options
    full = classes(ask_each(server, setup.requests(FULL_DEPTH, count), options.connections))
    folder = setup.requests_folder(f"max_disagreement={strict}", count)
    loop = closed_loop(server, folder, options.connections, options.seconds, warmup_s=options.seconds)
    say(f"capacity at max_disagreement {strict}: {loop.throughput:.0f} pictures/s")
    both = setup.requests_folder(f"max_disagreement={strict}&degrade_to={loose}", count)
    return Overload(setup, both, full, loop.throughput, strict, loose)


def measure_overload(overload: Overload, server: Server, way: str, number: int) -> dict[str, Any]:
    """One round of overload: latencies and answers."""
    seconds = overload.setup.options.open_seconds
    sent = run_load(overload.load(server, OVERLOAD, seconds, number), overload.folder).measured()
    answers = read_answers(sent)
    figures = {
        "round": number,
        "way": way,
        **vars(goodput_figures(sent, seconds, OBJECTIVE_S)),
        "exit_mix": exit_mix(answers, overload.setup.bundle.net.num_exits),
        "reasons": reasons(answers),
        "disagreement": disagreement(answers, overload.full),
        "compute": mean_compute(answers),
    }
    say(f"overload {way} brownout: {figures}")
    return figures


def measure_course(overload: Overload, server: Server) -> dict[str, Any]:
    """The level while the overload lasts, and under light load after it."""
    options = overload.setup.options
    with sample_while(lambda: int(total(read_metrics(server.get("/metrics")), "offramp_brownout_level"))) as looks:
        start_s = time.perf_counter()
        run_load(overload.load(server, OVERLOAD, options.open_seconds, seed=0), overload.folder)
        over_s = time.perf_counter() - start_s
        run_load(overload.load(server, LIGHT_LOAD, options.recovery_seconds, seed=1), overload.folder)
    levels = level_changes([(at_s - start_s, level) for at_s, level in looks])
    return {"over_s": over_s, "levels": levels, "recovered_s": recovery_s(levels, over_s)}


def level_changes(looks: Sequence[tuple[float, int]]) -> list[Level]:
    """The looks at which the level was another than before."""
    return [Level(*next(same)) for _, same in groupby(looks, key=lambda look: look[1])]


def recovery_s(levels: Sequence[Level], over_s: float) -> float | None:
    """Seconds from the end of the overload until the level stayed at 0; None where it did not."""
    if not levels or levels[-1].level:
        return None
    return max(0.0, levels[-1].from_s - over_s)


@contextmanager
def sample_while(look: Callable[[], int]) -> Iterator[list[tuple[float, int]]]:
    """A list that grows by (time, value of `look`) until the block ends."""
    looks: list[tuple[float, int]] = []
    over = Event()

    def sample() -> None:
        while not over.wait(LOOK_EVERY_S):
            looks.append((time.perf_counter(), look()))

    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample)
        try:
            yield looks
        finally:
            over.set()
        sampling.result()


def summarize(way: str, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One way over all rounds: medians and extremes; mixes are means."""
    names = ("answered_per_s", "goodput", "refused", "p50_ms", "p99_ms", "disagreement", "compute")
    why = sorted({reason for each in rounds for reason in each["reasons"]})
    return {
        "way": way,
        "offered_per_s": spread(each["offered_per_s"] for each in rounds).median,
        **{name: spread(each[name] for each in rounds) for name in names},
        "failed": sum(each["failed"] for each in rounds),
        "exit_mix": [sum(column) / len(rounds) for column in zip(*(each["exit_mix"] for each in rounds), strict=True)],
        "reasons": {reason: sum(each["reasons"].get(reason, 0.0) for each in rounds) / len(rounds) for reason in why},
    }
