"""The promises of one model: the exit plan of each new sample, the audits, and their results."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offramp.models.exit_policy import ExitReason
from offramp.server.engine.choices import ON_ALARM
from offramp.server.engine.promises.audit import THRESHOLDS, ArrivalOrder, Auditor, Comparison
from offramp.server.engine.promises.brownout import Brownout
from offramp.server.engine.request import Answer, Contract, ExitPlan, Promise, Sample
from offramp.server.engine.stats import AuditReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditOptions:
    """How to audit. share: of samples, drawn at random. on_alarm: what happens when a promise is found broken.

    report: only the alarm. tighten: its samples get the next stricter plan whose promise holds. full-depth: its samples
    leave at the last exit. false_alarm_every: mean number of audited samples until a false alarm, at least.
    Raises ValueError for a value out of range.
    """

    share: float = 0.0
    on_alarm: str = "report"
    false_alarm_every: float = 1e6

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share {self.share} is out of range: give a share of samples in [0, 1]")
        if self.on_alarm not in ON_ALARM:
            raise ValueError(f"on_alarm {self.on_alarm!r} is unknown: choose one of {', '.join(ON_ALARM)}")
        if not self.false_alarm_every > 1.0:
            raise ValueError(f"false_alarm_every {self.false_alarm_every} is out of range: above 1")


@dataclass
class Audit:
    """A sample whose answer is compared with full depth. ticket: its place in order of arrival."""

    ticket: int
    picture_HWC: npt.NDArray[np.uint8]
    promise: Promise | None
    exit: int = 0
    class_id: int = 0


class Promises:
    """The promises of one model. All members belong to the event loop's thread.

    num_exits: K. brownout: None for none. draw: numbers in [0, 1) that clients cannot predict.
    """

    def __init__(
        self,
        num_exits: int,
        options: AuditOptions | None = None,
        brownout: Brownout | None = None,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._num_exits = num_exits
        self._options = options or AuditOptions()
        self._auditor = Auditor(num_exits, self._options.false_alarm_every)
        self._brownout = brownout
        # A generator of its own: request ids show the state of the process's generator.
        self._draw = draw or random.Random().random
        self._tickets, self._order = 0, ArrivalOrder()
        self._audits: dict[Sample, Audit] = {}
        # Keys of the alarms that the log has named.
        self._logged: set[float] = set()

    @property
    def level(self) -> int:
        """The level of the brownout; 0 is none."""
        return self._brownout.level if self._brownout else 0

    def observe_wait(self, now_s: float, wait_s: float) -> bool:
        """Update the brownout with the wait of a new sample; returns whether the level has changed."""
        before = self.level
        return self._brownout is not None and self._brownout.update(now_s, wait_s) != before

    def choose(self, contract: Contract) -> ExitPlan:
        """The plan for a new sample: looser under load, stricter if the promise that was asked for is broken."""
        options, looser = self._options, contract.looser[: self.level]
        if options.on_alarm == "report":
            return looser[-1] if looser else contract.asked
        for plan in reversed(looser):
            if not self._auditor.broken(plan.promise):
                return plan
        if not contract.stricter or not self._auditor.broken(contract.asked.promise):
            return contract.asked
        if options.on_alarm == "tighten":
            for plan in contract.stricter:
                if not self._auditor.broken(plan.promise):
                    return plan
        return contract.stricter[-1]

    # ---- audits: draw at arrival, finish at the answer, compare after full depth ----------------

    def draw(self, samples: Sequence[Sample]) -> None:
        """Choose at random which new samples are audited, and keep their pictures."""
        share = self._options.share
        for sample in samples:
            # An answer that a bound on depth cuts short promises nothing about full depth.
            if share and sample.plan.rule.max_exit == self._num_exits and self._draw() < share:
                self._tickets += 1
                # A copy: the picture's memory may belong to another process.
                self._audits[sample] = Audit(self._tickets, sample.state.copy(), sample.plan.promise)

    def finish(self, sample: Sample, answer: Answer | None) -> tuple[Audit | None, list[AuditReport]]:
        """A sample has left the engine. Returns its audit if full depth is still to be computed, and reports.

        A sample that ran to full depth agrees. So does one without an answer: without it, early answers would be too
        frequent among the audited, and alarms would ring for promises that hold.
        """
        audit = self._audits.pop(sample, None)
        if audit is None:
            return None, []
        if answer is None or answer.reason not in (ExitReason.CONFIDENT, ExitReason.BROWNOUT):
            return None, self._learn(Comparison(self._num_exits, False, audit.promise, audit.ticket))
        audit.exit, audit.class_id = answer.exit, answer.class_id
        return audit, []

    def compare(self, audit: Audit, class_id: int | None) -> list[AuditReport]:
        """Compare the answer with the class at full depth. None, where full depth gave no class, is no disagreement."""
        exit = self._num_exits if class_id is None else audit.exit
        disagreed = class_id is not None and class_id != audit.class_id
        return self._learn(Comparison(exit, disagreed, audit.promise, audit.ticket))

    def _learn(self, comparison: Comparison) -> list[AuditReport]:
        return [self._report(due) for due in self._order.add(comparison)]

    def _report(self, comparison: Comparison) -> AuditReport:
        key, exit = self._auditor.learn(comparison), comparison.exit
        low, high = self._auditor.bounds(exit) if exit < self._num_exits else (0.0, 1.0)
        if key is None:
            return AuditReport(exit, comparison.disagreed, low, high, None, False, 0.0)
        alarm = self._auditor.alarms[key]
        if alarm.rings and key not in self._logged:
            self._logged.add(key)
            logger.warning("audits found broken: %s; on alarm: %s", _described(key), self._options.on_alarm)
        return AuditReport(exit, comparison.disagreed, low, high, key, alarm.rings, alarm.evidence)


def _described(key: float) -> str:
    if key == THRESHOLDS:
        return "the bounds of the thresholds that requests name"
    return f"the promise that at most {key:.2%} of the answers differ from full depth"
