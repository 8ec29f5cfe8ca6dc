"""Slowdown attack: what it does to compute, and what limits of clients leave of it for an honest one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.open_loop import OpenJob, Sent, run_open_loop
from benchmarks.peers.requests import write_requests
from benchmarks.slowdown import Attack, slowed
from benchmarks.stats import spread
from benchmarks.thresholds import interleaved
from benchmarks.trust.answers import accuracy, answered, ask_each, exit_mix, mean_compute
from benchmarks.trust.loads import measured_of, outcome
from benchmarks.trust.setting import Listening, Setting, as_png, asks, encoded, say
from benchmarks.wrk import run_wrk
from models.cost import count_cost

HONEST, ATTACKER = "honest", "attacker"
# Of what the server answers attacked pictures at: the honest client's load, and the attacker's.
HONEST_LOAD, ATTACK_LOAD = 0.15, 1.5
ATTACK_CONNECTIONS, HONEST_CONNECTIONS = 128, 256
OBJECTIVE_S = 0.1
# Of what the server computes at most: each client's.
COMPUTE_SHARE = 0.3
DEEP_SHARE = 0.3


@dataclass(frozen=True)
class Siege:
    """Requests of both clients as folders; capacity: attacked pictures a second; gmacs: of one at full depth."""

    setting: Setting
    honest: Path
    attacker: Path
    capacity: float
    gmacs: float


def attack(setting: Setting) -> dict[str, Any]:
    """Compute of clean and attacked pictures; then both clients at once, by limits."""
    options, png = setting.options, setting.png
    plan = Attack(steps=options.attack_steps)
    count = min(options.attacked, len(png))
    attacked = as_png(slowed(setting.bundle, setting.pictures.images_NHWC[:count], plan))
    query = f"max_disagreement={setting.usual}"
    siege_of = {"honest": (HONEST, png[:count]), "attacker": (ATTACKER, attacked)}
    folders = {
        name: write_requests(asks(query, some, key), setting.folder / name) for name, (key, some) in siege_of.items()
    }
    keys = ("--api-keys", f"{HONEST},{ATTACKER}")
    gmacs = multiply_adds(setting) / 1e9
    with ExitStack() as stack:
        open_server = stack.enter_context(setting.serve(*keys))
        depth = [
            depth_row(setting, open_server, what, name, some)
            for name in (f"threshold={setting.bundle.threshold:g}", query)
            for what, some in (("clean", png[:count]), ("attacked", attacked))
        ]
        loops = [run_wrk(open_server.port, folders["attacker"], 64, options.seconds) for _ in range(2)]
        siege = Siege(setting, folders["honest"], folders["attacker"], loops[-1].throughput, gmacs)
        limit = COMPUTE_SHARE * siege.capacity * depth[-1]["compute"] * gmacs
        # What a client has saved up is gone by the end of the warm-up.
        compute = ("--client-gmacs-per-s", f"{limit:.3f}", "--client-burst-s", str(options.warmup_seconds))
        servers = {
            "honest alone": open_server,
            "no limit": open_server,
            "--client-gmacs-per-s": stack.enter_context(setting.serve(*keys, *compute)),
            "--client-deep-share": stack.enter_context(setting.serve(*keys, "--client-deep-share", str(DEEP_SHARE))),
        }
        cells = [besieged(siege, servers[way], way, n) for n, way in interleaved(tuple(servers), options.rounds)]
    return {
        "pictures": count,
        "attack": asdict(plan),
        "promise": setting.usual,
        "depth": depth,
        "capacity": siege.capacity,
        "honest_load": HONEST_LOAD,
        "attack_load": ATTACK_LOAD,
        "attack_connections": ATTACK_CONNECTIONS,
        "client_gmacs_per_s": limit,
        "client_burst_s": options.warmup_seconds,
        "client_deep_share": DEEP_SHARE,
        "objective_s": OBJECTIVE_S,
        "seconds": options.open_seconds,
        "rounds_each": options.rounds,
        "rows": [row(way, [cell for cell in cells if cell["way"] == way]) for way in servers],
        "rounds": cells,
    }


def multiply_adds(setting: Setting) -> float:
    """Of one picture at full depth."""
    return float(count_cost(setting.bundle.config).sequential_multiply_adds[-1])


def depth_row(setting: Setting, server: Listening, what: str, query: str, png: Sequence[bytes]) -> dict[str, Any]:
    """How deep these pictures go."""
    answers = ask_each(server.port, encoded(query, png, HONEST), setting.options.connections)
    found = {
        "pictures": what,
        "query": query,
        "compute": mean_compute(answers),
        "exit_mix": exit_mix(answers, setting.bundle.net.num_exits),
        "accuracy": accuracy(answers, setting.pictures.labels),
    }
    say(f"{found}")
    return found


def besieged(siege: Siege, server: Listening, way: str, round: int) -> dict[str, Any]:
    """Both clients at once, or the honest one alone."""
    options, seconds = siege.setting.options, siege.setting.options.open_seconds

    def client(folder: Path, connections: int, load: float, seed: int) -> list[Sent]:
        job = OpenJob(
            *(server.port, str(folder), connections, load * siege.capacity, options.warmup_seconds, seconds, seed),
            timeout_s=20.0,
            keep_bodies=True,
        )
        return measured_of(run_open_loop(job))

    with ThreadPoolExecutor(2) as pool:
        honest = pool.submit(client, siege.honest, HONEST_CONNECTIONS, HONEST_LOAD, 2 * round)
        if way == "honest alone":
            attacker: list[Sent] = []
        else:
            attacker = pool.submit(client, siege.attacker, ATTACK_CONNECTIONS, ATTACK_LOAD, 2 * round + 1).result()
        fate = outcome(honest.result(), seconds, OBJECTIVE_S)
    spent, theirs = (sum(one.compute for one in answered(sent)) for sent in (honest.result(), attacker))
    told = asdict(outcome(attacker, seconds, OBJECTIVE_S))
    cell = {
        "round": round,
        "way": way,
        "honest": asdict(fate),
        "attacker": {name: told[name] for name in ("offered_per_s", "answered_per_s", "refused", "failed")},
        "attacker_gmacs_per_s": siege.gmacs * theirs / seconds,
        "attacker_share": theirs / max(1e-9, spent + theirs),
    }
    say(f"{cell}")
    return cell


def row(way: str, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One way over all rounds: medians and extremes."""
    honest = {name: asdict(spread([c["honest"][name] for c in cells])) for name in ("goodput", "p50_ms", "p99_ms")}
    return {
        "way": way,
        "honest_offered_per_s": spread([cell["honest"]["offered_per_s"] for cell in cells]).median,
        **{f"honest_{name}": values for name, values in honest.items()},
        "honest_refused": asdict(spread([cell["honest"]["refused"] for cell in cells])),
        "attacker_refused": asdict(spread([cell["attacker"]["refused"] for cell in cells])),
        "attacker_answered_per_s": asdict(spread([cell["attacker"]["answered_per_s"] for cell in cells])),
        "attacker_gmacs_per_s": asdict(spread([cell["attacker_gmacs_per_s"] for cell in cells])),
        "attacker_share": asdict(spread([cell["attacker_share"] for cell in cells])),
        "failed": sum(cell[client]["failed"] for cell in cells for client in ("honest", "attacker")),
    }
