"""Events of the engine, as data. Metrics, logs and traces consume them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from offramp.models.exit_policy import ExitReason
from offramp.server.engine.profile import CostProfile


@dataclass(frozen=True)
class StepStats:
    """One step ended: `batch_size` samples through `stage` in `duration_s`."""

    stage: int
    batch_size: int
    duration_s: float


# A tuple: there is one for each picture.
class SampleStats(NamedTuple):
    """One sample was answered at `exit` for `reason`. Times in seconds."""

    exit: int
    reason: ExitReason
    confidence: float
    queue_s: float
    latency_s: float


@dataclass(frozen=True)
class CancelStats:
    """One sample was dropped before stage 1 (queued) or later (running): nothing waited for it any more.

    The client is gone, or another picture of the request has failed.
    """

    phase: Literal["queued", "running"]


@dataclass(frozen=True)
class AuditReport:
    """One more sample was audited.

    exit: where it was answered. disagreed: with full depth. low, high: confidence sequence of the disagreement rate at
    that exit, from all audits so far; (0, 1) for the last exit. promise: key of the alarm that it counts for: the
    certified disagreement, audit.THRESHOLDS, or None. rings, evidence: state of that alarm.
    """

    exit: int
    disagreed: bool
    low: float
    high: float
    promise: float | None
    rings: bool
    evidence: float


@dataclass(frozen=True)
class BrownoutLevel:
    """The brownout has a new level."""

    level: int


Event = CostProfile | StepStats | SampleStats | CancelStats | AuditReport | BrownoutLevel

# Called with every event, on the event loop's thread.
Observer = Callable[[Event], None]
