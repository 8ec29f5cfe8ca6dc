"""Slowdown attack: its effect on compute, and how limits of clients protect an honest client beside it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import closed_loop
from benchmarks.harness.figures import interleaved, spread
from benchmarks.harness.open_loop import Load, Sent, run_load
from benchmarks.harness.pictures import as_png
from benchmarks.harness.requests import write_requests
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.serving.answers import accuracy, ask_each, exit_mix, mean_compute, read_answers
from benchmarks.serving.trust.setup import Setup, encode_all, goodput_figures
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
class Clients:
    """Requests of both clients as folders. capacity: attacked pictures a second. gmacs: of one at full depth."""

    setup: Setup
    honest: Path
    attacker: Path
    capacity: float
    gmacs: float


def measure_attack(setup: Setup) -> dict[str, Any]:
    """Compute of clean and attacked pictures; then both clients at once, by limits."""
    options, parameters = setup.options, SlowdownAttack(steps=setup.options.attack_steps)
    clean = setup.pictures.png[: options.attacked]
    attacked = as_png(slow_down(setup.bundle, setup.pictures.images_NHWC[: len(clean)], parameters))
    query, keys = f"max_disagreement={setup.usual}", ("--api-keys", f"{HONEST},{ATTACKER}")
    honest = write_requests(encode_all(query, clean, HONEST), setup.folder / HONEST)
    attacker = write_requests(encode_all(query, attacked, ATTACKER), setup.folder / ATTACKER)
    gmacs = count_cost(setup.bundle.config).sequential_multiply_adds[-1] / 1e9
    with ExitStack() as stack:
        unlimited = stack.enter_context(setup.serve(*keys))
        depth = [
            measure_depth(setup, unlimited, what, name, some)
            for name in (f"threshold={setup.bundle.threshold:g}", query)
            for what, some in (("clean", clean), ("attacked", attacked))
        ]
        loop = closed_loop(unlimited, attacker, options.connections, options.seconds, warmup_s=options.seconds)
        limit = COMPUTE_SHARE * loop.throughput * depth[-1]["compute"] * gmacs
        # What a client has saved up is gone by the end of the warm-up.
        compute = ("--client-gmacs-per-s", f"{limit:.3f}", "--client-burst-s", str(options.warmup_seconds))
        servers = {
            "honest alone": unlimited,
            "no limit": unlimited,
            "--client-gmacs-per-s": stack.enter_context(setup.serve(*keys, *compute)),
            "--client-deep-share": stack.enter_context(setup.serve(*keys, "--client-deep-share", str(DEEP_SHARE))),
        }
        clients = Clients(setup, honest, attacker, loop.throughput, gmacs)
        rounds = [
            measure_both(clients, servers[way], way, number)
            for number, way in interleaved(tuple(servers), options.rounds)
        ]
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
        "rows": [summarize(way, [each for each in rounds if each["way"] == way]) for way in servers],
        "rounds": rounds,
    }


def measure_depth(setup: Setup, server: Server, what: str, query: str, png: Sequence[bytes]) -> dict[str, Any]:
    """Compute and accuracy of these pictures."""
    answers = ask_each(server, encode_all(query, png, HONEST), setup.options.connections)
    return {
        "pictures": what,
        "query": query,
        "compute": mean_compute(answers),
        "exit_mix": exit_mix(answers, setup.bundle.net.num_exits),
        "accuracy": accuracy(answers, setup.pictures.class_ids),
    }


def measure_both(clients: Clients, server: Server, way: str, number: int) -> dict[str, Any]:
    """One round: both clients at once, or the honest one alone."""
    options = clients.setup.options
    seconds = options.open_seconds

    def send(folder: Path, connections: int, share: float, seed: int) -> tuple[Sent, ...]:
        timing = (seconds, share * clients.capacity, options.warmup_seconds)
        load = Load(server.port, connections, *timing, timeout_s=20.0, bodies=True, seed=seed)
        return run_load(load, folder).measured()

    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(send, clients.honest, HONEST_CONNECTIONS, HONEST_LOAD, 2 * number)
        attacker: tuple[Sent, ...] = ()
        if way != "honest alone":
            attacker = send(clients.attacker, ATTACK_CONNECTIONS, ATTACK_LOAD, 2 * number + 1)
        honest = sending.result()
    spent, theirs = (sum(answer.compute for answer in read_answers(sent)) for sent in (honest, attacker))
    of_attacker = asdict(goodput_figures(attacker, seconds, OBJECTIVE_S))
    figures = {
        "round": number,
        "way": way,
        "honest": asdict(goodput_figures(honest, seconds, OBJECTIVE_S)),
        "attacker": {name: of_attacker[name] for name in ("offered_per_s", "answered_per_s", "refused", "failed")},
        "attacker_gmacs_per_s": clients.gmacs * theirs / seconds,
        "attacker_share": theirs / max(1e-9, spent + theirs),
    }
    say(figures)
    return figures


def summarize(way: str, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One way over all rounds: medians and extremes."""
    honest = ("goodput", "p50_ms", "p99_ms", "refused")
    return {
        "way": way,
        "honest_offered_per_s": spread(each["honest"]["offered_per_s"] for each in rounds).median,
        **{f"honest_{name}": spread(each["honest"][name] for each in rounds) for name in honest},
        **{f"attacker_{name}": spread(each["attacker"][name] for each in rounds)
           for name in ("refused", "answered_per_s")},
        **{name: spread(each[name] for each in rounds) for name in ("attacker_gmacs_per_s", "attacker_share")},
        "failed": sum(each[client]["failed"] for each in rounds for client in ("honest", "attacker")),
    }  # fmt: skip
