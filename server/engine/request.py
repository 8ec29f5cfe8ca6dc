"""The engine's input and output: contract, sample, answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offramp.models.exit_policy import ExitReason, ExitRule


class Promise(NamedTuple):
    """At most the share `max_disagreement` of the answers under a rule differs from those of full depth.

    certified: the share is a certified point's. Otherwise it is the bound of a single threshold.
    """

    max_disagreement: float
    certified: bool


class ExitPlan(NamedTuple):
    """A rule and its promise. promise: None where nothing is known of the rule."""

    rule: ExitRule
    promise: Promise | None = None


@dataclass(frozen=True)
class Contract:
    """What one request asks of the engine, without its deadline. A field with a parameter's name gets its value.

    asked: the plan that the request asked for. stricter: plans that replace it when an audit finds its promise broken,
    the next one first. looser: plans that replace it under load, the next one first.
    """

    asked: ExitPlan
    stricter: tuple[ExitPlan, ...] = ()
    looser: tuple[ExitPlan, ...] = ()

    def check_depth(self, num_stages: int) -> None:
        """Raises ValueError if a rule is for a network of another depth."""
        for plan in (self.asked, *self.stricter, *self.looser):
            if len(plan.rule.limits) != num_stages:
                raise ValueError(
                    f"a rule for {len(plan.rule.limits)} exits is out of range: this network has {num_stages}; "
                    f"give {num_stages - 1} thresholds"
                )


# Tuples: a frozen dataclass takes four times as long to make, and there is one for each picture at each stage.
class Visit(NamedTuple):
    """The calibrated answer of one exit on the way."""

    exit: int
    class_id: int
    confidence: float


class Answer(NamedTuple):
    """The result of one sample.

    visited: every exit on the way, the last one included. probabilities_C: calibrated probabilities of the last one,
    float32. queue_s: time in all stage queues. inference_s: time inside steps, shared with the batch. latency_s: from
    submit to the answer. replacement: the promise of the plan that replaced the one asked for; None if none did.
    """

    visited: tuple[Visit, ...]
    probabilities_C: npt.NDArray[np.float32]
    queue_s: float
    inference_s: float
    reason: ExitReason
    latency_s: float
    replacement: Promise | None = None

    @property
    def exit(self) -> int:
        """The exit that answered, 1..K."""
        return self.visited[-1].exit

    @property
    def class_id(self) -> int:
        """The most probable class."""
        return self.visited[-1].class_id

    @property
    def confidence(self) -> float:
        """The calibrated probability of that class."""
        return self.visited[-1].confidence


class Step(NamedTuple):
    """The result of one step for its whole batch: class and confidence of each row."""

    stage: int
    class_ids: list[int]
    confidences: list[float]
    probabilities_BC: npt.NDArray[np.float32]
    start_s: float
    end_s: float

    def visit(self, row: int) -> Visit:
        """The exit's answer for one row."""
        return Visit(self.stage, self.class_ids[row], self.confidences[row])


@dataclass(eq=False, slots=True, weakref_slot=True)
class Sample:
    """One picture on its way through the stages. The engine's thread writes it, the event loop only reads it.

    state: input of the next stage: the uint8 (H, W, 3) picture, later the runner's output. plan: the one that decides.
    deadline_s: on the engine's clock; None for none. client: clients take turns. low_priority: it runs
    when nothing else waits, or in full batches. trail: its steps, and its row in each. The trail is replaced as a
    whole, so that the other thread never reads half of it.
    """

    state: Any = field(repr=False)
    contract: Contract
    plan: ExitPlan
    future: asyncio.Future[Answer] = field(repr=False)
    submitted_s: float
    deadline_s: float | None = None
    client: str = ""
    low_priority: bool = False
    trail: tuple[tuple[Step, int], ...] = field(default=(), repr=False)

    @property
    def abandoned(self) -> bool:
        """Whether nothing waits for it: the client is gone, or the deadline was answered."""
        return self.future.done()

    def answer(self, reason: ExitReason, now_s: float) -> Answer:
        """The answer of the deepest exit so far. There must be one."""
        trail, plan = self.trail, self.plan
        last, row = trail[-1]
        queue_s = inference_s = 0.0
        ready_s = self.submitted_s
        for step, _ in trail:
            queue_s += step.start_s - ready_s
            inference_s += step.end_s - step.start_s
            ready_s = step.end_s
        return Answer(
            tuple([step.visit(row) for step, row in trail]),
            # A copy: a view of the row would keep the whole batch alive.
            last.probabilities_BC[row].copy(),
            queue_s,
            inference_s,
            reason,
            now_s - self.submitted_s,
            None if plan is self.contract.asked else plan.promise,
        )
