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
    disagreement = {way: 1.0 - part["answers"]["offramp"][way]["agreement"] for way in on}
    closed = [cell for cell in part["cells"] if cell["server"] == "offramp" and cell["rate"] is None]
    throughput = {
        way: {(cell["round"], cell["against"]): cell["throughput"] for cell in closed if cell["way"] == way}
        for way in (off, *on)
    }
    over_off = {
        way: asdict(ratios(list(throughput[way].values()), [throughput[off][turn] for turn in throughput[way]]))
        for way in on
        if disagreement[way] <= TOLERATED
    }
    if not over_off:
        return "no threshold with so little disagreement was measured", False
    best = max(over_off, key=lambda way: over_off[way]["median"])
    return at_least(2.0, over_off[best], f", {best}, {disagreement[best]:.1%} disagreement", "×")


def over_peers(goal: float, exits_on: bool, made_for_us: bool, document: Document) -> Finding:
    """Throughput over the best ordinary peer, or over the one made for us."""
    (part, *_) = document["workloads"]
    ways = [way["name"] for way in part["ways"]]
    way = ways[-1] if exits_on else ways[0]
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
TARGETS = (
    Target("full depth, engine over the raw loop of the whole network", "≥ 0.95", ENGINE, full_depth),
    Target("exits, engine over the ideal", "≥ 0.85", ENGINE, ideal),
    Target(
        "CPU of a request beyond the engine", "≤ 0.30 ms", COSTS, partial(worst_threshold, 0.30, "cpu", "beyond_ms")
    ),
    Target("throughput, exits on over off, ≤ 1 % disagreement", "≥ 2.0×", PEERS, exits_pay),
    Target("throughput over the best ordinary peer, exits on", "≥ 5×", PEERS, partial(over_peers, 5.0, True, False)),
    Target("throughput over the best ordinary peer, exits off", "≥ 3×", PEERS, partial(over_peers, 3.0, False, False)),
    Target("throughput over FastAPI + OpenVINO, exits off", "> 1×", PEERS, partial(over_peers, 1.0, False, True)),
    Target("p99 over the peer's, at 70 % of its capacity", "≤ 0.5", PEERS, p99),
    Target(
        "latency of one request alone, beyond the network's",
        *("≤ 0.6 ms", COSTS, partial(worst_threshold, 0.6, "alone", "more_ms")),
    ),
    Target("memory over many requests", "flat", COSTS, flat),
    Target("from the command to readiness", "≤ 5 s", COSTS, ready),
)


def targets_section(results: Path) -> str:
    """Every target, what was measured, whether it is met, and the result file."""
    rows = []
    for target in TARGETS:
        path = results / target.file
        measured, met = target.measure(json.loads(path.read_text())) if path.exists() else ("not measured", False)
        met_words = "yes" if met else "**no**"
        rows.append(
            {"what": target.what, "goal": target.goal, "measured": measured, "met": met_words, "file": path.name}
        )
    return table({name: f"{{{name}}}" for name in ("what", "goal", "measured", "met")} | {"file": "`{file}`"}, rows)
