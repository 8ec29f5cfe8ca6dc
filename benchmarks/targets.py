"""The targets beside what was measured: rows from several result files, and whether they are met."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.harness.figures import Document, fill, ratios, table

# A peer that we made, over the same OpenVINO network: no ordinary server.
MADE_FOR_US = "fastapi"
# Share of the answers that may be another class than at full depth.
TOLERATED = 0.01
MOST_MIB_PER_100K = 1.0

# What was measured, in words, and whether it is enough.
Finding = tuple[str, bool]


@dataclass(frozen=True)
class Target:
    """One row. measure: reads the document of the result file."""

    what: str
    goal: str
    file: str
    measure: Callable[[Document], Finding]


def at_least(goal: float, spread: Document, more: str = "", unit: str = "") -> Finding:
    """Compare the median."""
    return fill(f"{{spread:.2f{unit}}}{more}", {"spread": spread}), spread["median"] >= goal


def at_most(goal: float, spread: Document, more: str = "", unit: str = "") -> Finding:
    """Compare the median."""
    return at_least(goal, spread, more, unit)[0], spread["median"] <= goal


def full_depth(document: Document) -> Finding:
    """The engine at threshold 1 against the bare loop."""
    (row,) = (row for row in document["variants"] if row.get("threshold") == 1.0)
    return at_least(0.95, row["share_of_bare"])


def ideal(document: Document) -> Finding:
    """The engine against the ideal, at the threshold where its share is least."""
    rows = [row for row in document["variants"] if row.get("threshold", 1.0) < 1.0]
    worst = min(rows, key=lambda row: float(row["share_of_ideal"]["median"]))
    return at_least(0.85, worst["share_of_ideal"], f" at threshold {worst['threshold']:g}")


def worst_threshold(goal: float, rows: str, name: str, document: Document) -> Finding:
    """A cost of the server in ms, at the threshold where it is largest."""
    worst = max(document[rows], key=lambda row: float(row[name]["median"]))
    return at_most(goal, worst[name], f" at threshold {worst['threshold']:g}", " ms")


def ready(document: Document) -> Finding:
    """Seconds from the command to readiness."""
    return at_most(5.0, document["startup"]["ready_s"], unit=" s")


def flat(document: Document) -> Finding:
    """Growth of memory over many requests."""
    text = fill("{memory[mib_per_100k]:+.2f} MiB in 100,000 of {memory[requests]:,} requests", document)
    return text, abs(document["memory"]["mib_per_100k"]) < MOST_MIB_PER_100K


def exits_pay(document: Document) -> Finding:
    """Offramp with exits against without, in the fastest way with tolerated disagreement."""
    (part, *_) = document["workloads"]
    off, *on = [way["name"] for way in part["ways"]]
    answers = part["answers"]["offramp"]
    closed = [cell for cell in part["cells"] if cell["server"] == "offramp" and cell["rate"] is None]

    def throughput(way: str) -> dict[tuple[int, str], float]:
        return {(cell["round"], cell["against"]): cell["throughput"] for cell in closed if cell["way"] == way}

    best: tuple[Document, str, float] | None = None
    for way in on:
        disagreement, speed = 1.0 - answers[way]["agreement"], throughput(way)
        ratio = asdict(ratios(speed.values(), (throughput(off)[turn] for turn in speed)))
        if disagreement <= TOLERATED and (best is None or ratio["median"] > best[0]["median"]):
            best = ratio, way, disagreement
    if best is None:
        return "no threshold with so little disagreement was measured", False
    return at_least(2.0, best[0], f", {best[1]}, {best[2]:.1%} disagreement", "×")


def over_peers(goal: float, exits_on: bool, made_for_us: bool, document: Document) -> Finding:
    """Throughput over the best ordinary peer, or over the one made for us."""
    (part, *_) = document["workloads"]
    way = part["ways"][-1 if exits_on else 0]["name"]
    rows = [row for row in part["rows"] if (row["peer"] == MADE_FOR_US) == made_for_us]
    worst = min(rows, key=lambda row: float(row["ours"][way]["throughput_ratio"]["median"]))
    return at_least(goal, worst["ours"][way]["throughput_ratio"], f", {worst['title']} ({way})", "×")


def p99(document: Document) -> Finding:
    """p99 at the same load over each peer's, with the exits of the last way."""
    (part, *_) = document["workloads"]
    way = part["ways"][-1]["name"]
    by_peer = {row["title"]: float(row["ours"][way]["p99_ratio"]["median"]) for row in part["rows"]}
    peers = "; ".join(f"{title.partition(',')[0]} {ratio:.2f}" for title, ratio in by_peer.items())
    return f"{peers} ({way})", all(ratio <= 0.5 for ratio in by_peer.values())


ENGINE, COSTS, PEERS = "engine.json", "server-costs.json", "peers.json"
BEYOND_CPU, BEYOND_ALONE = (
    partial(worst_threshold, 0.30, "cpu", "beyond_ms"),
    partial(worst_threshold, 0.6, "alone", "more_ms"),
)
BEST_ON, BEST_OFF, OPENVINO = (
    partial(over_peers, *each) for each in ((5.0, True, False), (3.0, False, False), (1.0, False, True))
)
TARGETS = (
    Target("full depth, engine over the raw loop of the whole network", "≥ 0.95", ENGINE, full_depth),
    Target("exits, engine over the ideal", "≥ 0.85", ENGINE, ideal),
    Target("CPU of a request beyond the engine", "≤ 0.30 ms", COSTS, BEYOND_CPU),
    Target("throughput, exits on over off, ≤ 1 % disagreement", "≥ 2.0×", PEERS, exits_pay),
    Target("throughput over the best ordinary peer, exits on", "≥ 5×", PEERS, BEST_ON),
    Target("throughput over the best ordinary peer, exits off", "≥ 3×", PEERS, BEST_OFF),
    Target("throughput over FastAPI + OpenVINO, exits off", "> 1×", PEERS, OPENVINO),
    Target("p99 over the peer's, at 70 % of its capacity", "≤ 0.5", PEERS, p99),
    Target("latency of one request alone, beyond the network's", "≤ 0.6 ms", COSTS, BEYOND_ALONE),
    Target("memory over many requests", "flat", COSTS, flat),
    Target("from the command to readiness", "≤ 5 s", COSTS, ready),
)


def targets_section(results: Path) -> str:
    """Every target, what was measured, whether it is met, and the result file."""
    rows = []
    for target in TARGETS:
        path = results / target.file
        measured, met = target.measure(json.loads(path.read_text())) if path.exists() else ("not measured", False)
        rows.append({**vars(target), "measured": measured, "met": "yes" if met else "**no**"})
    return table({name: f"{{{name}}}" for name in ("what", "goal", "measured", "met")} | {"file": "`{file}`"}, rows)
