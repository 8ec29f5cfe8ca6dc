"""Fairness: an honest client beside a greedy one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import Columns, Document, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import Load, run_load, start_load
from benchmarks.serving.hostile.overload import (
    CONNECTIONS,
    WARMUP_S,
    LoadRound,
    answered_per_s,
    capacity_of,
    load_figures,
    measure_rounds,
)
from benchmarks.serving.hostile.setup import HONEST_SOURCE, HostileSetup

HONEST_SHARE = 0.2


@dataclass(frozen=True)
class FairnessRound(LoadRound):
    """The honest client's load. greedy_per_s: predictions a second for the greedy client."""

    greedy_per_s: float


def measure(setup: HostileSetup) -> dict[str, Any]:
    """In each round: an honest client alone, then beside a client in a closed loop."""
    return {**measure_rounds(setup, "fairness", fairness_round), "honest_share": HONEST_SHARE}


def fairness_round(setup: HostileSetup, port: int, folder: Path, number: int) -> list[FairnessRound]:
    """The honest client alone and beside the greedy one."""
    greedy = Load(port, CONNECTIONS, setup.options.seconds, warmup_s=WARMUP_S)
    capacity = capacity_of(run_load(greedy, folder))
    timing = (setup.options.seconds, HONEST_SHARE * capacity, WARMUP_S)
    honest = Load(port, CONNECTIONS, *timing, source=HONEST_SOURCE, seed=number)
    alone = FairnessRound("alone", **load_figures(run_load(honest, folder), capacity), greedy_per_s=0.0)
    finish_honest = start_load(honest, folder)
    greedy_per_s = answered_per_s(run_load(greedy, folder))
    return [alone, FairnessRound("beside", **load_figures(finish_honest(), capacity), greedy_per_s=greedy_per_s)]


def section(document: Document) -> str:
    """The table."""
    columns: Columns = {
        "honest client": "{load}",
        "frontends": "{frontends}",
        "answered": "{answered:.2%}",
        "p50, ms": "{p50_ms:.0f}",
        "p99, ms": "{p99_ms:.0f}",
        "broken": "{broken[max]:.0f}",
        "greedy client's answers/s": "{greedy_per_s:.0f}",
    }
    how = (
        "An honest client of Poisson arrivals at {honest_share:.0%} of capacity, alone and beside another that keeps "
        "{connections} connections busy. Median (least–most) of {rounds_each} rounds of {seconds:g} s."
    )
    return section_of(document, table(columns, document["rows"]), how)
