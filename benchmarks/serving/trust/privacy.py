"""Privacy: what hiding exits and answering in steps costs, and what response times still reveal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.harness.closed_loop import closed_loop
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import interleaved, percentile, ratios, spread
from benchmarks.harness.results import say
from benchmarks.serving.answers import ask_each, latencies_ms
from benchmarks.serving.trust.setup import LOAD_PICTURES, Setup

WAYS: dict[str, tuple[str, ...]] = {
    "off": (),
    "private": ("--private",),
    "private, 10 ms": ("--private", "--answer-step-ms", "10"),
    "private, 25 ms": ("--private", "--answer-step-ms", "25"),
}
# The bundle's own threshold: in private mode no request may name one.
QUERY = "top_k=1"
# So many that waiting for a step does not leave the server idle.
CONNECTIONS = 256


def measure_privacy(setup: Setup) -> dict[str, Any]:
    """Rounds by turns: requests alone, one after the other; then closed loops."""
    options, num_exits = setup.options, setup.bundle.net.num_exits
    png, folder = setup.pictures.png[: options.alone], setup.requests_folder(QUERY, LOAD_PICTURES)
    alone_ms: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    throughput: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        servers = {way: stack.enter_context(setup.serve(*flags)) for way, flags in WAYS.items()}
        requests = setup.requests(QUERY, len(png))
        exits = [answer.exit for answer in ask_each(servers["off"], requests, options.connections)]
        for _, way in interleaved(tuple(WAYS), options.rounds):
            alone_ms[way].append(latencies_ms(servers[way], png, QUERY))
        for _, way in interleaved(tuple(WAYS), options.rounds):
            loop = closed_loop(servers[way], folder, CONNECTIONS, options.seconds, must_answer=False)
            if loop.errors:
                raise BenchmarkError(f"{loop.errors} requests failed while privacy was timed")
            throughput[way].append(loop.throughput)
            say(f"{way}: {loop.throughput:.0f} pictures/s")
    return {
        "threshold": setup.bundle.threshold,
        "alone": len(png),
        "connections": CONNECTIONS,
        "seconds": options.seconds,
        "rounds_each": options.rounds,
        "first": exits.count(1),
        "last": exits.count(num_exits),
        "rows": [
            {
                "way": way,
                "p50_ms": spread(percentile(round_ms, 50) for round_ms in alone_ms[way]),
                "p99_ms": spread(percentile(round_ms, 99) for round_ms in alone_ms[way]),
                "throughput": spread(throughput[way]),
                "ratio": ratios(throughput[way], throughput["off"]),
                "auroc_once": auroc(alone_ms[way][-1], exits, num_exits),
                "auroc_repeated": auroc(
                    [statistics.median(times_ms) for times_ms in zip(*alone_ms[way], strict=True)], exits, num_exits
                ),
            }
            for way in WAYS
        ],
        "rounds": {"throughput": throughput},
    }


def auroc(latencies_ms: Sequence[float], exits: Sequence[int], num_exits: int) -> float | None:
    """Area under the ROC curve of latency as a sign of the last exit against exit 1; 0.5 reveals nothing.

    None where either has no picture.
    """
    first, last = ([ms for ms, exit in zip(latencies_ms, exits, strict=True) if exit == k] for k in (1, num_exits))
    if not first or not last:
        return None
    return float(mannwhitneyu(last, first).statistic) / (len(first) * len(last))
