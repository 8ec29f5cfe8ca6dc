"""How far a simulation agrees with what was measured: the engine in this process, and the server over HTTP.

What requests cost the event loop and how much longer steps take beside it is fitted to the throughput of a few closed
loops; everything else is predicted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.simulate_fleet import Fleet, Outcome, Simulation
from benchmarks.simulate_load import Mix, poisson
from server.engine.profile import CostProfile

SAMPLES = 20_000
WARM_UP_SHARE = 0.1
# Fitting tries often, so with fewer: throughput is known sooner than a tail.
FITTING_SAMPLES = 2_500
# Where step and event loop both compute, a step's two threads and the loop's one have two cores.
SHARING = 2 / 3
CONTENDED_S = tuple(ms / 1e3 for ms in np.arange(0.0, 3.01, 0.25).tolist())
# The event loop's share of the time that a request takes of a closed loop in which it is the bottleneck, or nearly.
REQUEST_SHARES = tuple(np.arange(0.4, 1.0, 0.05).tolist())


@dataclass(frozen=True)
class Observed:
    """One loop that was measured, and its figures by name: throughput, p50_ms, p99_ms.

    clients: of a closed loop; 0: an open one, of Poisson arrivals at `rate` a second. request_s: what each request is
    known to cost the event loop, beyond what the fleet says. profile: what steps cost just before; None: as the
    fleet says.
    """

    mix: Mix
    figures: Mapping[str, float]
    clients: int = 0
    rate: float = 0.0
    request_s: float = 0.0
    profile: CostProfile | None = None

    @property
    def load(self) -> str:
        """For tables."""
        return f"{self.clients} clients" if self.clients else f"{self.rate:,.0f}/s"


@dataclass(frozen=True)
class Compared:
    """One figure, as measured and as predicted. error: of the prediction, relative to what was measured."""

    mix: str
    load: str
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """0.1 where the prediction is a tenth too high."""
        return self.predicted / self.measured - 1.0


def predict(fleet: Fleet, observed: Observed, seed: int = 0, samples: int = SAMPLES) -> dict[str, float]:
    """The figures of the same loop, simulated. Raises ValueError where the mix is of another number of exits."""
    mix = observed.mix
    if len(mix.shares) != fleet.profile.num_stages:
        raise ValueError(f"mix {mix.name!r} has {len(mix.shares)} exits, the profile {fleet.profile.num_stages} stages")
    # A bench is far from the limits: nobody is refused.
    fleet = replace(
        fleet,
        profile=observed.profile or fleet.profile,
        request_s=fleet.request_s + observed.request_s,
        max_wait_s=float("inf"),
        max_inflight=1_000_000,
    )
    random = np.random.default_rng(seed)
    simulation = Simulation(fleet, mix.draw(samples, random), random)
    if observed.clients:
        outcome = _warm(simulation.closed_loop(observed.clients))
    else:
        outcome = _warm(simulation.open_loop(poisson(observed.rate, samples, random)))
    p50_ms, p99_ms = 1e3 * np.quantile(outcome.latency_s, [0.5, 0.99])
    throughput = (len(outcome.arrived_s) - 1) / (outcome.arrived_s[-1] - outcome.arrived_s[0])
    return {"throughput": float(throughput), "p50_ms": float(p50_ms), "p99_ms": float(p99_ms)}


def compare(fleet: Fleet, observed: Sequence[Observed], seed: int = 0) -> list[Compared]:
    """Every figure that was measured, beside its prediction."""
    compared = []
    for one in observed:
        predicted = predict(fleet, one, seed)
        compared += [
            Compared(one.mix.name, one.load, name, value, predicted[name]) for name, value in one.figures.items()
        ]
    return compared


def fitted(
    fleet: Fleet, closed: Sequence[Observed], request_S: Sequence[float], samples: int = FITTING_SAMPLES
) -> Fleet:
    """The fleet with that request_s of those given, and that contended_s, with which these closed loops come out best.

    Best: their worst throughput is least wrong.
    """

    best, least_wrong = fleet, float("inf")
    for request_s, contended_s in product(request_S, CONTENDED_S):
        candidate = replace(fleet, request_s=request_s, contended_s=contended_s, sharing=SHARING)
        wrong = 0.0
        for one in closed:
            reached = predict(candidate, one, samples=samples)["throughput"]
            wrong = max(wrong, abs(reached / one.figures["throughput"] - 1.0))
            if wrong >= least_wrong:
                break
        else:
            best, least_wrong = candidate, wrong
    return best


def read_recorded(document: Mapping[str, Any]) -> tuple[list[Observed], list[Observed]]:
    """The closed and the open loop of each threshold of a result of `offramp bench thresholds`.

    In an open loop the generator computes more for each request, on the same cores. Raises BenchmarkError for any
    other document.
    """
    try:
        generator_s = {
            kind: np.median([cell["load_cpu_ms"] for cell in document["rounds"][kind]]) / 1e3
            for kind in ("closed_loop", "open_loop")
        }
        more_s = max(0.0, float(generator_s["open_loop"] - generator_s["closed_loop"]))
        closed, opened = [], []
        for row in document["rows"]:
            mix = Mix(f"{row['threshold']:g}", tuple(row["exit_mix"]))
            latency = {name: row[name]["median"] for name in ("p50_ms", "p99_ms")}
            closed.append(Observed(mix, {"throughput": row["throughput"]["median"]}, clients=document["connections"]))
            opened.append(Observed(mix, latency, rate=document["open_loop_rate"], request_s=more_s))
    except (KeyError, TypeError) as error:
        raise BenchmarkError(f"no result of `offramp bench thresholds`: {type(error).__name__}: {error}") from error
    return closed, opened


def over_http(fleet: Fleet, path: Path, seed: int = 0, samples: int = FITTING_SAMPLES) -> dict[str, Any]:
    """Fit to the closed loops of the first and the middle threshold of a recorded file, and predict all others.

    samples: of each loop that is simulated to fit.
    """
    try:
        closed, opened = read_recorded(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error
    fits = [closed[0], closed[len(closed) // 2]]
    whole_s = 1.0 / fits[0].figures["throughput"]
    fleet = fitted(fleet, fits, [share * whole_s for share in REQUEST_SHARES], samples)
    others = [one for one in closed if one not in fits]
    return {"recorded": path.name, **agreement(fleet, fits, [*others, *opened], seed)}


def agreement(fleet: Fleet, fits: Sequence[Observed], predicted: Sequence[Observed], seed: int = 0) -> dict[str, Any]:
    """What was fitted, to what, and every prediction; the median and the worst error of each figure."""
    compared = compare(fleet, predicted, seed)
    errors = {name: [abs(c.error) for c in compared if c.figure == name] for name in ("throughput", "p50_ms", "p99_ms")}
    return {
        "fitted_to": [f"{one.mix.name}, {one.load}" for one in fits],
        "request_ms": 1e3 * fleet.request_s,
        "contended_ms": 1e3 * fleet.contended_s,
        "step_ms": 1e3 * fleet.step_s,
        "sharing": fleet.sharing,
        "compared": [{**asdict(figure), "error": figure.error} for figure in compared],
        "errors": {
            name: {"median": float(np.median(some)), "worst": max(some)} for name, some in errors.items() if some
        },
    }


def agreement_section(document: Mapping[str, Any]) -> str:
    """The comparisons as Markdown tables: a line for each loop."""
    titles = {"engine": "The engine in one process, without HTTP", "http": "The server over HTTP"}
    return "\n\n".join(_table(title, document[name]) for name, title in titles.items() if document.get(name))


def _table(title: str, agreement: Mapping[str, Any]) -> str:
    lines = [
        f"**{title}.** Measured → simulated.",
        "",
        "| mix | load | answers/s | p50, ms | p99, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    loops: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in agreement["compared"]:
        loops.setdefault((row["mix"], row["load"]), {})[row["figure"]] = row
    for (mix, load), figures in loops.items():
        cells = [
            f"{row['measured']:,.{digits}f} → {row['predicted']:,.{digits}f} ({row['error']:+.0%})" if row else "–"
            for row, digits in ((figures.get("throughput"), 0), (figures.get("p50_ms"), 1), (figures.get("p99_ms"), 1))
        ]
        lines.append(f"| {mix} | {load} | {' | '.join(cells)} |")
    errors = "; ".join(
        f"{name.removesuffix('_ms')} {error['median']:.0%} in the median, {error['worst']:.0%} at worst"
        for name, error in agreement["errors"].items()
    )
    fits = f"""\
Errors: {errors}. Fitted to the throughput of {"; ".join(agreement["fitted_to"])}: {agreement["request_ms"]:.3f} ms of \
the event loop a request, {agreement["contended_ms"]:.2f} ms more for a step begun beside it, \
{agreement["step_ms"]:.2f} ms more for every step. While step and event loop overlap, both run at \
{agreement["sharing"]:.2f} of their speed."""
    return "\n".join([*lines, "", fits])


def _warm(outcome: Outcome) -> Outcome:
    """Without the first requests, and without the last, whose clients have nobody left beside them."""
    cut = int(WARM_UP_SHARE * len(outcome.arrived_s))
    return replace(outcome, arrived_s=outcome.arrived_s[cut:-cut], latency_s=outcome.latency_s[cut:-cut])


def alone_s(profile: CostProfile, mix: Mix) -> float:
    """Seconds of steps for one sample on its own, in the mean of its mix."""
    return sum(share * profile.seconds(stage, 1) for stage, share in enumerate(mix.reaching, start=1))
