"""Goodput and latency by scheduling policy and load, simulated: the server's own scheduler on profiled steps.

A profile is what `CostProfile` writes, with "measured": true where it was measured; another one is called hypothetical
in every table. Load 1 is the most that an engine can do, with every step in its most efficient batch. Every policy gets
the same arrivals and the same exits. HTTP is not simulated.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import publish, say
from benchmarks.options import SimulateOptions, parse_names
from benchmarks.simulate.mixes import Mix, read_mixes
from benchmarks.simulate.report import conclusions, simulation_section
from benchmarks.simulate.simulator import Simulation, SimulationResult
from offramp.models.bundle import EMBEDDED, load_bundle
from offramp.models.device import choose_device
from offramp.server.engine.policies import POLICIES
from offramp.server.engine.profile import CostProfile, measure_profile
from offramp.server.engine.runners.choice import choose_runner

# Share of a run's requests that come before the queues have filled.
WARM_UP_SHARE = 0.2
OBJECTIVE_PASSES = 20.0
MAX_BATCH_SIZE = 32


@dataclass(frozen=True)
class NamedProfile:
    """A cost profile with its name. measured: on a real machine; otherwise it is hypothetical."""

    name: str
    measured: bool
    profile: CostProfile


def read_profile(path: Path) -> NamedProfile:
    """The profile in a file. Raises BenchmarkError for a file that is no JSON, ValueError for a wrong profile."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{path} holds no cost profile: {error}") from error
    profile = CostProfile.from_dict(document)
    return NamedProfile(document.get("name", path.stem), document.get("measured", False) is True, profile)


def measure_this_machine() -> NamedProfile:
    """The step costs of the embedded model on this machine."""
    bundle = load_bundle(EMBEDDED)
    runner = choose_runner(bundle, choose_device("auto"))
    runner.warm_up(MAX_BATCH_SIZE)
    size = bundle.preprocessing.size
    profile = measure_profile(runner, size, MAX_BATCH_SIZE, time.monotonic, rounds=30, budget_s=10.0)
    return NamedProfile("this machine", True, profile)


def run(options: SimulateOptions) -> None:
    """Simulate every policy at every load, print the tables, write the JSON file."""
    publish(options.output, simulate(options), simulation_section, ("rows",))


def simulate(options: SimulateOptions) -> dict[str, Any]:
    """The result document."""
    head = provenance("simulate", options)
    profiles = [measure_this_machine()] if options.this_machine else []
    profiles += [read_profile(Path(path)) for path in options.profile.split(",") if path]
    rows = [row for named in profiles for row in simulate_profile(options, named)]
    mixes = read_mixes(options.mix, profiles[0].profile.num_stages)
    return {
        **head,
        "profiles": {p.name: {"measured": p.measured, **p.profile.to_dict()} for p in profiles},
        "mixes": {mix.name: list(mix.shares) for mix in mixes},
        "samples": options.samples,
        "seed": options.seed,
        "rows": rows,
        "conclusions": conclusions(rows),
    }


def simulate_profile(options: SimulateOptions, named: NamedProfile) -> Iterator[dict[str, Any]]:
    """A row for each mix, load and policy."""
    profile = named.profile
    one_pass_s = sum(profile.seconds(stage, 1) for stage in range(1, profile.num_stages + 1))
    # Seconds within which an answer of an open loop counts. The number of its clients sets a closed loop's latency.
    objective_s = options.objective_ms / 1e3 or OBJECTIVE_PASSES * one_pass_s
    loads = [("poisson", load) for load in options.numbers("load", float)]
    loads += [("closed", clients) for clients in options.numbers("clients", int)]
    for mix, (arrivals, load) in product(read_mixes(options.mix, profile.num_stages), loads):
        most = capacity(profile, mix)
        for policy in parse_names("policy", options.policy, POLICIES):
            # The same seed gives every policy the same exits and arrivals.
            random = np.random.default_rng(options.seed)
            exits, scheduling = mix.draw(options.samples, random), POLICIES[policy](profile)
            if arrivals == "closed":
                counted_s, result = None, Simulation(profile, scheduling, exits).closed_loop(round(load))
            else:
                max_wait_s = options.max_wait_ms / 1e3 or objective_s / 2
                arrivals_s = poisson(load * most, options.samples, random)
                counted_s, result = (
                    objective_s,
                    Simulation(profile, scheduling, exits, max_wait_s).open_loop(arrivals_s),
                )
            point = {"profile": named.name, "mix": mix.name, "arrivals": arrivals, "load": load, "policy": policy}
            yield {**point, **figures(result, counted_s, most)}
        say(f"{named.name}, mix {mix.name}, {arrivals} {load:g}")


def poisson(rate: float, samples: int, random: np.random.Generator) -> np.ndarray:
    """Times of independent arrivals, in seconds, rising. rate: arrivals a second."""
    return np.cumsum(random.exponential(1.0 / rate, samples))


def capacity(profile: CostProfile, mix: Mix) -> float:
    """The most answers a second: every step in its most efficient batch."""
    return 1.0 / sum(share * profile.best_sample_s(stage) for stage, share in enumerate(mix.reaching, start=1))


def figures(result: SimulationResult, objective_s: float | None, capacity: float) -> dict[str, float | None]:
    """Figures of a run without its warm-up. goodput: answers a second, within the objective if there is one.

    goodput_share: of the capacity. Latencies are None where nothing was answered.
    """
    order = np.argsort(result.arrived_s, kind="stable")[int(WARM_UP_SHARE * len(result.arrived_s)) :]
    arrived_s, latency_s = result.arrived_s[order], result.latency_s[order]
    span_s = arrived_s[-1] - arrived_s[0]
    answered_s = latency_s[~np.isnan(latency_s)]
    p50_ms, p99_ms = (float(1e3 * np.quantile(answered_s, q)) if len(answered_s) else None for q in (0.5, 0.99))
    goodput = float(np.sum(answered_s <= (math.inf if objective_s is None else objective_s)) / span_s)
    return {
        "objective_ms": None if objective_s is None else 1e3 * objective_s,
        "goodput": goodput,
        "goodput_share": goodput / capacity,
        "throughput": float(len(answered_s) / span_s),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "refused": 1.0 - len(answered_s) / len(latency_s),
        "mean_batch": result.mean_batch,
    }
