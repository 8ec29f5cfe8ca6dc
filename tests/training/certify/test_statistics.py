"""Bounds hold as often as they say, and are no wider than they need be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from offramp.training.certify.statistics import (
    count_certified,
    last_disagreement,
    mean_upper_bound,
    pictures_needed,
    upper_bound,
)
from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds


@pytest.mark.parametrize(("count", "pictures"), [(0, 10), (3, 10), (9, 10), (0, 5000), (25, 5000), (400, 5000)])
@pytest.mark.parametrize("delta", [0.05, 0.001])
def test_the_bound_is_where_so_few_are_observed_with_probability_delta(count: int, pictures: int, delta: float) -> None:
    bound = float(upper_bound(count, pictures, delta))
    assert binom.cdf(count, pictures, bound) == pytest.approx(delta, rel=1e-6)


def test_all_of_them_bound_nothing() -> None:
    assert upper_bound(7, 7, 0.05) == 1.0
    assert upper_bound(np.array([7, 0]), 7, 0.05)[0] == 1.0


def test_five_thousand_pictures_certify_the_shares_of_the_design() -> None:
    assert upper_bound(38, 5000, 0.05) <= 0.01 < upper_bound(39, 5000, 0.05)
    assert upper_bound(16, 5000, 0.05) <= 0.005 < upper_bound(17, 5000, 0.05)


@pytest.mark.parametrize(("share", "pictures"), [(0.01, 300), (0.1, 300), (0.5, 40)])
def test_the_bound_covers_exactly(share: float, pictures: int) -> None:
    """The chance of every count is known: no draw is needed."""
    counts = np.arange(pictures + 1)
    covered = binom.pmf(counts, pictures, share)[upper_bound(counts, pictures, 0.05) >= share].sum()
    assert covered >= 0.95 - 1e-9


def test_testing_stops_at_the_first_that_is_not_rejected() -> None:
    counts = np.array([0, 2, 3, 90, 1, 0])
    assert count_certified(counts, 1000, 0.02, 0.05) == 3
    assert count_certified(counts[:3], 1000, 0.02, 0.05) == 3
    assert count_certified(counts, 20, 0.02, 0.05) == 0


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.0, 0.0), (0.002, 0.0), (0.004, 0.004), (0.03, 0.01), (0.2, 0.3), (0.6, 0.1)]
)
@pytest.mark.parametrize("pictures", [60, 2000])
def test_the_bound_of_a_mean_covers(lost: float, gained: float, pictures: int) -> None:
    draws, delta = 2000, 0.05
    rng = np.random.default_rng(0)
    counts = rng.multinomial(pictures, [lost, gained, 1.0 - lost - gained], draws)
    cases, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    missed = sum(
        int(time)
        for (up, down), time in zip(cases.tolist(), times, strict=True)
        if mean_upper_bound(up, down, pictures, delta) < lost - gained
    )
    assert missed / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 5), (40, 10), (0, 60), (300, 200)])
def test_the_bound_of_a_mean_knows_that_most_values_are_zero(lost: int, gained: int) -> None:
    """Against Hoeffding's bound, which knows the range alone."""
    observed, pictures, delta = (lost - gained) / 3000, 3000, 0.05
    hoeffding = observed + 2 * math.sqrt(math.log(1 / delta) / (2 * pictures))
    bound = mean_upper_bound(lost, gained, pictures, delta)
    assert observed < bound < observed + 0.8 * (hoeffding - observed)
    spread = math.sqrt(max(lost + gained, 3) / pictures / pictures)
    assert bound - observed < 4.5 * spread


def test_the_bound_of_a_mean_grows_with_losses_and_care_and_shrinks_with_pictures() -> None:
    assert mean_upper_bound(5, 0, 500, 0.05) < mean_upper_bound(6, 0, 500, 0.05)
    assert mean_upper_bound(5, 1, 500, 0.05) < mean_upper_bound(5, 0, 500, 0.05)
    assert mean_upper_bound(5, 0, 500, 0.05) < mean_upper_bound(5, 0, 500, 0.01)
    assert mean_upper_bound(10, 0, 1000, 0.05) < mean_upper_bound(5, 0, 500, 0.05)
    assert mean_upper_bound(500, 0, 500, 0.05) == 1.0
    assert mean_upper_bound(0, 1, 1, 0.05) <= 1.0


def test_the_last_disagreement_is_the_last_threshold_that_changes_the_answer() -> None:
    rng = np.random.default_rng(0)
    confidence_NK = (rng.integers(1, 21, (300, 4)) / 20).astype(np.float32)
    answers = ExitPredictions(confidence_NK, rng.integers(0, 2, (300, 4)), np.zeros(300, dtype=np.int64))
    last_N = last_disagreement(answers)
    thresholds = np.arange(0, 40) / 40
    differs_NT = np.array(
        [
            [count_at_thresholds(answers.subset(np.array([n])), [(t,) * 3])[0].disagreed for t in thresholds.tolist()]
            for n in range(60)
        ]
    )
    for n in range(60):
        differing = thresholds[differs_NT[n] > 0]
        if not len(differing):
            assert last_N[n] <= 0.0 or last_N[n] == 1.0
        elif last_N[n] < 1.0:
            assert differing.max() == pytest.approx(last_N[n])


@pytest.mark.parametrize(("limit", "needed"), [(0.1, 29), (0.05, 59), (0.02, 149), (0.01, 299), (0.005, 598)])
def test_pictures_needed_where_none_disagrees(limit: float, needed: int) -> None:
    assert pictures_needed(limit, 0.05) == needed
    assert upper_bound(0, needed, 0.05) <= limit < upper_bound(0, needed - 1, 0.05)


def test_pictures_needed_grow_with_the_observed_share_until_no_number_is_enough() -> None:
    needed = pictures_needed(0.01, 0.05, 0.005)
    assert needed is not None
    assert 299 < needed < 3000
    assert upper_bound(math.ceil(0.005 * needed), needed, 0.05) <= 0.01
    assert pictures_needed(0.01, 0.05, 0.01) is None


def test_many_false_promises_tested_in_order_are_certified_no_more_often_than_one() -> None:
    """Independent ones, where looking for any that passes would find one nearly always."""
    draws, delta, limit = 2000, 0.05, 0.02
    counts_DP = np.random.default_rng(0).binomial(800, limit * 1.001, (draws, 60))
    wrongly = sum(count_certified(counts_P, 800, limit, delta) > 0 for counts_P in counts_DP)
    any_passes = (upper_bound(counts_DP, 800, delta) <= limit).any(axis=1).mean()
    assert any_passes > 0.8
    assert wrongly / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
