"""What the engine reports of itself, as data; metrics, logs and traces consume it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from models.exit_policy import ExitReason
from server.engine.profile import CostProfile


@dataclass(frozen=True)
class StepStats:
    """One step is over: `batch_size` samples through `stage` in `duration_s`."""

    stage: int
    batch_size: int
    duration_s: float


# A tuple, because there is one for each picture.
class SampleStats(NamedTuple):
    """One sample was answered at `exit` for `reason`; times in seconds."""

    exit: int
    reason: ExitReason
    confidence: float
    queue_s: float
    latency_s: float


@dataclass(frozen=True)
class CancelStats:
    """One sample was dropped because nobody waited for it any more: before stage 1 was run for it, or later.

    Its client is gone, or its request has failed by another picture: the engine cannot tell and need not.
    """

    phase: Literal["queued", "running"]


@dataclass(frozen=True)
class AuditReport:
    """One more sample was audited.

    exit: where it was answered; disagreed: with full depth. low, high: the confidence sequence for the rate of
    disagreement at that exit, from all audits so far; (0, 1) for the last exit. promise: the alarm that it counts for:
    what was promised by name, audit.OF_THRESHOLDS, or None for none. rings, evidence: how that alarm stands.
    """

    exit: int
    disagreed: bool
    low: float
    high: float
    promise: float | None
    rings: bool
    evidence: float


class Observer(Protocol):
    """Told of everything, on the event loop's thread."""

    def profile(self, profile: CostProfile) -> None: ...

    def step(self, stats: StepStats) -> None: ...

    def sample(self, stats: SampleStats) -> None: ...

    def cancelled(self, stats: CancelStats) -> None: ...

    def audited(self, report: AuditReport) -> None: ...

    def brownout(self, level: int) -> None: ...
