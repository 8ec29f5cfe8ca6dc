"""Goodput and latency by scheduling policy and load, simulated: the server's own scheduler on profiled steps.

    python -m benchmarks.simulate --profile profile-cpu.json --mix benchmarks/results/thresholds.json

A profile is what `server.engine.profile.CostProfile` writes, with "measured": true where it was measured; one without
is marked as hypothetical wherever it appears. Load 1 is what an engine could do at best, every step in its most
efficient batch. Every policy meets the same arrivals and the same exits. HTTP is left out, except where predictions
are compared with a server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from benchmarks.command_line import command_line
from benchmarks.errors import BenchmarkError
from benchmarks.machine import provenance
from benchmarks.simulate_agreement import over_http
from benchmarks.simulate_engine import engine_agreement, measure_engine
from benchmarks.simulate_fleet import Dispatch, Fleet, Outcome, Simulation
from benchmarks.simulate_load import ARRIVALS, Mix, read_mixes
from benchmarks.simulate_tables import Cell, simulation_section, simulation_verdict
from server.engine.policies import POLICIES
from server.engine.profile import CostProfile

# Of every run, this share of its requests comes before the queues are as full as they will be.
WARM_UP_SHARE = 0.2
OBJECTIVE_PASSES = 20.0
THIS_MACHINE = "this machine"


def parse_list(text: str, parse: Callable[[str], Any], what: str) -> tuple[Any, ...]:
    """ "1,2" -> (1, 2). Raises ValueError for anything that is no list of different numbers above 0."""
    try:
        values = tuple(parse(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"{what} {text!r}: give numbers, separated by commas") from None
    if len(set(values)) != len(values) or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{what} {text!r} are out of range: give different numbers above 0")
    return values


def parse_names(text: str, known: dict[str, Any], what: str) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b"), "all" -> all there are. Raises ValueError for unknown names."""
    names = tuple(known) if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in known:
            raise ValueError(f"{what} {name!r} is unknown: choose from {', '.join(known)}, or all")
    return names


@dataclass(frozen=True)
class SimulateOptions:
    """Options of `python -m benchmarks.simulate`. Raises ValueError for lists that are none."""

    mix: Annotated[
        Path, typer.Option(help="JSON file of exit mixes: a result of `offramp bench thresholds`, or lists by name.")
    ]
    profile: Annotated[str, typer.Option(help="JSON files of cost profiles, separated by commas.")] = ""
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where the CIFAR files lie: measure this machine's engine first, and simulate that too."),
    ] = None
    engine_seconds: Annotated[float, typer.Option(min=0.1, help="Of each loop through this machine's engine.")] = 3.0
    policy: Annotated[str, typer.Option(help="Policies, separated by commas; all: every one.")] = "all"
    load: Annotated[str, typer.Option(help="Shares of the capacity that are offered.")] = "0.3,0.5,0.7,0.8,0.9,1,1.2"
    arrivals: Annotated[str, typer.Option(help="poisson, bursts, diurnal, separated by commas; all.")] = "poisson"
    clients: Annotated[str, typer.Option(help="Closed loops besides: clients an engine, separated by commas.")] = ""
    engines: Annotated[str, typer.Option(help="Sizes of the fleet, separated by commas.")] = "1"
    dispatch: Annotated[str, typer.Option(help="two-choices (the less busy of two) or round-robin.")] = "two-choices"
    samples: Annotated[int, typer.Option(min=10, help="Requests an engine in each run.")] = 100_000
    objective_ms: Annotated[
        float, typer.Option(min=0, help="Latency within which an answer counts; 0: 20 full passes of one picture.")
    ] = 0.0
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="Predicted wait beyond which is refused; 0: half the objective.")
    ] = 0.0
    validate: Annotated[
        Path | None,
        typer.Option(help="A result of `offramp bench thresholds` to predict, with the first measured --profile."),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and exits.")] = 0
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/simulation.json")

    def __post_init__(self) -> None:
        if not self.profile and self.data_root is None:
            raise ValueError("no profile: give --profile, or --data-root to measure this machine's")
        parse_names(self.policy, POLICIES, "policy")
        parse_names(self.arrivals, ARRIVALS, "arrivals")
        parse_list(self.load, float, "loads")
        parse_list(self.clients, int, "clients")
        parse_list(self.engines, int, "engines")
        if self.dispatch not in get_args(Dispatch):
            raise ValueError(f"dispatch {self.dispatch!r} is unknown: choose from {', '.join(get_args(Dispatch))}")


@dataclass(frozen=True)
class NamedProfile:
    """A cost profile and where it comes from. measured: on a real machine; otherwise it is hypothetical."""

    name: str
    measured: bool
    profile: CostProfile


def read_profile(path: Path) -> NamedProfile:
    """Raises BenchmarkError for a file that holds no profile, and ValueError for a profile that is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{path} holds no cost profile: {error}") from error
    profile = CostProfile.from_dict(document)
    return NamedProfile(document.get("name", path.stem), document.get("measured", False) is True, profile)


def run(options: SimulateOptions) -> int:
    """Simulate the server by policy and load, print the tables, write the JSON file.

    python -m benchmarks.simulate --profile profile-cpu.json --mix benchmarks/results/thresholds.json
    """
    document = simulate(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(f"\n{simulation_section(document)}")
    typer.echo(f"\nwritten to {options.output}")
    typer.echo(json.dumps({name: value for name, value in document.items() if name != "rows"}))
    return 0


def simulate(options: SimulateOptions) -> dict[str, Any]:
    """The result document."""
    head = {"benchmark": "simulate", **provenance()}
    profiles = [read_profile(Path(path)) for path in options.profile.split(",")] if options.profile else []
    engine = None
    if options.data_root:
        measured = measure_engine(options.data_root, options.engine_seconds)
        profiles.insert(0, NamedProfile(THIS_MACHINE, True, measured.profile))
        engine = engine_agreement(_fleet(options, measured.profile), measured.loops, options.seed)
    rows = [row for named in profiles for row in _rows(options, named)]
    first, http = profiles[0].profile, None
    if options.validate:
        recorded_on = next((p.profile for p in profiles if p.measured and p.name != THIS_MACHINE), first)
        http = over_http(_fleet(options, recorded_on), options.validate, options.seed)
    return {
        **head,
        "profiles": {p.name: {"measured": p.measured, **p.profile.to_dict()} for p in profiles},
        "mixes": {mix.name: list(mix.shares) for mix in read_mixes(options.mix, first.num_stages)},
        "samples_an_engine": options.samples,
        "dispatch": options.dispatch,
        "seed": options.seed,
        "rows": rows,
        "verdict": simulation_verdict(rows),
        "engine": engine,
        "http": http,
    }


def _fleet(options: SimulateOptions, profile: CostProfile) -> Fleet:
    objective_s = objective_of(options, profile)
    return Fleet(
        profile,
        POLICIES[parse_names(options.policy, POLICIES, "policy")[0]],
        profile.max_batch_size,
        dispatch=options.dispatch,  # type: ignore[arg-type]
        # The wait decides who is refused, not their number: engines differ a thousandfold in what they do a second.
        max_inflight=1_000_000,
        max_wait_s=options.max_wait_ms / 1e3 or objective_s / 2,
    )


def objective_of(options: SimulateOptions, profile: CostProfile) -> float:
    """Seconds within which an answer counts."""
    alone_s = sum(profile.seconds(stage, 1) for stage in range(1, profile.num_stages + 1))
    return options.objective_ms / 1e3 or OBJECTIVE_PASSES * alone_s


def capacity(fleet: Fleet, mix: Mix) -> float:
    """Answers a second of one engine at best: every step in its most efficient batch."""
    stages = enumerate(mix.reaching, start=1)
    return 1.0 / sum(reaching * fleet.profile.best_sample_s(stage) for stage, reaching in stages)


def _rows(options: SimulateOptions, named: NamedProfile) -> Iterator[dict[str, Any]]:
    base = _fleet(options, named.profile)
    policies = parse_names(options.policy, POLICIES, "policy")
    arrivals = parse_names(options.arrivals, ARRIVALS, "arrivals")
    offered = [*product(arrivals, parse_list(options.load, float, "loads"))]
    offered += [("closed", clients) for clients in parse_list(options.clients, int, "clients")]
    mixes = read_mixes(options.mix, named.profile.num_stages)
    for mix, engines, (kind, load) in product(mixes, parse_list(options.engines, int, "engines"), offered):
        cell = Cell(named.name, mix.name, kind, engines, load)
        for policy in policies:
            fleet = replace(base, policy=POLICIES[policy], engines=engines)
            outcome = simulated(fleet, mix, kind, load, options)
            # Clients of a closed loop wait as long as they must: their number sets the latency.
            objective_s = None if kind == "closed" else objective_of(options, named.profile)
            figures = measure(outcome, objective_s, capacity(fleet, mix) * engines)
            yield {**asdict(cell), "policy": policy, **figures}
        typer.echo(f"{named.name}, mix {mix.name}, {kind} {load:g}, {engines} engines", err=True)


def simulated(fleet: Fleet, mix: Mix, kind: str, load: float, options: SimulateOptions) -> Outcome:
    """One run; the same seed gives every policy the same arrivals, exits and choices of engines."""
    random = np.random.default_rng(options.seed)
    samples = options.samples * fleet.engines
    exits = mix.draw(samples, random)
    if kind == "closed":
        endless = replace(fleet, max_wait_s=float("inf"))
        return Simulation(endless, exits, random).closed_loop(round(load) * fleet.engines)
    arrivals_s = ARRIVALS[kind](load * capacity(fleet, mix) * fleet.engines, samples, random)
    return Simulation(fleet, exits, random).open_loop(arrivals_s)


def measure(outcome: Outcome, objective_s: float | None, capacity: float) -> dict[str, float | None]:
    """Figures of a run without its warm-up. goodput: answers a second, within the objective where there is one.

    goodput_share: of the capacity. Latencies are None where nobody was answered.
    """
    order = np.argsort(outcome.arrived_s, kind="stable")[int(WARM_UP_SHARE * len(outcome.arrived_s)) :]
    arrived_s, latency_s = outcome.arrived_s[order], outcome.latency_s[order]
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
        "mean_batch": outcome.mean_batch,
    }


if __name__ == "__main__":
    command_line(SimulateOptions, run)
