"""Figures from records: percentiles, spread over rounds, and what one run of the load generator measured."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.errors import BenchmarkError
from benchmarks.load import LoadResult, Record


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and their extremes."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Iterable[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` of the values do not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1] if ordered else math.nan


@dataclass(frozen=True)
class Measured:
    """What one timed run showed in its measured seconds.

    requests: answered with a prediction. errors: all others. throughput: predictions a second.
    p50_ms, p95_ms, p99_ms: latency of the answered ones; NaN without any.
    send_delay_p99_ms: how late the generator itself got round to sending; part of the latency of an open loop.
    """

    requests: int
    errors: int
    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    send_delay_p99_ms: float


def measure(result: LoadResult) -> Measured:
    """Closed loop: requests that were answered within the measured seconds; open loop: those due within them."""
    job = result.job
    assert job.duration_s is not None, "only a timed run can be measured"
    closed = job.rate is None
    window = [r for r in result.records if job.warmup_s <= (r.done_s if closed else r.due_s) < job.total_s]
    answered = [r for r in window if r.answered]
    latencies_ms = [1e3 * r.latency_s for r in answered]
    p50_ms, p95_ms, p99_ms = (percentile(latencies_ms, percent) for percent in (50, 95, 99))
    return Measured(
        requests=len(answered),
        errors=len(window) - len(answered),
        throughput=len(answered) / job.duration_s,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        send_delay_p99_ms=percentile((1e3 * (r.sent_s - r.due_s) for r in window), 99),
    )


@dataclass(frozen=True)
class Quality:
    """What the answers to one threshold are worth: accuracy (0..1) and how many left at exits 1, 2, …"""

    pictures: int
    accuracy: float
    exit_counts: tuple[int, ...]


def judge(records: Sequence[Record], labels: Sequence[str], num_exits: int) -> Quality:
    """Compare answers with the true labels. Raises BenchmarkError when a request failed: it would be no fair sample."""
    failed = [record for record in records if not record.answered]
    if failed:
        first = failed[0]
        raise BenchmarkError(f"{len(failed)} of {len(records)} requests failed, such as: {first.status} {first.error}")
    exits = Counter(record.exit for record in records)
    return Quality(
        pictures=len(records),
        accuracy=sum(record.label == labels[record.picture] for record in records) / len(records),
        exit_counts=tuple(exits[exit] for exit in range(1, num_exits + 1)),
    )
