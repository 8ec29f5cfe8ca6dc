"""Overload: goodput beyond capacity, and probes beside it. Fairness: an honest client beside a greedy one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import percentile, spread
from benchmarks.harness.open_loop import REFUSALS, Load, LoadResult, run_load
from benchmarks.harness.results import say
from benchmarks.serving.hostile.setup import HONEST_SOURCE, LIVEZ, PROBES_PER_S, Setup

CONNECTIONS = 64
TIMES_CAPACITY = (2.0, 5.0)
# Most connections of an open loop; file descriptors are limited too.
MOST_CONNECTIONS = 3000
HONEST_SHARE = 0.2
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


@dataclass(frozen=True)
class FairnessRound(LoadRound):
    """The honest client's load. greedy_per_s: predictions a second for the greedy client."""

    greedy_per_s: float


MeasureRound = Callable[[Setup, int, Path, int], Sequence[LoadRound]]


def measure_overload(setup: Setup) -> dict[str, Any]:
    """In each round: the closed loop, then open loops at multiples of its rate."""
    return {**measure_rounds(setup, "overload", overload_round), "probes_per_s": PROBES_PER_S}


def measure_fairness(setup: Setup) -> dict[str, Any]:
    """In each round: an honest client alone, then beside a client in a closed loop."""
    return {**measure_rounds(setup, "fairness", fairness_round), "honest_share": HONEST_SHARE}


def measure_rounds(setup: Setup, part: str, measure: MeasureRound) -> dict[str, Any]:
    """All rounds with each number of frontends, and a row for each load."""
    options, rows = setup.options, list[dict[str, Any]]()
    for frontends in options.frontend_counts(part):
        rounds = []
        with setup.serve(frontends) as server:
            for number in range(options.rounds):
                rounds.append(measure(setup, server.port, setup.picture_requests(), number))
                say(rounds[-1])
        rows += [{"frontends": frontends, **summarize(some)} for some in zip(*rounds, strict=True)]
    return {"connections": CONNECTIONS, "seconds": options.seconds, "rounds_each": options.rounds, "rows": rows}


def overload_round(setup: Setup, port: int, folder: Path, number: int) -> list[OverloadRound]:
    """The closed loop and each open loop, with probes beside them."""
    seconds, capacity, rounds = setup.options.seconds, 0.0, []
    for times in (0.0, *TIMES_CAPACITY):
        if times:
            rate, name = times * capacity, f"{times:g} c"
            load = Load(port, MOST_CONNECTIONS, seconds, rate, WARMUP_S, timeout_s=30.0, seed=number)
        else:
            name, load = "closed", Load(port, CONNECTIONS, seconds, warmup_s=WARMUP_S)
        result, livez = run_with_probes(setup, load, folder)
        capacity = capacity or capacity_of(result)
        rounds.append(OverloadRound(name, *load_figures(result, capacity), *livez))
    return rounds


def fairness_round(setup: Setup, port: int, folder: Path, number: int) -> list[FairnessRound]:
    """The honest client alone and beside the greedy one."""
    greedy = Load(port, CONNECTIONS, setup.options.seconds, warmup_s=WARMUP_S)
    capacity = capacity_of(run_load(greedy, folder))
    timing = (setup.options.seconds, HONEST_SHARE * capacity, WARMUP_S)
    honest = Load(port, CONNECTIONS, *timing, source=HONEST_SOURCE, seed=number)
    alone = FairnessRound("alone", *load_figures(run_load(honest, folder), capacity), 0.0)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_load, greedy, folder)
        both = run_load(honest, folder)
        greedy_per_s = answered_per_s(other.result())
    return [alone, FairnessRound("beside", *load_figures(both, capacity), greedy_per_s)]


def run_with_probes(setup: Setup, load: Load, folder: Path) -> tuple[LoadResult, tuple[float, float, float]]:
    """A load; and p99, maximum and losses of /livez beside it, on a new connection for each probe."""
    timing = (load.length_s, PROBES_PER_S)
    probes = Load(load.port, 200, *timing, evenly=True, source=HONEST_SOURCE, timeout_s=30.0)
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(run_load, probes, setup.requests("livez", LIVEZ))
        result = run_load(load, folder)
        sent = probing.result().sent
    late_ms = [1e3 * one.latency_s for one in sent]
    return result, (percentile(late_ms, 99), max(late_ms), sum(one.status != 200 for one in sent))


def answered_per_s(result: LoadResult) -> float:
    """Predictions a second, counted when they came, without the warm-up."""
    load = result.load
    count = sum(load.warmup_s <= one.done_s < load.length_s for one in result.sent if one.status == 200)
    return count / load.duration_s


def capacity_of(closed: LoadResult) -> float:
    """Predictions a second of a closed loop. Raises BenchmarkError where nothing was answered."""
    if not (capacity := answered_per_s(closed)):
        raise BenchmarkError(f"the server answered none of the closed loop's requests: {closed.statuses()}")
    return capacity


def load_figures(result: LoadResult, capacity: float) -> tuple[float, float, float, float, float, float, float, float]:
    """The fields of `LoadRound` after its name."""
    due, goodput = result.measured(), answered_per_s(result)
    late_ms = [1e3 * one.latency_s for one in due if one.status == 200]
    refused = sum(one.status in REFUSALS for one in due)
    return (
        goodput,
        goodput / capacity,
        len(late_ms) / len(due),
        percentile(late_ms, 50),
        percentile(late_ms, 99),
        refused / len(due),
        len(due) - refused - len(late_ms),
        result.load_cpu_s / result.load.length_s,
    )


def summarize(rounds: Sequence[LoadRound]) -> dict[str, Any]:
    """One load over all rounds: medians and extremes."""
    names = [field.name for field in fields(rounds[0]) if field.name != "load"]
    return {"load": rounds[0].load, **{name: spread(getattr(each, name) for each in rounds) for name in names}}
