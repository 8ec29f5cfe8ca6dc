"""What goes into the engine and what comes out: contract, sample, visit, answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.exit_policy import ExitReason, ExitRule


class Promise(NamedTuple):
    """Of traffic under a rule, at most the share `max_disagreement` is answered otherwise than at full depth.

    certified: asked for by that name; otherwise it is what is known of thresholds that were asked for.
    """

    max_disagreement: float
    certified: bool


class Rung(NamedTuple):
    """One way of keeping a contract. promise: None where nothing is known of the rule."""

    rule: ExitRule
    promise: Promise | None = None


@dataclass(frozen=True)
class Contract:
    """All that one request asks of the engine.

    rule: thresholds and depth bounds. deadline_s: absolute, on the engine's monotonic clock; None for none.
    promise: what is known of the rule. stricter: what may take its place when an audit finds the promise broken, the
    next first. looser: what may take its place under load, the next first.
    """

    rule: ExitRule
    deadline_s: float | None = None
    promise: Promise | None = None
    stricter: tuple[Rung, ...] = ()
    looser: tuple[Rung, ...] = ()

    def rung(self, at: int) -> Rung:
        """What was asked for (0), the n-th looser rung (n) or the n-th stricter one (-n)."""
        if at == 0:
            return Rung(self.rule, self.promise)
        return self.looser[at - 1] if at > 0 else self.stricter[-at - 1]

    def check_depth(self, num_stages: int) -> None:
        """Raises ValueError where a rule is for a network of another depth."""
        for rule in (self.rule, *(rung.rule for rung in (*self.stricter, *self.looser))):
            if len(rule.limits) != num_stages:
                raise ValueError(
                    f"a rule for {len(rule.limits)} exits is out of range: this network has {num_stages}; "
                    f"give {num_stages - 1} thresholds"
                )


# Tuples, because there is one for each picture at each stage, and a frozen dataclass takes four times as long to make.
class Visit(NamedTuple):
    """One exit passed on the way: its calibrated answer."""

    exit: int
    class_id: int
    confidence: float


class Answer(NamedTuple):
    """What a sample leaves with.

    visited: every exit passed, the one it left at included. probabilities_C: calibrated, of the exit it left at,
    float32. queue_s: waited in all stage queues. inference_s: spent inside steps, batch-mates' work included.
    latency_s: from submit to leaving. rung: of the contract, the one that was in force.
    """

    visited: tuple[Visit, ...]
    probabilities_C: npt.NDArray[np.float32]
    queue_s: float
    inference_s: float
    reason: ExitReason
    latency_s: float
    rung: int = 0

    @property
    def exit(self) -> int:
        """The exit it left at, 1..K."""
        return self.visited[-1].exit

    @property
    def class_id(self) -> int:
        """The most probable class."""
        return self.visited[-1].class_id

    @property
    def confidence(self) -> float:
        """Its calibrated probability."""
        return self.visited[-1].confidence


class Step(NamedTuple):
    """What one step computed, shared by all who were in it: the class and the confidence of each row."""

    stage: int
    class_ids: list[int]
    confidences: list[float]
    probabilities_BC: npt.NDArray[np.float32]
    start_s: float
    end_s: float

    def visit(self, row: int) -> Visit:
        """What the exit said of one row."""
        return Visit(self.stage, self.class_ids[row], self.confidences[row])


@dataclass(eq=False, slots=True, weakref_slot=True)
class Sample:
    """One picture on its way through the stages; the engine thread writes it, the event loop only reads.

    state: the runner's input for the next stage: the uint8 (H, W, 3) picture, then whatever the runner gave back.
    client: who sent it; clients take turns.
    trail: the steps it has been through, and its row in each. Replaced as a whole, so that a reader on another
    thread never sees half of it; what it means is worked out once, in the answer.
    contract: its rule is the one in force; rung: which one of those that were asked for, and asked: the rule that was
    asked for.
    audited: its ticket, where after an early answer it goes on to full depth for the audit alone, else 0; answered:
    then, what the client was told.
    """

    state: Any = field(repr=False)
    contract: Contract
    future: asyncio.Future[Answer] = field(repr=False)
    submitted_s: float
    client: str = ""
    trail: tuple[tuple[Step, int], ...] = field(default=(), repr=False)
    rung: int = 0
    asked: ExitRule | None = None
    audited: int = 0
    answered: Visit | None = None

    @property
    def abandoned(self) -> bool:
        """Nobody waits any more: the client is gone, or the deadline was answered."""
        return self.future.done()

    def answer(self, reason: ExitReason, now_s: float) -> Answer:
        """The answer of the deepest exit computed so far: at least one."""
        trail = self.trail
        last, row = trail[-1]
        queue_s = inference_s = 0.0
        ready_s = self.submitted_s
        for step, _ in trail:
            queue_s += step.start_s - ready_s
            inference_s += step.end_s - step.start_s
            ready_s = step.end_s
        return Answer(
            tuple([step.visit(row) for step, row in trail]),
            # Copied, because a row that is only a view keeps those of all batch-mates alive.
            last.probabilities_BC[row].copy(),
            queue_s,
            inference_s,
            reason,
            now_s - self.submitted_s,
            self.rung,
        )
