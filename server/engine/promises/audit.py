"""Audit: do early answers still agree with full depth as often as promised? Pure: no clock, no randomness, no locks.

A random share of the pictures runs to full depth after the client was answered. Two sequential methods evaluate the
comparisons. Both hold at all times, since there is no last comparison:

- `bounds`: a confidence sequence for the disagreement rate at an exit. It contains the rate at all times at once with
  probability 1 - alpha, as long as the rate does not change. Robbins' method of mixtures for Bernoulli trials: with a
  Beta(a, b) prior, B(a + k, b + n - k) / B(a, b) / (p^k (1 - p)^(n - k)) is a martingale under rate p, so that it
  stays below 1/alpha for ever with probability 1 - alpha (Ville). Source: Howard, Ramdas, McAuliffe, Sekhon,
  "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 2021).
- `Alarm`: an e-detector. It adds up evidence that the rate is above the promise, and forgets evidence for the promise,
  so that it is as quick after a million good samples as at the start. It uses cumulative sums: Shiryaev-Roberts
  detectors rest at a level that grows with every agreement. Source: Shin, Ramdas, Rinaldo, "E-detectors: a
  nonparametric framework for sequential change detection" (New England Journal of Statistics in Data Science 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from offramp.server.engine.request import Promise

# Jeffreys' prior: good if disagreements are few, and worse than any other prior by at most a constant.
PRIOR = (0.5, 0.5)
# Bisection steps: they narrow the interval to less than any rate that matters.
HALVINGS = 40
# Rates that the alarm looks for, as multiples of the promise.
MULTIPLES = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
# A multiple above 1 becomes the rate at this share of the way from the promise to 1.
FAR = 0.9
# Comparisons that wait for an earlier one. More than can be under way at once.
MAX_WAITING = 65536
# Chance that the bounds at one exit ever fail.
ALPHA = 0.05
# Key of the alarm for the bounds of all thresholds, which no certificate promises by name.
THRESHOLDS = 0.0


@dataclass(frozen=True)
class Comparison:
    """One audited sample.

    exit: the exit that answered. disagreed: whether full depth gave another class. promise: that of its exit plan.
    ticket: its place among the audited samples in order of arrival, from 1.
    """

    exit: int
    disagreed: bool
    promise: Promise | None
    ticket: int = 0


class ArrivalOrder:
    """Comparisons in the order in which their samples arrived.

    A sample that runs to full depth is compared at once, one that leaves early much later. In order of comparison,
    disagreements would come in bunches, and an alarm would take a bunch for a change. Each ticket from 1 on comes once.
    A ticket is given up when MAX_WAITING later ones wait.
    """

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, Comparison] = {}

    def add(self, comparison: Comparison) -> list[Comparison]:
        """Add one; returns those that are next in order."""
        if comparison.ticket < self._next:
            return [comparison]
        self._waiting[comparison.ticket] = comparison
        if len(self._waiting) > MAX_WAITING:
            self._next = min(self._waiting)
        due = []
        while self._next in self._waiting:
            due.append(self._waiting.pop(self._next))
            self._next += 1
        return due


@lru_cache(maxsize=4096)
def bounds(audited: int, disagreed: int, alpha: float) -> tuple[float, float]:
    """Lower and upper end of the confidence sequence after `disagreed` of `audited`; (0, 1) after none."""
    if not audited:
        return 0.0, 1.0
    agreed, observed = audited - disagreed, disagreed / audited
    a, b = PRIOR
    limit = _log_beta(a + disagreed, b + agreed) - _log_beta(a, b) + math.log(alpha)

    def refuted(rate: float) -> bool:
        return disagreed * math.log(rate) + agreed * math.log1p(-rate) <= limit

    lower = _edge(refuted, 0.0, observed) if disagreed else 0.0
    upper = _edge(refuted, 1.0, observed) if agreed else 1.0
    return lower, upper


def _edge(refuted: Callable[[float], bool], outside: float, inside: float) -> float:
    """The refuted rate nearest to `inside`, by bisection towards `outside`."""
    for _ in range(HALVINGS):
        middle = (outside + inside) / 2.0
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


class Alarm:
    """Watches one promise. It rings once the evidence against the promise reaches `threshold`, and does not stop.

    While each sample disagrees with at most the promised probability, whatever the samples before it did, the mean
    number of audited samples until it rings is at least `threshold`. The evidence is the mean of cumulative-sum
    e-detectors, one for each of MULTIPLES. Samples must come in order of arrival: see `ArrivalOrder`.
    """

    def __init__(self, threshold: float) -> None:
        if not threshold > 1.0:
            raise ValueError(f"threshold {threshold} is out of range: above 1, the mean number of samples until a ring")
        self._threshold = threshold
        self.rings = False
        self._evidence = [0.0] * len(MULTIPLES)

    @property
    def evidence(self) -> float:
        """Evidence against the promise: 1 or less is none; the alarm rings at `threshold`."""
        return sum(self._evidence) / len(MULTIPLES)

    def learn(self, disagreed: bool, promised: float) -> None:
        """Add one audited sample. promised: its promised disagreement, in (0, 1)."""
        self._evidence = [
            min(max(1.0, evidence) * _likelihood_ratio(disagreed, promised, multiple), self._threshold * len(MULTIPLES))
            for evidence, multiple in zip(self._evidence, MULTIPLES, strict=True)
        ]
        self.rings |= self.evidence >= self._threshold


def _likelihood_ratio(disagreed: bool, promised: float, multiple: float) -> float:
    """Likelihood of the sample at the alternative rate, divided by its likelihood at the promised rate."""
    rate = min(multiple * promised, promised + FAR * (1.0 - promised))
    return rate / promised if disagreed else (1.0 - rate) / (1.0 - promised)


@dataclass
class ExitAudit:
    """Counts of the audited samples that were answered at one exit."""

    audited: int = 0
    disagreed: int = 0


class Auditor:
    """Results of all audits, by exit and by promise.

    num_exits: K. false_alarm_every: mean number of audited samples until a false alarm,
    for each promise. Each certified promise has its own alarm; the bounds of all thresholds share one.
    """

    def __init__(self, num_exits: int, false_alarm_every: float) -> None:
        self.exits = [ExitAudit() for _ in range(num_exits - 1)]
        self.alarms: dict[float, Alarm] = {}
        self._false_alarm_every = false_alarm_every

    def learn(self, comparison: Comparison) -> float | None:
        """Add one comparison; returns the key of the alarm that it counts for, None without a promise."""
        if comparison.exit <= len(self.exits):
            counts = self.exits[comparison.exit - 1]
            counts.audited += 1
            counts.disagreed += comparison.disagreed
        promise = comparison.promise
        if promise is None or not 0.0 < promise.max_disagreement < 1.0:
            return None
        key = promise.max_disagreement if promise.certified else THRESHOLDS
        if key not in self.alarms:
            self.alarms[key] = Alarm(self._false_alarm_every)
        self.alarms[key].learn(comparison.disagreed, promise.max_disagreement)
        return key

    def broken(self, promise: Promise | None) -> bool:
        """Whether the alarm of a certified promise rings."""
        if promise is None or not promise.certified:
            return False
        alarm = self.alarms.get(promise.max_disagreement)
        return alarm is not None and alarm.rings

    def bounds(self, exit: int) -> tuple[float, float]:
        """The confidence sequence of the disagreement rate at exit 1..K-1."""
        counts = self.exits[exit - 1]
        return bounds(counts.audited, counts.disagreed, ALPHA)
