"""Privacy: what hiding exits and answering in steps costs, and what response times still reveal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.harness.closed_loop import closed_loop
from benchmarks.harness.figures import Document, interleave, percentile, ratios, spread, table
from benchmarks.harness.figures import section as section_of
from benchmarks.serving.answers import ask_each, latencies_ms
from benchmarks.serving.trust.setup import TrustSetup

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


def measure(setup: TrustSetup) -> dict[str, Any]:
    """Interleaved rounds: requests alone, one after the other; then closed loops."""
    options, num_exits = setup.options, setup.bundle.net.num_exits
    png, folder = setup.png[: options.alone], setup.requests_folder(QUERY)

    def alone(way: str, number: int) -> list[float]:
        return latencies_ms(servers[way], png, QUERY)

    def throughput(way: str, number: int) -> float:
        return closed_loop(servers[way], folder, CONNECTIONS, options.seconds, may_fail=False).throughput

    with ExitStack() as stack:
        servers = {way: stack.enter_context(setup.serve(*flags)) for way, flags in WAYS.items()}
        requests = setup.requests(QUERY, len(png))
        exits = [answer.exit for answer in ask_each(servers["off"], requests, options.connections)]
        alone_ms = interleave({way: partial(alone, way) for way in WAYS}, options.rounds)
        speed = interleave({way: partial(throughput, way) for way in WAYS}, options.rounds)
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
                "throughput": spread(speed[way]),
                "ratio": ratios(speed[way], speed["off"]),
                "auroc_once": auroc(alone_ms[way][-1], exits, num_exits),
                "auroc_repeated": auroc([*map(statistics.median, zip(*alone_ms[way], strict=True))], exits, num_exits),
            }
            for way in WAYS
        ],
        "rounds": {"throughput": speed},
    }


def auroc(latencies_ms: Sequence[float], exits: Sequence[int], num_exits: int) -> float | None:
    """Area under the ROC curve of latency as a sign of the last exit against exit 1; 0.5 reveals nothing.

    None where no picture left at one of the two.
    """
    first, last = ([ms for ms, exit in zip(latencies_ms, exits, strict=True) if exit == k] for k in (1, num_exits))
    if not first or not last:
        return None
    return float(mannwhitneyu(last, first).statistic) / (len(first) * len(last))


def section(document: Document) -> str:
    """The table."""
    columns = {
        "server": "{way}",
        "p50 alone, ms": "{p50_ms:.2f}",
        "p99 alone, ms": "{p99_ms:.2f}",
        "pictures/s": "{throughput:.0f}",
        "against off": "{ratio:.2f×}",
        "AUROC, once": "{auroc_once:.3f}",
        "AUROC, repeated": "{auroc_repeated:.3f}",
    }
    how = (
        "Threshold {threshold:g}. Alone: {alone} pictures, one after the other; {first} of them leave at exit 1, "
        "{last} at the last. AUROC: how well the time of one answer, or the median over {rounds_each} rounds, "
        "separates the two; 0.5 is not at all. Throughput: closed loops of {connections} connections, {seconds} s "
        "each. Median (least–most) of {rounds_each} interleaved rounds. {served}."
    )
    return section_of(document, table(columns, document["rows"]), how)
