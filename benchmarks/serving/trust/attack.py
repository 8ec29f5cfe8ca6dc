"""Slowdown attack: its effect on compute, and how limits of clients protect an honest client beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import closed_loop
from benchmarks.harness.figures import Document, interleave, spread, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import Load, LoadResult, Sent, ServiceFigures, service_figures, start_load
from benchmarks.harness.pictures import as_png
from benchmarks.harness.requests import predictions
from benchmarks.harness.server import Server
from benchmarks.serving.answers import accuracy, ask_each, exit_mix, mean_compute, read_answers
from benchmarks.serving.trust.setup import TrustSetup
from benchmarks.serving.trust.slowdown import SlowdownAttack, slow_down
from offramp.models.cost import count_cost

HONEST, ATTACKER = "honest", "attacker"
# Shares of the rate at which the server answers attacked pictures: the honest client's load, and the attacker's.
HONEST_LOAD, ATTACK_LOAD = 0.15, 1.5
ATTACK_CONNECTIONS, HONEST_CONNECTIONS = 128, 256
OBJECTIVE_S = 0.1
# Share of the compute at capacity that each client may use.
COMPUTE_SHARE = 0.3
DEEP_SHARE = 0.3


@dataclass(frozen=True)
class AttackRound:
    """Both clients in one round. attacker_share: of the compute that both used."""

    honest: ServiceFigures
    attacker: ServiceFigures
    attacker_gmacs_per_s: float
    attacker_share: float


@dataclass(frozen=True)
class Clients:
    """Both clients. folders: of requests. capacity: attacked pictures a second. gmacs: of a picture at full depth."""

    setup: TrustSetup
    folders: dict[str, Path]
    capacity: float
    gmacs: float

    def measure(self, server: Server, alone: bool, number: int) -> AttackRound:
        """One round with both clients at once, or the honest one alone."""
        seconds = self.setup.options.open_seconds
        finish_honest = self._start(server, HONEST, HONEST_CONNECTIONS, HONEST_LOAD, 2 * number)
        attacker: tuple[Sent, ...] = ()
        if not alone:
            attacker = self._start(server, ATTACKER, ATTACK_CONNECTIONS, ATTACK_LOAD, 2 * number + 1)().measured()
        honest = finish_honest().measured()
        passes, attacker_passes = (sum(each.compute for each in read_answers(sent)) for sent in (honest, attacker))
        return AttackRound(
            service_figures(honest, seconds, OBJECTIVE_S),
            service_figures(attacker, seconds, OBJECTIVE_S),
            attacker_gmacs_per_s=self.gmacs * attacker_passes / seconds,
            attacker_share=attacker_passes / max(1e-9, passes + attacker_passes),
        )

    def _start(
        self, server: Server, client: str, connections: int, share: float, seed: int
    ) -> Callable[[], LoadResult]:
        options = self.setup.options
        timing = (options.open_seconds, share * self.capacity, options.warmup_seconds)
        load = Load(server.port, connections, *timing, timeout_s=20.0, bodies=True, seed=seed)
        return start_load(load, self.folders[client])


def measure(setup: TrustSetup) -> dict[str, Any]:
    """Compute of clean and attacked pictures; then both clients at once, by limits."""
    options, parameters = setup.options, SlowdownAttack(steps=setup.options.attack_steps)
    clean = setup.png[: options.attacked]
    attacked = as_png(slow_down(setup.bundle, setup.pictures.images_NHWC[: len(clean)], parameters))
    query, keys = f"max_disagreement={setup.usual}", ("--api-keys", f"{HONEST},{ATTACKER}")
    folders = {
        HONEST: setup.write(HONEST, predictions(clean, query, HONEST)),
        ATTACKER: setup.write(ATTACKER, predictions(attacked, query, ATTACKER)),
    }
    gmacs = count_cost(setup.bundle.config).sequential_multiply_adds[-1] / 1e9
    with ExitStack() as stack:
        unlimited = stack.enter_context(setup.serve(*keys))
        depth = [
            measure_depth(setup, unlimited, what, each, png)
            for each in (f"threshold={setup.bundle.threshold:g}", query)
            for what, png in (("clean", clean), ("attacked", attacked))
        ]
        loop = closed_loop(unlimited, folders[ATTACKER], options.connections, options.seconds, options.seconds)
        limit = COMPUTE_SHARE * loop.throughput * depth[-1]["compute"] * gmacs
        # A client spends its savings during the warm-up.
        compute = ("--client-gmacs-per-s", f"{limit:.3f}", "--client-burst-s", str(options.warmup_seconds))
        servers = {
            "honest alone": unlimited,
            "no limit": unlimited,
            "--client-gmacs-per-s": stack.enter_context(setup.serve(*keys, *compute)),
            "--client-deep-share": stack.enter_context(setup.serve(*keys, "--client-deep-share", str(DEEP_SHARE))),
        }
        clients = Clients(setup, folders, loop.throughput, gmacs)
        ways = {way: partial(clients.measure, server, way == "honest alone") for way, server in servers.items()}
        rounds = interleave(ways, options.rounds)
    return {
        "pictures": len(clean),
        "attack": parameters,
        "promise": setup.usual,
        "depth": depth,
        "capacity": clients.capacity,
        "honest_load": HONEST_LOAD,
        "attack_load": ATTACK_LOAD,
        "attack_connections": ATTACK_CONNECTIONS,
        "client_gmacs_per_s": limit,
        "client_burst_s": options.warmup_seconds,
        "client_deep_share": DEEP_SHARE,
        "objective_s": OBJECTIVE_S,
        "seconds": options.open_seconds,
        "rounds_each": options.rounds,
        "rows": [{"way": way, **summarize(some)} for way, some in rounds.items()],
        "rounds": rounds,
    }


def measure_depth(setup: TrustSetup, server: Server, what: str, query: str, png: Sequence[bytes]) -> dict[str, Any]:
    """Compute and accuracy of these pictures."""
    answers = ask_each(server, predictions(png, query, HONEST), setup.options.connections)
    return {
        "pictures": what,
        "query": query,
        "compute": mean_compute(answers),
        "exit_mix": exit_mix(answers, setup.bundle.net.num_exits),
        "accuracy": accuracy(answers, setup.pictures.class_ids),
    }


def summarize(rounds: Sequence[AttackRound]) -> dict[str, Any]:
    """One way over all rounds: medians and extremes."""
    honest, attacker = [each.honest for each in rounds], [each.attacker for each in rounds]
    of_honest = spreads(honest, "goodput", "p50_ms", "p99_ms", "refused")
    of_attacker = spreads(attacker, "refused", "answered_per_s")
    return {
        "honest_offered_per_s": spread(each.offered_per_s for each in honest).median,
        **{f"honest_{name}": value for name, value in of_honest.items()},
        **{f"attacker_{name}": value for name, value in of_attacker.items()},
        **spreads(rounds, "attacker_gmacs_per_s", "attacker_share"),
        "failed": sum(each.failed for each in (*honest, *attacker)),
    }


def section(document: Document) -> str:
    """The compute of attacked pictures, and both clients by limits."""
    depth = {
        "query": "`{query}`",
        "pictures": "{pictures}",
        "compute": "{compute:.1%}",
        "exit mix, %": "{exit_mix:.0f}",
        "accuracy": "{accuracy:.1%}",
    }
    columns = {
        "limit": "{way}",
        "honest p50, ms": "{honest_p50_ms:.1f}",
        "honest p99, ms": "{honest_p99_ms:.1f}",
        "honest in time/s": "{honest_goodput:.0f}",
        "honest refused": "{honest_refused[median]:.1%}",
        "attacker refused": "{attacker_refused[median]:.1%}",
        "attacker, GMAC/s": "{attacker_gmacs_per_s:.1f}",
        "attacker's share": "{attacker_share[median]:.0%}",
        "failed": "{failed}",
    }
    attacked = (
        "{pictures} test pictures, each changed by at most {attack[reach]:g} of 255, {attack[steps]} steps of gradient "
        "descent with the network's own weights."
    )
    how = (
        "max_disagreement {promise}. The attacker sends {attack_load:g} times the {capacity:.0f} attacked pictures/s "
        "that the server can answer, over {attack_connections} connections; the honest client {honest_load:g} times, "
        "of the same pictures unchanged. Poisson arrivals. Limits: {client_gmacs_per_s:.1f} billion multiply-adds/s "
        "with --client-burst-s {client_burst_s:g}; deep share {client_deep_share:g}. In time: within {objective_s:g} "
        "s. Median (least–most) of {rounds_each} interleaved rounds of {seconds} s. {served}."
    )
    return section_of(document, attacked, table(depth, document["depth"]), table(columns, document["rows"]), how)
