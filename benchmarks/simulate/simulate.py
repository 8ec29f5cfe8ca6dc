"""Goodput and latency by scheduling policy and load, simulated: the server's own scheduler on profiled steps.

A profile is what `CostProfile` writes, with "measured": true where it was measured; one without is marked as
hypothetical wherever it appears. Load 1 is the most that an engine can do, with every step in its most efficient batch.
Every policy gets the same arrivals and the same exits. HTTP is not simulated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import publish, say
from benchmarks.options import SimulateOptions, parse_names
from benchmarks.simulate.arrivals import ARRIVALS, Mix, read_mixes
from benchmarks.simulate.report import conclusions, simulation_section
from benchmarks.simulate.simulator import Fleet, Simulation, SimulationResult
from offramp.models.bundle import EMBEDDED, load_bundle
from offramp.models.device import choose_device
from offramp.server.engine.policies import POLICIES
from offramp.server.engine.profile import CostProfile, measure_profile
from offramp.server.engine.runners.choice import choose_runner

# Share of a run's requests that come before the queues have filled.
WARM_UP_SHARE = 0.2
OBJECTIVE_PASSES = 20.0
THIS_MACHINE = "this machine"
MAX_BATCH_SIZE = 32


@dataclass(frozen=True)
class NamedProfile:
    """A cost profile with its name. measured: on a real machine; otherwise it is hypothetical."""

    name: str
    measured: bool
    profile: CostProfile


def read_profile(path: Path) -> NamedProfile:
    """A profile from a file. Raises BenchmarkError for a file that is no JSON, ValueError for a wrong profile."""
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
    return NamedProfile(THIS_MACHINE, True, profile)


def run(options: SimulateOptions) -> None:
    """Simulate the server by policy and load, print the tables, write the JSON file."""
    publish(options.output, simulate(options), simulation_section, ("rows",))


def simulate(options: SimulateOptions) -> dict[str, Any]:
    """The result document."""
    head = provenance("simulate", options)
    profiles = [read_profile(Path(path)) for path in options.profile.split(",")] if options.profile else []
    if options.this_machine:
        profiles.insert(0, measure_this_machine())
    rows = [row for named in profiles for row in simulate_profile(options, named)]
    mixes = read_mixes(options.mix, profiles[0].profile.num_stages)
    return {
        **head,
        "profiles": {p.name: {"measured": p.measured, **p.profile.to_dict()} for p in profiles},
        "mixes": {mix.name: list(mix.shares) for mix in mixes},
        "samples_an_engine": options.samples,
        "dispatch": options.dispatch,
        "seed": options.seed,
        "rows": rows,
        "verdict": conclusions(rows),
    }


def objective_of(options: SimulateOptions, profile: CostProfile) -> float:
    """Seconds within which an answer counts."""
    alone_s = sum(profile.seconds(stage, 1) for stage in range(1, profile.num_stages + 1))
    return options.objective_ms / 1e3 or OBJECTIVE_PASSES * alone_s


def capacity(fleet: Fleet, mix: Mix) -> float:
    """Most answers a second of one engine: every step in its most efficient batch."""
    stages = enumerate(mix.reaching, start=1)
    return 1.0 / sum(reaching * fleet.profile.best_sample_s(stage) for stage, reaching in stages)


def simulate_profile(options: SimulateOptions, named: NamedProfile) -> Iterator[dict[str, Any]]:
    """A row for each mix, size of the fleet, load and policy."""
    policies = parse_names("policy", options.policy, POLICIES)
    offered = [*product(parse_names("arrivals", options.arrivals, ARRIVALS), options.numbers("load", float))]
    offered += [("closed", clients) for clients in options.numbers("clients", int)]
    objective_s = objective_of(options, named.profile)
    mixes = read_mixes(options.mix, named.profile.num_stages)
    for mix, engines, (kind, load) in product(mixes, options.numbers("engines", int), offered):
        for policy in policies:
            fleet = Fleet(
                named.profile,
                POLICIES[policy],
                named.profile.max_batch_size,
                engines,
                options.dispatch,
                # The wait decides about refusals, not the number: engines differ a thousandfold in speed.
                max_inflight=1_000_000,
                max_wait_s=options.max_wait_ms / 1e3 or objective_s / 2,
            )
            result = simulate_load(fleet, mix, kind, load, options)
            # Clients of a closed loop have no objective: their number sets the latency.
            counted_s = None if kind == "closed" else objective_s
            place = {"profile": named.name, "mix": mix.name, "arrivals": kind, "engines": engines, "load": load}
            yield {**place, "policy": policy, **figures(result, counted_s, capacity(fleet, mix) * engines)}
        say(f"{named.name}, mix {mix.name}, {kind} {load:g}, {engines} engines")


def simulate_load(fleet: Fleet, mix: Mix, kind: str, load: float, options: SimulateOptions) -> SimulationResult:
    """One run; the same seed gives every policy the same arrivals, exits and choices of engines."""
    random = np.random.default_rng(options.seed)
    samples = options.samples * fleet.engines
    exits = mix.draw(samples, random)
    if kind == "closed":
        patient = replace(fleet, max_wait_s=float("inf"))
        return Simulation(patient, exits, random).closed_loop(round(load) * fleet.engines)
    arrivals_s = ARRIVALS[kind](load * capacity(fleet, mix) * fleet.engines, samples, random)
    return Simulation(fleet, exits, random).open_loop(arrivals_s)


def figures(result: SimulationResult, objective_s: float | None, capacity: float) -> dict[str, float | None]:
    """Figures of a run without its warm-up. goodput: answers a second, within the objective if there is one.

    goodput_share: of the capacity. Latencies are None where nothing was answered.
    """
    order = np.argsort(result.arrived_s, kind="stable")[int(WARM_UP_SHARE * len(result.arrived_s)) :]
    arrived_s, latency_s = result.arrived_s[order], result.latency_s[order]
    span_s = arrived_s[-1] - arrived_s[0]
    answered_s = latency_s[~np.isnan(latency_s)]
    p50_ms, p99_ms = (float(1e3 * np.quantile(answered_s, q)) if len(answered_s) else None for q in (0.5, 0.99))
    in_time = answered_s if objective_s is None else answered_s[answered_s <= objective_s]
    goodput = float(len(in_time) / span_s)
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
