"""Proof by simulation: of a thousand calibrations of the real model's answers, at most delta break a promise.

The pool is finite and known, so that what a certificate says of it can be checked exactly; calibrations draw from it
independently, as the theory has it. A violation counts wherever it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from offramp.models.certificate import Certificate
from offramp.training.certify.promises import DELTA, PROMISES, ProvingSet, certify
from offramp.training.certify.search import pareto_front, search
from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds
from tests.training.cached_answers import load

DRAWS = 1000
# Few pictures and many combinations: so that thresholds chosen on the certifying pictures would break promises.
SEARCHING, PROVING = 600, 600
LEVELS = 40
# Relative cost of the four exits; what is proven does not depend on it.
COSTS = (0.287, 0.532, 0.771, 1.0)
ALLOWED = DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


@dataclass
class Tally:
    """Over all draws: how often each promise was broken, and what leaving early cost."""

    broken: dict[float, int] = field(default_factory=lambda: dict.fromkeys(PROMISES, 0))
    lost_more: dict[float, int] = field(default_factory=lambda: dict.fromkeys(PROMISES, 0))
    saved: dict[float, float] = field(default_factory=lambda: dict.fromkeys(PROMISES, 0.0))
    threshold_bound_broken: int = 0


@dataclass(frozen=True)
class SingleThresholds:
    """How often the pool disagrees at every single threshold: `share_M` from `from_M` (exclusive) up to the next."""

    from_M: npt.NDArray[np.float64]
    share_M: npt.NDArray[np.float64]

    @classmethod
    def of(cls, pool: ExitPredictions) -> SingleThresholds:
        """With a threshold in (highest confidence before, confidence at exit k] a picture leaves at exit k."""
        starts, ends = [], []
        before_N = np.full(len(pool), -1.0)
        for k in range(pool.num_exits - 1):
            confidence_N = pool.confidence_NK[:, k].astype(np.float64)
            leaves_wrong_N = (confidence_N > before_N) & pool.differs_NK[:, k]
            starts.append(before_N[leaves_wrong_N])
            ends.append(confidence_N[leaves_wrong_N])
            before_N = np.maximum(before_N, confidence_N)
        at = np.concatenate([*starts, *ends])
        step = np.concatenate([np.ones(sum(map(len, starts))), -np.ones(sum(map(len, ends)))])
        from_M, inverse = np.unique(at, return_inverse=True)
        return cls(from_M, np.cumsum(np.bincount(inverse, weights=step)) / len(pool))

    def exceed(self, certificate: Certificate) -> bool:
        """Whether any threshold below 1 disagrees more often than its bound."""
        # The share changes just above each point: looked at there, and in each interval of the bounds at its start.
        looked_at = np.concatenate([self.from_M + 1e-9, [bound.threshold for bound in certificate.any_threshold]])
        looked_at = looked_at[(looked_at >= 0.0) & (looked_at < 1.0)]
        share = self.share_M[np.searchsorted(self.from_M, looked_at, side="left") - 1]
        levels = np.array([bound.threshold for bound in certificate.any_threshold])
        bounds = np.array([bound.bound for bound in certificate.any_threshold])
        return bool((share > bounds[np.searchsorted(levels, looked_at, side="right") - 1] + 1e-12).any())


@pytest.fixture(scope="module")
def pool() -> ExitPredictions:
    return load()


@pytest.fixture(scope="module")
def tally(pool: ExitPredictions) -> Tally:
    """The draws."""
    truth, single, rng = Tally(), SingleThresholds.of(pool), np.random.default_rng(0)
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(pool), SEARCHING + PROVING)
        searched, proving = pool.subset(drawn[:SEARCHING]), pool.subset(drawn[SEARCHING:])
        front = pareto_front(search(searched, LEVELS), COSTS)
        certificate, _ = certify(searched, front, ProvingSet(proving, "", "", ""), COSTS)
        counts_P = count_at_thresholds(pool, [point.thresholds for point in certificate.points])
        for point, true in zip(certificate.points, counts_P, strict=True):
            promise = point.max_disagreement
            truth.broken[promise] += true.disagreed > promise * len(pool)
            truth.lost_more[promise] += true.lost - true.gained > point.accuracy_drop_bound * len(pool)
            truth.saved[promise] += (1.0 - true.mean_cost(COSTS)) / DRAWS
        truth.threshold_bound_broken += single.exceed(certificate)
    return truth


def test_the_share_of_every_single_threshold_is_what_the_exit_policy_does(pool: ExitPredictions) -> None:
    single = SingleThresholds.of(pool)
    for threshold in np.random.default_rng(0).random(20).tolist():
        share = single.share_M[np.searchsorted(single.from_M, threshold, side="left") - 1]
        (counts,) = count_at_thresholds(pool, [(threshold,) * 3])
        assert share == pytest.approx(counts.disagreed / len(pool), abs=1e-9)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_broken_in_at_most_delta_of_the_draws(tally: Tally, promise: float) -> None:
    assert tally.broken[promise] / DRAWS <= ALLOWED


@pytest.mark.parametrize("promise", PROMISES)
def test_the_bound_of_lost_accuracy_is_broken_in_at_most_delta_of_the_draws(tally: Tally, promise: float) -> None:
    assert tally.lost_more[promise] / DRAWS <= ALLOWED


def test_some_single_threshold_exceeds_its_bound_in_at_most_delta_of_the_draws(tally: Tally) -> None:
    assert tally.threshold_bound_broken / DRAWS <= ALLOWED


def test_promises_are_worth_something(tally: Tally) -> None:
    assert tally.saved[0.01] > 0.15
    assert all(saved > 0.0 for saved in tally.saved.values())
