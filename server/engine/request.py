"""What goes into the engine and what comes out: contract, sample, visit, answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.exit_policy import ExitReason, ExitRule


@dataclass(frozen=True)
class Contract:
    """All that one request asks of the engine.

    rule: thresholds and depth bounds. deadline_s: absolute, on the engine's monotonic clock; None for none.
    """

    rule: ExitRule
    deadline_s: float | None = None


@dataclass(frozen=True)
class Visit:
    """One exit passed on the way: its calibrated answer."""

    exit: int
    class_id: int
    confidence: float


@dataclass(frozen=True)
class Answer:
    """What a sample leaves with.

    probabilities_C: calibrated, float32, at the exit it left. visited: every exit passed, the last included.
    queue_s: waiting in all stage queues; inference_s: inside steps; latency_s: from submit to leaving.
    """

    exit: int
    reason: ExitReason
    probabilities_C: npt.NDArray[np.float32] = field(repr=False)
    visited: tuple[Visit, ...]
    queue_s: float
    inference_s: float
    latency_s: float

    @property
    def class_id(self) -> int:
        """The most probable class."""
        return self.visited[-1].class_id

    @property
    def confidence(self) -> float:
        """Its calibrated probability."""
        return self.visited[-1].confidence


@dataclass(eq=False)
class Sample:
    """One picture on its way through the stages. The engine thread owns all but `future`.

    state: the runner's input for the next stage: the uint8 (H, W, 3) picture, then whatever the runner handed back.
    abandoned: set by the frontend when nobody waits any more; the sample is dropped at the next stage boundary.
    """

    state: Any = field(repr=False)
    contract: Contract
    future: asyncio.Future[Answer] = field(repr=False)
    submitted_s: float
    enqueued_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    visited: tuple[Visit, ...] = ()
    probabilities_C: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    abandoned: bool = False

    def answer(self, reason: ExitReason, now_s: float) -> Answer:
        """The answer of the deepest exit computed so far."""
        assert self.probabilities_C is not None
        return Answer(
            exit=self.visited[-1].exit,
            reason=reason,
            probabilities_C=self.probabilities_C,
            visited=self.visited,
            queue_s=self.queue_s,
            inference_s=self.inference_s,
            latency_s=now_s - self.submitted_s,
        )
