"""Audit: do early answers still agree with full depth as often as promised? Pure: no clock, no randomness, no locks.

A random share of the samples under a promise goes on to full depth after its client was answered. What that shows is
judged by two sequential methods, since it is looked at after every sample and there is no last one:

- `bounds`: a confidence sequence for the rate of disagreement at an exit; it holds at all times at once with
  probability 1 - alpha, as long as the rate stays what it is. Robbins' method of mixtures for Bernoulli trials: with a
  Beta(a, b) prior, B(a + k, b + n - k) / B(a, b) / (p^k (1 - p)^(n - k)) is a martingale under rate p, and so
  stays below 1/alpha for ever with probability 1 - alpha (Ville). Source: Howard, Ramdas, McAuliffe, Sekhon,
  "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 2021).
- `Alarm`: an e-detector. It adds up evidence that the rate is above the promise, and forgets nothing but what
  speaks against a change, so that it is as quick after a million good samples as at the start. Of the two kinds it is
  the one by cumulative sums: Shiryaev-Roberts detectors rest at a level that grows with all that has agreed. Source:
  Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (New England Journal
  of Statistics in Data Science 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

# Jeffreys' prior: good where disagreements are few, and by no more than a constant worse than any other.
PRIOR = (0.5, 0.5)
# Of the interval between a rate and what was observed: enough for any rate worth telling.
HALVINGS = 40
# Rates that the alarm looks for, as multiples of the promise: from hardly broken to broken outright.
MULTIPLES = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
# Comparisons that wait for their turn. More than can be under way at once.
MOST_WAITING = 65536
# The key of the alarm that all bounds of thresholds share: no promise is certified for it.
OF_THRESHOLDS = 0.0
# Where a multiple would be no rate, it lies so far between the promise and 1.
FAR = 0.9


@dataclass(frozen=True)
class AuditStats:
    """One sample that left at `exit` was compared with full depth.

    promised: the share of disagreement promised for traffic under its contract; None where nothing was. certified:
    by name, as `max_disagreement`, rather than as the bound of a threshold. Where the sample itself ran to full depth
    there is nothing to compare: it agrees. ticket: its place among the audited samples as they came in, from 1.
    """

    exit: int
    disagreed: bool
    promised: float | None
    certified: bool
    ticket: int = 0


class Turns:
    """Comparisons in the order in which the samples came in, whenever each is over.

    Whoever goes to full depth himself is known to agree long before those who leave early are compared, in batches of
    their own. In that order disagreements come in bunches, and an alarm would take one for a change. Each ticket from 1
    on comes once; one that is missing for MOST_WAITING others is given up.
    """

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, AuditStats] = {}

    def take(self, stats: AuditStats) -> list[AuditStats]:
        """One more comparison; those whose turn it is now."""
        if stats.ticket < self._next:
            return [stats]
        self._waiting[stats.ticket] = stats
        if len(self._waiting) > MOST_WAITING:
            self._next = min(self._waiting)
        due = []
        while self._next in self._waiting:
            due.append(self._waiting.pop(self._next))
            self._next += 1
        return due


@lru_cache(maxsize=4096)
def bounds(audited: int, disagreed: int, alpha: float) -> tuple[float, float]:
    """The confidence sequence of a rate, lower and upper end, after `disagreed` of `audited`; (0, 1) after none."""
    if not audited:
        return 0.0, 1.0
    agreed, observed = audited - disagreed, disagreed / audited
    a, b = PRIOR
    enough = _log_beta(a + disagreed, b + agreed) - _log_beta(a, b) + math.log(alpha)

    def refuted(rate: float) -> bool:
        return disagreed * math.log(rate) + agreed * math.log1p(-rate) <= enough

    lower = _edge(refuted, 0.0, observed) if disagreed else 0.0
    upper = _edge(refuted, 1.0, observed) if agreed else 1.0
    return lower, upper


def _edge(refuted: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where rates begin to be refuted, from `inside` on towards `outside`; the refuted side of it."""
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
    """Watches one promise; rings once the evidence against it is `threshold`, and rings on until it is reset.

    While every sample disagrees with a chance of at most what was promised for it, whatever those before it did, it
    takes `threshold` audited samples or more on average until it rings: the mean of cumulative-sum e-detectors, one for
    each of MULTIPLES. Samples are to come in the order of their arrival: see `Turns`.
    """

    def __init__(self, threshold: float) -> None:
        if not threshold > 1.0:
            raise ValueError(
                f"threshold {threshold} is out of range: above 1, the mean number of samples until it rings"
            )
        self._threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Begin anew, with nothing held against the promise."""
        self.rings = False
        self._evidence = [0.0] * len(MULTIPLES)

    @property
    def evidence(self) -> float:
        """Against the promise: at most 1 is none; the alarm rings at `threshold`."""
        return sum(self._evidence) / len(MULTIPLES)

    def learn(self, disagreed: bool, promised: float) -> None:
        """One more audited sample, whose contract promised disagreement of at most that rate, in (0, 1)."""
        self._evidence = [
            min(max(1.0, evidence) * _ratio(disagreed, promised, multiple), self._threshold * len(MULTIPLES))
            for evidence, multiple in zip(self._evidence, MULTIPLES, strict=True)
        ]
        self.rings |= self.evidence >= self._threshold


def _ratio(disagreed: bool, promised: float, multiple: float) -> float:
    """How much likelier the sample is at the rate looked for than at the promised one."""
    rate = min(multiple * promised, promised + FAR * (1.0 - promised))
    return rate / promised if disagreed else (1.0 - rate) / (1.0 - promised)


@dataclass
class ExitAudit:
    """What was seen of the samples that left at one exit."""

    audited: int = 0
    disagreed: int = 0


class Auditor:
    """What audits have shown so far: by exit, and by promise.

    num_exits: K. alpha: of the bounds by exit. false_alarm_every: audited samples until a false alarm, on average, for
    each promise. A promise by name has an alarm of its own; all bounds of thresholds share one.
    """

    def __init__(self, num_exits: int, alpha: float, false_alarm_every: float) -> None:
        self.alpha = alpha
        self.exits = [ExitAudit() for _ in range(num_exits - 1)]
        # By what is promised, or OF_THRESHOLDS.
        self.alarms: dict[float, Alarm] = {}
        self._false_alarm_every = false_alarm_every

    def learn(self, stats: AuditStats) -> Alarm | None:
        """One more comparison; the alarm that it was told to, where the contract promised anything."""
        if stats.exit <= len(self.exits):
            seen = self.exits[stats.exit - 1]
            seen.audited += 1
            seen.disagreed += stats.disagreed
        if stats.promised is None or not 0.0 < stats.promised < 1.0:
            return None
        key = stats.promised if stats.certified else OF_THRESHOLDS
        if key not in self.alarms:
            self.alarms[key] = Alarm(self._false_alarm_every)
        alarm = self.alarms[key]
        alarm.learn(stats.disagreed, stats.promised)
        return alarm

    def broken(self, promised: float) -> bool:
        """Whether the alarm of a certified promise rings."""
        alarm = self.alarms.get(promised)
        return alarm is not None and alarm.rings

    def bounds(self, exit: int) -> tuple[float, float]:
        """The confidence sequence of the rate of disagreement at exit 1..K-1."""
        seen = self.exits[exit - 1]
        return bounds(seen.audited, seen.disagreed, self.alpha)
