"""How far a simulation agrees with the real server, as `offramp bench thresholds` recorded it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.simulate_fleet import Fleet, Outcome, Simulation
from benchmarks.simulate_load import Mix, poisson
from server.engine.profile import CostProfile

SAMPLES = 40_000
WARM_UP_SHARE = 0.1
# Fitting tries often, so with fewer: throughput is known sooner than a tail.
FITTING_SAMPLES, FITTING_STEPS = 8_000, 14


@dataclass(frozen=True)
class Recorded:
    """One threshold of a real server. rate: of the open loop, for p50_ms and p99_ms; connections: of the closed one."""

    mix: Mix
    rate: float
    p50_ms: float
    p99_ms: float
    connections: int
    throughput: float


@dataclass(frozen=True)
class Compared:
    """One figure, as measured and as predicted. error: of the prediction, relative to what was measured."""

    mix: str
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """0.1 where the prediction is a tenth too high."""
        return self.predicted / self.measured - 1.0


def read_recorded(document: Mapping[str, Any]) -> list[Recorded]:
    """The thresholds of a result of `offramp bench thresholds`. Raises BenchmarkError for any other document."""
    try:
        return [
            Recorded(
                Mix(f"{row['threshold']:g}", tuple(row["exit_mix"])),
                document["open_loop_rate"],
                row["p50_ms"]["median"],
                row["p99_ms"]["median"],
                document["connections"],
                row["throughput"]["median"],
            )
            for row in document["rows"]
        ]
    except (KeyError, TypeError) as error:
        raise BenchmarkError(f"no result of `offramp bench thresholds`: {type(error).__name__}: {error}") from error


def validate(fleet: Fleet, recorded: Recorded, seed: int = 0) -> list[Compared]:
    """Throughput of the closed loop, p50 and p99 of the open one: what this fleet is predicted to do, and what one did.

    fleet: with the server's own policy, limits and cost of HTTP, of one engine. Raises ValueError where the mix is of
    another number of exits.
    """
    mix = recorded.mix
    _check_depth(fleet.profile, mix)
    random = np.random.default_rng(seed)
    exits, arrivals_s = mix.draw(SAMPLES, random), poisson(recorded.rate, SAMPLES, random)
    latency_ms = 1e3 * _warm(Simulation(fleet, exits, random).open_loop(arrivals_s)).latency_s
    p50_ms, p99_ms = np.nanquantile(latency_ms, [0.5, 0.99])
    return [
        Compared(mix.name, "throughput", recorded.throughput, throughput(fleet, mix, recorded.connections, seed)),
        Compared(mix.name, "p50_ms", recorded.p50_ms, float(p50_ms)),
        Compared(mix.name, "p99_ms", recorded.p99_ms, float(p99_ms)),
    ]


def throughput(fleet: Fleet, mix: Mix, connections: int, seed: int = 0, samples: int = SAMPLES) -> float:
    """Answers a second to so many clients who ask anew as soon as they are answered."""
    random = np.random.default_rng(seed)
    outcome = _warm(Simulation(fleet, mix.draw(samples, random), random).closed_loop(connections))
    return float((len(outcome.arrived_s) - 1) / (outcome.arrived_s[-1] - outcome.arrived_s[0]))


def fitted_request_s(fleet: Fleet, recorded: Recorded) -> float:
    """The cost of HTTP on the engine's cores with which the closed loop has the throughput recorded; at least 0."""
    _check_depth(fleet.profile, recorded.mix)
    low_s, high_s = 0.0, 1.0 / recorded.throughput
    for _ in range(FITTING_STEPS):
        middle_s = (low_s + high_s) / 2.0
        tried = replace(fleet, request_s=middle_s, shared_cores=True)
        reached = throughput(tried, recorded.mix, recorded.connections, samples=FITTING_SAMPLES)
        if reached > recorded.throughput:
            low_s = middle_s
        else:
            high_s = middle_s
    return (low_s + high_s) / 2.0


def validate_document(fleet: Fleet, path: Path | None, seed: int = 0) -> dict[str, Any] | None:
    """Compare with every threshold of a recorded file; None without one.

    Where the fleet names no cost of HTTP, it is fitted to the throughput of the first threshold, and that figure is
    left out of the comparison: what is fitted cannot be wrong.
    """
    if path is None:
        return None
    try:
        recorded = read_recorded(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error
    fitted = not fleet.request_s
    if fitted:
        fleet = replace(fleet, request_s=fitted_request_s(fleet, recorded[0]), shared_cores=True)
    # A bench of the server is far from its limits: nobody is refused.
    fleet = replace(fleet, max_wait_s=float("inf"), max_inflight=1_000_000)
    compared = [figure for one in recorded for figure in validate(fleet, one, seed)][1 if fitted else 0 :]
    return {
        "recorded": path.name,
        "request_ms": 1e3 * fleet.request_s,
        "request_fitted": fitted,
        "compared": [{**asdict(figure), "error": figure.error} for figure in compared],
        "worst_error": max(abs(figure.error) for figure in compared),
    }


def agreement_section(document: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table."""
    agreement = document["agreement"]
    lines = ["| mix | figure | measured | simulated | error |", "| --- | --- | ---: | ---: | ---: |"]
    for row in agreement["compared"]:
        lines.append(
            f"| {row['mix']} | {row['figure']} | {row['measured']:.1f} | {row['predicted']:.1f} | {row['error']:+.0%} |"
        )
    how = "fitted to the first closed loop" if agreement["request_fitted"] else "given"
    return "\n".join([*lines, "", f"HTTP at {agreement['request_ms']:.3f} ms a request, {how}."])


def _warm(outcome: Outcome) -> Outcome:
    """Without the first requests, and without the last, whose clients have nobody left beside them."""
    cut = int(WARM_UP_SHARE * len(outcome.arrived_s))
    return replace(outcome, arrived_s=outcome.arrived_s[cut:-cut], latency_s=outcome.latency_s[cut:-cut])


def _check_depth(profile: CostProfile, mix: Mix) -> None:
    if len(mix.shares) != profile.num_stages:
        raise ValueError(f"mix {mix.name!r} has {len(mix.shares)} exits, the profile {profile.num_stages} stages")
