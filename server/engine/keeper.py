"""Keeper: which rung of a contract is in force, from what audits have shown and from the load."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.audit import OF_THRESHOLDS, Auditor, AuditStats, Turns
from server.engine.brownout import Brownout
from server.engine.request import Contract, Rung
from server.engine.stats import AuditReport

logger = logging.getLogger(__name__)

ON_ALARM = ("report", "tighten", "full-depth")


@dataclass(frozen=True)
class AuditPlan:
    """How to audit. share: of samples, drawn at random. on_alarm: what becomes of a promise that is found broken.

    report: nothing but the alarm. tighten: whoever is promised it gets the next stricter rung that still holds.
    full-depth: no early exit for them. false_alarm_every: audited samples until a false alarm, on average or more.
    alpha: of the bounds by exit. Raises ValueError for what is out of range.
    """

    share: float = 0.0
    on_alarm: str = "report"
    false_alarm_every: float = 1e6
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share {self.share} is out of range: give a share of samples in [0, 1]")
        if self.on_alarm not in ON_ALARM:
            raise ValueError(f"on_alarm {self.on_alarm!r} is unknown: choose one of {', '.join(ON_ALARM)}")
        if not (self.false_alarm_every > 1.0 and 0.0 < self.alpha < 1.0):
            raise ValueError(
                f"false_alarm_every {self.false_alarm_every} or alpha {self.alpha} is out of range: above 1, in (0, 1)"
            )


class Keeper:
    """The promises of one model; all members belong to the event loop's thread.

    num_exits: K. brownout: None for none. draw: numbers in [0, 1) that clients cannot foresee.
    """

    def __init__(
        self,
        num_exits: int,
        plan: AuditPlan | None = None,
        brownout: Brownout | None = None,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._plan = plan or AuditPlan()
        self._auditor = Auditor(num_exits, self._plan.alpha, self._plan.false_alarm_every)
        self._num_exits = num_exits
        self._tickets, self._turns = 0, Turns()
        # Promises of which the log has said that they are broken.
        self._told: set[float | None] = set()
        # A generator that nobody else draws from: request ids show what the process's own comes to.
        self._brownout, self._draw = brownout, draw or random.Random().random

    @property
    def level(self) -> int:
        """Of the brownout; 0 is none."""
        return self._brownout.level if self._brownout else 0

    def feel(self, now_s: float, wait_s: float) -> bool:
        """How long a new sample would wait; whether that changes the level."""
        before = self.level
        return self._brownout is not None and self._brownout.update(now_s, wait_s) != before

    def pick(self) -> int:
        """The ticket of a new sample that is to be audited, however deep it will go; 0 where it is not.

        For each ticket there has to be one comparison in the end.
        """
        if not self._plan.share or self._draw() >= self._plan.share:
            return 0
        self._tickets += 1
        return self._tickets

    def in_force(self, contract: Contract) -> int:
        """The rung that a new sample is to be answered by: `Contract.rung`.

        Looser than was asked for under load, as far as that holds; stricter where what was asked for is broken. A
        contract that names no other rungs is always kept as it is.
        """
        at = min(self.level, len(contract.looser))
        if self._plan.on_alarm == "report":
            return at
        while at > 0 and self._broken(contract.rung(at)):
            at -= 1
        strictest = -len(contract.stricter)
        if at == 0 and self._broken(contract.rung(0)):
            at = strictest if self._plan.on_alarm == "full-depth" else -1
            while at > strictest and self._broken(contract.rung(at)):
                at -= 1
        return max(at, strictest)

    def learn(self, stats: AuditStats) -> list[AuditReport]:
        """One more comparison; how things stand after each whose turn it is now."""
        return [self._learn(one) for one in self._turns.take(stats)]

    def _learn(self, stats: AuditStats) -> AuditReport:
        alarm = self._auditor.learn(stats)
        low, high = self._auditor.bounds(stats.exit) if stats.exit < self._num_exits else (0.0, 1.0)
        promise = (
            None if alarm is None or stats.promised is None else stats.promised if stats.certified else OF_THRESHOLDS
        )
        rings, evidence = (alarm.rings, alarm.evidence) if alarm else (False, 0.0)
        if rings and promise not in self._told:
            self._told.add(promise)
            logger.warning("audits have found broken: %s; on alarm: %s", _worded(promise), self._plan.on_alarm)
        return AuditReport(stats.exit, stats.disagreed, low, high, promise, rings, evidence)

    def _broken(self, rung: Rung) -> bool:
        promise = rung.promise
        return promise is not None and promise.certified and self._auditor.broken(promise.max_disagreement)


def _worded(promise: float | None) -> str:
    if promise == OF_THRESHOLDS:
        return "what is known of the thresholds that requests name"
    return f"the promise that at most {promise:.2%} of the answers differ from full depth's"
