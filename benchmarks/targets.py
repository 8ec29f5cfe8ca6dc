"""The targets, each beside what was measured: rows from several result files, and whether they are met."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.stats import spread

Document = Mapping[str, Any]
Figures = Mapping[str, float]

# An opponent of our own making, over the same OpenVINO network: none that people have by default.
MADE_FOR_US = "fastapi"
# Share of the answers that may be another class than at full depth.
TOLERATED = 0.01


@dataclass(frozen=True)
class Target:
    """One row. goal: in words. measure: from the result file's document, what was measured and whether it is enough."""

    what: str
    goal: str
    file: str
    measure: Callable[[Document], tuple[str, bool]]


def at_least(goal: float, figures: Figures, words: str = "", unit: str = "") -> tuple[str, bool]:
    """The median counts."""
    return _told(figures, words, unit), figures["median"] >= goal


def at_most(goal: float, figures: Figures, words: str = "", unit: str = "") -> tuple[str, bool]:
    """The median counts."""
    return _told(figures, words, unit), figures["median"] <= goal


def _told(figures: Figures, words: str, unit: str) -> str:
    return f"{figures['median']:.2f}{unit} ({figures['min']:.2f}–{figures['max']:.2f}){words}"


def full_depth(document: Document) -> tuple[str, bool]:
    """Of the engine benchmark."""
    (row,) = (row for row in document["variants"] if row.get("threshold") == 1.0)
    return at_least(0.95, row["share_of_bare"])


def ideal(document: Document) -> tuple[str, bool]:
    """Of the engine benchmark, at the threshold where it is least."""
    rows = [row for row in document["variants"] if row.get("threshold", 1.0) < 1.0]
    worst = min(rows, key=lambda row: float(row["share_of_ideal"]["median"]))
    return at_least(0.85, worst["share_of_ideal"], f" at threshold {worst['threshold']:g}")


def exits_pay(document: Document) -> tuple[str, bool]:
    """Of the benchmark of peers, ours alone: the fastest way whose answers are nearly always full depth's."""
    (part, *_) = document["workloads"]
    off, *on = [way["name"] for way in part["ways"]]
    told = {way: 1.0 - part["answers"]["offramp"][way]["agreement"] for way in on}
    ours = [cell for cell in part["cells"] if cell["server"] == "offramp" and cell["rate"] is None]
    by_way = {
        way: {(cell["round"], cell["against"]): cell["throughput"] for cell in ours if cell["way"] == way}
        for way in (off, *on)
    }
    ratios = {
        way: asdict(spread([faster / by_way[off][turn] for turn, faster in by_way[way].items()]))
        for way in on
        if told[way] <= TOLERATED
    }
    if not ratios:
        return "no threshold with so little disagreement was measured", False
    best = max(ratios, key=lambda way: ratios[way]["median"])
    return at_least(2.0, ratios[best], f", {best}, {told[best]:.1%} disagreement", "×")


def beyond_engine(document: Document) -> tuple[str, bool]:
    """Of the server's costs, at the threshold where it is most."""
    worst = max(document["cpu"], key=lambda row: float(row["beyond_ms"]["median"]))
    return at_most(0.30, worst["beyond_ms"], f" at threshold {worst['threshold']:g}", " ms")


def one_alone(document: Document) -> tuple[str, bool]:
    """Of the server's costs, at the threshold where it is most."""
    worst = max(document["alone"], key=lambda row: float(row["more_ms"]["median"]))
    return at_most(0.6, worst["more_ms"], f" at threshold {worst['threshold']:g}", " ms")


def ready(document: Document) -> tuple[str, bool]:
    """Of the server's costs."""
    return at_most(5.0, document["startup"]["ready_s"], "", " s")


def flat(document: Document) -> tuple[str, bool]:
    """Of the server's costs: less than a mebibyte in 100,000 requests is flat."""
    memory = document["memory"]
    words = f"{memory['mib_per_100k']:+.2f} MiB in 100,000 of {memory['requests']:,} requests"
    return words, abs(memory["mib_per_100k"]) < 1.0


def over_peers(goal: float, exits_on: bool, made_for_us: bool) -> Callable[[Document], tuple[str, bool]]:
    """Throughput over the best of the ordinary peers, or over the one made for us."""

    def measure(document: Document) -> tuple[str, bool]:
        (part, *_) = document["workloads"]
        off, *on = [way["name"] for way in part["ways"]]
        way = on[-1] if exits_on else off
        rows = [row for row in part["rows"] if (row["peer"] == MADE_FOR_US) == made_for_us]
        worst = min(rows, key=lambda row: float(row["ours"][way]["throughput_ratio"]["median"]))
        return at_least(goal, worst["ours"][way]["throughput_ratio"], f", {worst['title']} ({way})", "×")

    return measure


def p99(document: Document) -> tuple[str, bool]:
    """At the same load, with the exits of the last way measured."""
    (part, *_) = document["workloads"]
    way = part["ways"][-1]["name"]
    by_peer = {row["title"]: float(row["ours"][way]["p99_ratio"]["median"]) for row in part["rows"]}
    words = "; ".join(f"{title.partition(',')[0]} {ratio:.2f}" for title, ratio in by_peer.items())
    return f"{words} ({way})", all(ratio <= 0.5 for ratio in by_peer.values())


TARGETS = (
    Target("full depth, engine over the raw loop of the whole network", "≥ 0.95", "engine.json", full_depth),
    Target("exits, engine over the ideal", "≥ 0.85", "engine.json", ideal),
    Target("CPU of a request beyond the engine", "≤ 0.30 ms", "server-costs.json", beyond_engine),
    Target("throughput, exits on over off, ≤ 1 % disagreement", "≥ 2.0×", "peers.json", exits_pay),
    Target("throughput over the best ordinary peer, exits on", "≥ 5×", "peers.json", over_peers(5.0, True, False)),
    Target("throughput over the best ordinary peer, exits off", "≥ 3×", "peers.json", over_peers(3.0, False, False)),
    Target("throughput over FastAPI + OpenVINO, exits off", "> 1×", "peers.json", over_peers(1.0, False, True)),
    Target("p99 over the peer's, at 70 % of its capacity", "≤ 0.5", "peers.json", p99),
    Target("latency of one request alone, beyond the network's", "≤ 0.6 ms", "server-costs.json", one_alone),
    Target("memory over many requests", "flat", "server-costs.json", flat),
    Target("from the command to readiness", "≤ 5 s", "server-costs.json", ready),
)


def targets_section(results: Path) -> str:
    """Markdown: every target, what was measured, whether it is met, and the file that says so."""
    lines = ["| what | goal | measured | met | file |", "| --- | ---: | --- | --- | --- |"]
    for target in TARGETS:
        path = results / target.file
        measured, met = target.measure(json.loads(path.read_text())) if path.exists() else ("not measured", False)
        lines.append(f"| {target.what} | {target.goal} | {measured} | {'yes' if met else '**no**'} | `{target.file}` |")
    return "\n".join(lines)
