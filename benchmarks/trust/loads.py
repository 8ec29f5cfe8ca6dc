"""Open loops of whole requests, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.open_loop import OpenResult, Sent
from benchmarks.stats import percentile

# The generator waits with select(), which knows file descriptors below 1024.
MOST_CONNECTIONS = 900
REFUSALS = (429, 503)


@dataclass(frozen=True)
class Outcome:
    """Of the requests that were due in the measured seconds.

    offered_per_s, answered_per_s: all of them, and those with an answer. goodput: those with one in time, a second.
    refused: the share answered with 429 or 503. failed: the number that got anything else, or nothing.
    p50_ms, p99_ms: from when it was due to the answer; NaN without any.
    """

    offered_per_s: float
    answered_per_s: float
    goodput: float
    refused: float
    failed: int
    p50_ms: float
    p99_ms: float


def measured_of(result: OpenResult) -> list[Sent]:
    """Without the warm-up."""
    return [sent for sent in result.sent if sent.due_s >= result.job.warmup_s]


def outcome(sent: Sequence[Sent], seconds: float, objective_s: float) -> Outcome:
    """Of so many measured seconds. objective_s: what is in time."""
    late_s = [one.done_s - one.due_s for one in sent if one.status == 200]
    refused = sum(one.status in REFUSALS for one in sent)
    return Outcome(
        offered_per_s=len(sent) / seconds,
        answered_per_s=len(late_s) / seconds,
        goodput=sum(one <= objective_s for one in late_s) / seconds,
        refused=refused / max(1, len(sent)),
        failed=len(sent) - refused - len(late_s),
        p50_ms=1e3 * percentile(late_s, 50),
        p99_ms=1e3 * percentile(late_s, 99),
    )
