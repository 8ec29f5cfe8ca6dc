"""Overload: goodput beyond capacity, and probes beside it. Fairness: an honest client beside a greedy one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.hostile.client import Load, Seen, run_load
from benchmarks.hostile.setting import HONEST_SOURCE, LIVEZ, Setting, say
from benchmarks.stats import percentile, spread

CONNECTIONS = 64
TIMES_CAPACITY = (2.0, 5.0)
# Most connections of an open loop; file descriptors are limited too.
MOST_CONNECTIONS = 3000
HONEST_SHARE = 0.2
PROBES_PER_S = 20.0
WARMUP_S = 1.0


def overload(setting: Setting) -> dict[str, Any]:
    """In each round: the closed loop, then open loops at multiples of its rate."""
    rows = []
    for frontends in setting.options.frontends_of("overload"):
        with setting.serve(frontends) as server:
            folder = setting.picture_requests()
            rounds = [overloaded(setting, server.port, folder, turn) for turn in range(setting.options.rounds)]
        rows += [over_rounds({"frontends": frontends}, [cells[at] for cells in rounds]) for at in range(len(rounds[0]))]
    return {**conditions(setting), "probes_per_s": PROBES_PER_S, "rows": rows}


def overloaded(setting: Setting, port: int, folder: Path, turn: int) -> list[dict[str, Any]]:
    """One round: a cell for the closed loop and one for each open loop."""
    seconds = setting.options.seconds
    closed, livez = with_probes(setting, Load(port, CONNECTIONS, seconds + WARMUP_S), folder)
    capacity = capacity_of(closed)
    cells = [{"load": "closed", **figures(closed, capacity), **livez}]
    for times in TIMES_CAPACITY:
        load = Load(port, MOST_CONNECTIONS, seconds + WARMUP_S, times * capacity, timeout_s=30.0, seed=turn)
        seen, livez = with_probes(setting, load, folder)
        cells.append({"load": f"{times:g} c", **figures(seen, capacity), **livez})
    say(f"{cells}")
    return cells


def fairness(setting: Setting) -> dict[str, Any]:
    """In each round: an honest client alone, then beside a client in a closed loop."""
    rows = []
    for frontends in setting.options.frontends_of("fairness"):
        with setting.serve(frontends) as server:
            folder = setting.picture_requests()
            rounds = [besieged(setting, server.port, folder, turn) for turn in range(setting.options.rounds)]
        rows += [over_rounds({"frontends": frontends}, [cells[at] for cells in rounds]) for at in range(len(rounds[0]))]
    return {**conditions(setting), "honest_share": HONEST_SHARE, "rows": rows}


def besieged(setting: Setting, port: int, folder: Path, turn: int) -> list[dict[str, Any]]:
    """One round: the honest client's fate alone and beside the greedy one."""
    length_s = setting.options.seconds + WARMUP_S
    greedy = Load(port, CONNECTIONS, length_s)
    capacity = capacity_of(run_load(greedy, folder))
    honest = Load(port, CONNECTIONS, length_s, HONEST_SHARE * capacity, source=HONEST_SOURCE, seed=turn)
    alone = run_load(honest, folder)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_load, greedy, folder)
        both = run_load(honest, folder)
        greedy_per_s = answered_per_s(other.result())
    cells = [{"load": "alone", "greedy_per_s": 0.0, **figures(alone, capacity)}]
    cells += [{"load": "beside", "greedy_per_s": greedy_per_s, **figures(both, capacity)}]
    say(f"{cells}")
    return cells


def conditions(setting: Setting) -> dict[str, Any]:
    """Conditions of both parts."""
    options = setting.options
    return {"connections": CONNECTIONS, "seconds": options.seconds, "rounds_each": options.rounds}


def with_probes(setting: Setting, load: Load, folder: Path) -> tuple[Seen, dict[str, float]]:
    """A load, and the times of /livez beside it, with a new connection for each probe."""
    probes = Load(load.port, 200, load.duration_s, PROBES_PER_S, evenly=True, source=HONEST_SOURCE, timeout_s=30.0)
    with ThreadPoolExecutor(1) as pool:
        probed = pool.submit(run_load, probes, setting.requests("livez", LIVEZ))
        seen = run_load(load, folder)
        late_ms = [1e3 * (one.done_s - one.due_s) for one in probed.result().sent]
        lost = sum(one.status != 200 for one in probed.result().sent)
    return seen, {"livez_p99_ms": percentile(late_ms, 99), "livez_max_ms": max(late_ms), "livez_lost": lost}


def answered_per_s(seen: Seen) -> float:
    """Predictions a second, counted when they came, without the warm-up."""
    ends_s = (one.done_s - seen.start_s for one in seen.sent if one.status == 200)
    measured_s = seen.load.duration_s - WARMUP_S
    return sum(WARMUP_S <= at_s < seen.load.duration_s for at_s in ends_s) / measured_s


def capacity_of(closed: Seen) -> float:
    """Answers a second of a closed loop. Raises BenchmarkError where nothing was answered."""
    if not (found := answered_per_s(closed)):
        raise BenchmarkError(f"the server answered none of the closed loop's requests: {closed.statuses()}")
    return found


def figures(seen: Seen, capacity: float) -> dict[str, float]:
    """Figures of the requests that were due after the warm-up. load_cores: cores that the client itself took."""
    due = [one for one in seen.sent if one.due_s - seen.start_s >= WARMUP_S]
    late_ms = [1e3 * (one.done_s - one.due_s) for one in due if one.status == 200]
    refused = sum(one.status in (429, 503) for one in due)
    goodput = answered_per_s(seen)
    return {
        "goodput_per_s": goodput,
        "of_capacity": goodput / capacity,
        "answered": len(late_ms) / len(due),
        "p50_ms": percentile(late_ms, 50),
        "p99_ms": percentile(late_ms, 99),
        "refused": refused / len(due),
        "broken": len(due) - refused - len(late_ms),
        "load_cores": seen.load_cpu_s / seen.load.duration_s,
    }


def over_rounds(known: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One load over all rounds: medians and extremes."""
    named = {"load": cells[0]["load"]}
    spreads = {name: asdict(spread([cell[name] for cell in cells])) for name in cells[0] if name != "load"}
    return {**known, **named, **spreads}
