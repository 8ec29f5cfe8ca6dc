"""What goes into the engine and what comes out: contract, sample, visit, answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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

    def check_depth(self, num_stages: int) -> None:
        """Raises ValueError where the rule is for a network of another depth."""
        if len(self.rule.limits) != num_stages:
            raise ValueError(
                f"a rule for {len(self.rule.limits)} exits is out of range: this network has {num_stages}; "
                f"give {num_stages - 1} thresholds"
            )


# Tuples, because there is one for each picture at each stage, and a frozen dataclass takes four times as long to make.
class Visit(NamedTuple):
    """One exit passed on the way: its calibrated answer."""

    exit: int
    class_id: int
    confidence: float


class Progress(NamedTuple):
    """How far a sample has come: every exit passed, and the calibrated probabilities at the deepest.

    probabilities_C: float32. queue_s: waited in all stage queues so far. inference_s: spent inside steps so far.
    """

    visited: tuple[Visit, ...]
    probabilities_C: npt.NDArray[np.float32]
    queue_s: float
    inference_s: float


class Answer(NamedTuple):
    """What a sample leaves with: how far it came, why it left there, and seconds from submit to leaving."""

    progress: Progress
    reason: ExitReason
    latency_s: float

    @property
    def exit(self) -> int:
        """The exit it left at, 1..K."""
        return self.progress.visited[-1].exit

    @property
    def class_id(self) -> int:
        """The most probable class."""
        return self.progress.visited[-1].class_id

    @property
    def confidence(self) -> float:
        """Its calibrated probability."""
        return self.progress.visited[-1].confidence

    @property
    def visited(self) -> tuple[Visit, ...]:
        """Every exit passed, the one it left at included."""
        return self.progress.visited

    @property
    def probabilities_C(self) -> npt.NDArray[np.float32]:
        """Calibrated probability of every class at the exit it left at."""
        return self.progress.probabilities_C

    @property
    def queue_s(self) -> float:
        """Seconds waited in stage queues."""
        return self.progress.queue_s

    @property
    def inference_s(self) -> float:
        """Seconds spent inside steps, batch-mates' work included."""
        return self.progress.inference_s


@dataclass(eq=False)
class Sample:
    """One picture on its way through the stages; the engine thread writes it, the event loop only reads.

    state: the runner's input for the next stage: the uint8 (H, W, 3) picture, then whatever the runner gave back.
    progress: replaced as a whole after each step, so that a reader on another thread never sees half of it.
    """

    state: Any = field(repr=False)
    contract: Contract
    future: asyncio.Future[Answer] = field(repr=False)
    submitted_s: float
    enqueued_s: float
    progress: Progress | None = None

    @property
    def abandoned(self) -> bool:
        """Nobody waits any more: the client is gone, or the deadline was answered."""
        return self.future.done()

    def answer(self, reason: ExitReason, now_s: float) -> Answer:
        """The answer of the deepest exit computed so far."""
        assert self.progress is not None
        return Answer(self.progress, reason, now_s - self.submitted_s)
