"""Privacy: what hiding exits and answering in steps costs, and what response times still tell an observer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.errors import BenchmarkError
from benchmarks.server_costs import asked
from benchmarks.stats import percentile, spread
from benchmarks.thresholds import interleaved
from benchmarks.trust.answers import ask_each
from benchmarks.trust.setting import Setting, say
from benchmarks.wrk import run_wrk

WAYS: dict[str, tuple[str, ...]] = {
    "off": (),
    "private": ("--private",),
    "private, 10 ms": ("--private", "--answer-step-ms", "10"),
    "private, 25 ms": ("--private", "--answer-step-ms", "25"),
}
# The bundle's own threshold: in private mode nobody may name one.
QUERY = "top_k=1"
# So many that waiting for a step does not leave the server idle.
CONNECTIONS = 256
LOAD_PICTURES = 2000


def privacy(setting: Setting) -> dict[str, Any]:
    """Rounds by turns: requests alone, one after the other; then closed loops."""
    options = setting.options
    png = setting.png[: options.alone]
    folder = setting.requests_folder(QUERY, LOAD_PICTURES)
    alone: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    loops: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        servers = {way: stack.enter_context(setting.serve(*flags)) for way, flags in WAYS.items()}
        requests = setting.requests(QUERY, len(png))
        exits = [answer.exit for answer in ask_each(servers["off"].port, requests, options.connections)]
        for _, way in interleaved(tuple(WAYS), options.rounds):
            alone[way].append([1e3 * seconds for seconds in asked(servers[way].port, png, QUERY)])
        for _, way in interleaved(tuple(WAYS), options.rounds):
            run_wrk(servers[way].port, folder, CONNECTIONS, 1)
            loop = run_wrk(servers[way].port, folder, CONNECTIONS, options.seconds)
            if loop.errors:
                raise BenchmarkError(f"{loop.errors} requests failed while privacy was timed")
            loops[way].append(loop.throughput)
    rows = [row(way, alone[way], loops[way], loops["off"], exits, setting.bundle.net.num_exits) for way in WAYS]
    return {
        "threshold": setting.bundle.threshold,
        "alone": len(png),
        "connections": CONNECTIONS,
        "seconds": options.seconds,
        "rounds_each": options.rounds,
        "first": exits.count(1),
        "last": exits.count(setting.bundle.net.num_exits),
        "rows": rows,
        "rounds": {"throughput": loops},
    }


def row(
    way: str,
    alone_ms: Sequence[Sequence[float]],
    loops: Sequence[float],
    off: Sequence[float],
    exits: Sequence[int],
    num_exits: int,
) -> dict[str, Any]:
    """One way. alone_ms: by round, of each picture. loops, off: throughput by round."""
    told = {
        "way": way,
        "p50_ms": asdict(spread([percentile(round_ms, 50) for round_ms in alone_ms])),
        "p99_ms": asdict(spread([percentile(round_ms, 99) for round_ms in alone_ms])),
        "throughput": asdict(spread(loops)),
        "ratio": asdict(spread([ours / theirs for ours, theirs in zip(loops, off, strict=True)])),
        "auroc_once": told_apart(alone_ms[-1], exits, num_exits),
        "auroc_repeated": told_apart([statistics.median(one) for one in zip(*alone_ms, strict=True)], exits, num_exits),
    }
    say(f"{told}")
    return told


def told_apart(latencies_ms: Sequence[float], exits: Sequence[int], num_exits: int) -> float | None:
    """How well latency tells the last exit from exit 1: the area under the ROC curve; 0.5 is not at all.

    None where either has no picture.
    """
    first, last = ([ms for ms, exit in zip(latencies_ms, exits, strict=True) if exit == k] for k in (1, num_exits))
    if not first or not last:
        return None
    return float(mannwhitneyu(last, first).statistic) / (len(first) * len(last))
