"""Overload: goodput beyond capacity, and probes of /livez beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Columns, Document, percentile, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import Load, LoadResult, run_load, service_figures, start_load
from benchmarks.harness.results import say
from benchmarks.serving.hostile.setup import HONEST_SOURCE, LIVEZ, PROBES_PER_S, HostileSetup

CONNECTIONS = 64
TIMES_CAPACITY = (2.0, 5.0)
# Maximum number of connections of an open loop; file descriptors are limited too.
MOST_CONNECTIONS = 3000
WARMUP_S = 1.0


@dataclass(frozen=True)
class LoadRound:
    """One load in one round: the requests that were due after the warm-up.

    goodput_per_s: predictions a second; of_capacity: over the closed loop's of the round. answered, refused: shares.
    broken: number of others. load_cores: cores that the client took.
    """

    load: str
    goodput_per_s: float
    of_capacity: float
    answered: float
    p50_ms: float
    p99_ms: float
    refused: float
    broken: float
    load_cores: float


@dataclass(frozen=True)
class OverloadRound(LoadRound):
    """The same with the latency of /livez on new connections. livez_lost: probes without an answer."""

    livez_p99_ms: float
    livez_max_ms: float
    livez_lost: float


MeasureRound = Callable[[HostileSetup, int, Path, int], Sequence[LoadRound]]


def measure(setup: HostileSetup) -> dict[str, Any]:
    """In each round: the closed loop, then open loops at multiples of its rate."""
    return {**measure_rounds(setup, "overload", overload_round), "probes_per_s": PROBES_PER_S}


def measure_rounds(setup: HostileSetup, part: str, measure_round: MeasureRound) -> dict[str, Any]:
    """All rounds with each number of frontends, and a row for each load."""
    options, rows = setup.options, list[dict[str, Any]]()
    for frontends in options.frontend_counts(part):
        rounds = []
        with setup.frontends(frontends) as server:
            for number in range(options.rounds):
                rounds.append(measure_round(setup, server.port, setup.picture_requests(), number))
                say(rounds[-1])
        for loads in zip(*rounds, strict=True):
            names = [field.name for field in fields(loads[0]) if field.name != "load"]
            rows.append({"frontends": frontends, "load": loads[0].load, **spreads(loads, *names)})
    return {"connections": CONNECTIONS, "seconds": options.seconds, "rounds_each": options.rounds, "rows": rows}


def overload_round(setup: HostileSetup, port: int, folder: Path, number: int) -> list[OverloadRound]:
    """The closed loop and each open loop, with probes of /livez beside them, each on a new connection."""
    seconds, capacity, rounds = setup.options.seconds, 0.0, []
    for times in (0.0, *TIMES_CAPACITY):
        load = Load(port, CONNECTIONS, seconds, warmup_s=WARMUP_S)
        if times:
            load = Load(port, MOST_CONNECTIONS, seconds, times * capacity, WARMUP_S, timeout_s=30.0, seed=number)
        timing = (load.length_s, PROBES_PER_S)
        probes = Load(port, 200, *timing, evenly=True, source=HONEST_SOURCE, timeout_s=30.0)
        finish_probes = start_load(probes, setup.write("livez", [LIVEZ]))
        result, looks = run_load(load, folder), finish_probes().sent
        capacity = capacity or capacity_of(result)
        late_ms = [1e3 * look.latency_s for look in looks]
        each = OverloadRound(
            f"{times:g} c" if times else "closed",
            **load_figures(result, capacity),
            livez_p99_ms=percentile(late_ms, 99),
            livez_max_ms=max(late_ms),
            livez_lost=sum(look.status != 200 for look in looks),
        )
        rounds.append(each)
    return rounds


def answered_per_s(result: LoadResult) -> float:
    """Predictions a second, counted when they came, without the warm-up."""
    load = result.load
    count = sum(load.warmup_s <= sent.done_s < load.length_s for sent in result.sent if sent.status == 200)
    return count / load.duration_s


def capacity_of(closed: LoadResult) -> float:
    """Predictions a second of a closed loop. Raises BenchmarkError where nothing was answered."""
    if not (capacity := answered_per_s(closed)):
        raise BenchmarkError(f"the server answered none of the closed loop's requests: {closed.statuses()}")
    return capacity


def load_figures(result: LoadResult, capacity: float) -> dict[str, float]:
    """The fields of `LoadRound` after its name."""
    service, goodput_per_s = service_figures(result.measured(), result.load.duration_s), answered_per_s(result)
    return {
        "goodput_per_s": goodput_per_s,
        "of_capacity": goodput_per_s / capacity,
        "answered": service.answered_per_s / service.offered_per_s,
        "p50_ms": service.p50_ms,
        "p99_ms": service.p99_ms,
        "refused": service.refused,
        "broken": service.failed,
        "load_cores": result.load_cpu_s / result.load.length_s,
    }


def section(document: Document) -> str:
    """The table."""
    columns: Columns = {
        "load": "{load}",
        "frontends": "{frontends}",
        "answers/s": "{goodput_per_s:.0f}",
        "of c": "{of_capacity:.2f×}",
        "p99 of answers, ms": "{p99_ms:.0f}",
        "refused": "{refused[median]:.0%}",
        "broken": "{broken[max]:.0f}",
        "/livez p99, ms": "{livez_p99_ms:.0f}",
        "max": "{livez_max_ms[max]:.0f}",
        "lost": "{livez_lost[max]:.0f}",
        "client, cores": "{load_cores:.2f}",
    }
    how = (
        "c: closed loop of {connections} connections, in the same round; then Poisson arrivals at 2 c and 5 c, timed "
        "from when they were due. Median (least–most) of {rounds_each} rounds of {seconds:g} s. Broken: most without "
        "an answer in a round. /livez: {probes_per_s:g} times a second, each on a connection of its own. Client: "
        "cores that the load generator took from the server."
    )
    return section_of(document, table(columns, document["rows"]), how)
