"""What is promised is proven on pictures that chose nothing, and says what it takes where it is not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from offramp.training.certify.promises import (
    DELTA,
    PROMISES,
    ProvingSet,
    any_threshold,
    certify,
    order_of_tests,
    spaced,
    threshold_levels,
)
from offramp.training.certify.search import FrontPoint, pareto_front, search
from offramp.training.certify.statistics import last_disagreement, pictures_needed, upper_bound
from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds

COSTS = (2.0, 5.0, 8.0)


def sure_where_right(pictures: int, seed: int) -> ExitPredictions:
    """Three exits that differ from the last the less, the more confident they are."""
    rng = np.random.default_rng(seed)
    confidence_NK = rng.beta(3, 1, (pictures, 3)).astype(np.float32)
    differs_NK = rng.random((pictures, 3)) > confidence_NK**0.5
    differs_NK[:, -1] = False
    last_N = rng.integers(0, 5, pictures)
    labels_N = np.where(rng.random(pictures) < 0.8, last_N, rng.integers(0, 5, pictures))
    return ExitPredictions(confidence_NK, (last_N[:, None] + differs_NK) % 5, labels_N)


def certified_with(searched: ExitPredictions, proving: ExitPredictions, promises=PROMISES):
    front = pareto_front(search(searched), COSTS)
    return certify(searched, front, ProvingSet(proving, "made up", "ab" * 32, "2026-01-31"), COSTS, promises)


def test_every_point_keeps_its_promise_on_the_certifying_pictures() -> None:
    proving = sure_where_right(3000, 2)
    certificate, missed = certified_with(sure_where_right(2000, 1), proving)
    assert not missed
    assert [point.max_disagreement for point in certificate.points] == list(PROMISES)
    for point in certificate.points:
        (counts,) = count_at_thresholds(proving, [point.thresholds])
        assert point.observed == counts.disagreed / 3000
        assert point.bound == pytest.approx(float(upper_bound(counts.disagreed, 3000, DELTA)))
        assert point.bound <= point.max_disagreement
        assert point.accuracy_drop == pytest.approx((counts.lost - counts.gained) / 3000)
        assert point.accuracy_drop < point.accuracy_drop_bound
        assert point.compute == pytest.approx(counts.mean_cost(COSTS) / COSTS[-1])
        assert point.exit_mix == counts.exit_mix
    computes = [point.compute for point in certificate.points]
    assert computes == sorted(computes, reverse=True)
    assert computes[0] < 1.0
    assert (certificate.pictures, certificate.data, certificate.date) == (3000, "made up", "2026-01-31")


def test_thresholds_do_not_look_at_the_certifying_pictures() -> None:
    """Of other certifying pictures only how far the same path is followed may change."""
    searched = sure_where_right(2000, 1)
    front = pareto_front(search(searched), COSTS)
    for seed in (2, 3):
        certificate, _ = certified_with(searched, sure_where_right(3000, seed))
        for point in certificate.points:
            assert point.thresholds in order_of_tests(front, 2000, point.max_disagreement)
        levels = [bound.threshold for bound in certificate.any_threshold]
        assert levels == threshold_levels(searched)


def test_a_path_goes_from_full_depth_to_ever_cheaper_thresholds() -> None:
    searched = sure_where_right(2000, 1)
    front = pareto_front(search(searched), COSTS)
    steps = order_of_tests(front, 2000, 0.02)
    assert steps[0] == (1.0, 1.0)
    costs = [counts.mean_cost(COSTS) for counts in count_at_thresholds(searched, steps)]
    assert costs == sorted(costs, reverse=True)
    disagreed = [counts.disagreed / 2000 for counts in count_at_thresholds(searched, steps)]
    assert max(disagreed) <= 0.04
    assert len(steps) < 30


def test_spaced_points_skip_no_gap_and_rise_by_the_step() -> None:
    front = [FrontPoint((0.9,), count, 1.0) for count in (0, 1, 2, 3, 50, 51, 52, 80)]
    assert [point.disagreed for point in spaced(front, 1000, 0.0, 1.0, 1.5)] == [0, 1, 2, 3, 50, 52, 80]
    assert [point.disagreed for point in spaced(front, 1000, 0.01, 0.06, 1.5)] == [3, 50, 52]


def test_too_few_pictures_certify_less_and_say_how_many_would() -> None:
    searched, proving = sure_where_right(2000, 1), sure_where_right(100, 2)
    front = pareto_front(search(searched), COSTS)
    certificate, missed = certified_with(searched, proving)
    assert {shortfall.promise for shortfall in missed} >= {0.005, 0.01, 0.02}
    for shortfall in missed:
        assert shortfall.pictures == 100
        counts_P = count_at_thresholds(proving, order_of_tests(front, 2000, shortfall.promise))
        most_careful = next(counts for counts in counts_P if counts.mix_K[-1] < 100)
        assert shortfall.observed == most_careful.disagreed / 100
        needed = pictures_needed(shortfall.promise, DELTA, most_careful.disagreed / 100)
        assert shortfall.needed_as_observed == needed
        assert shortfall.needed == {0.005: 598, 0.01: 299, 0.02: 149, 0.05: 59, 0.1: 29}[shortfall.promise]
    promised = {point.max_disagreement for point in certificate.points}
    assert promised | {shortfall.promise for shortfall in missed} <= set(PROMISES)
    assert not promised & {shortfall.promise for shortfall in missed}


def test_exits_that_always_differ_promise_nothing_whatever_the_pictures() -> None:
    answers = sure_where_right(1000, 1)
    wrong = ExitPredictions(np.full_like(answers.confidence_NK, 0.9), np.tile([1, 2, 0], (1000, 1)), answers.labels_N)
    certificate, missed = certified_with(wrong, wrong)
    assert not certificate.points
    assert [shortfall.promise for shortfall in missed] == list(PROMISES)
    assert (missed[0].observed, missed[0].needed_as_observed) == (1.0, None)
    assert certificate.any_threshold[0].bound == 1.0
    assert certificate.bound_at(1.0) == 0.0


def test_exits_that_agree_are_left_at_the_first_for_any_promise() -> None:
    answers = sure_where_right(1000, 1)
    same = replace(answers, class_id_NK=np.zeros((1000, 3), dtype=np.int64))
    certificate, missed = certified_with(same, same)
    # A weaker promise is no cheaper, and so not told.
    assert [point.max_disagreement for point in certificate.points] == [0.005]
    assert not missed
    assert certificate.points[0].compute == COSTS[0] / COSTS[-1]


def test_the_bound_of_any_threshold_covers_what_every_threshold_does() -> None:
    searched, proving = sure_where_right(2000, 1), sure_where_right(3000, 2)
    certificate, _ = certified_with(searched, proving)
    assert certificate.any_threshold[0].threshold == 0.0
    for threshold in np.linspace(0, 1, 101).tolist():
        (counts,) = count_at_thresholds(proving, [(threshold,) * 2])
        assert counts.disagreed / 3000 <= certificate.bound_at(threshold)
    assert certificate.bound_at(1.0) == 0.0


def test_levels_are_where_disagreement_falls_and_one_where_there_is_none() -> None:
    searched = sure_where_right(2000, 1)
    levels = threshold_levels(searched)
    assert levels == sorted(set(levels))
    last_N = last_disagreement(searched)
    shares = [(last_N >= np.float32(level)).mean() for level in levels]
    assert all(b >= 0.6 * a for a, b in pairwise(shares[1:-3]))
    assert shares[-1] <= 2 / 2000


def test_confidences_that_round_to_one_count_at_every_threshold_below_it() -> None:
    """Such a picture still leaves early with a threshold of 0.99999999, which is 1 as float32; never with 1."""
    ones = ExitPredictions(
        np.ones((500, 2), dtype=np.float32), np.tile([0, 1], (500, 1)), np.zeros(500, dtype=np.int64)
    )
    bounds = any_threshold(threshold_levels(ones), ones, DELTA)
    assert [bound.bound for bound in bounds] == [1.0] * len(bounds)
    certificate, _ = certified_with_two(ones)
    assert certificate.bound_at(0.99999999) == 1.0
    assert count_at_thresholds(ones, [(0.99999999,)])[0].disagreed == 500
    assert certificate.bound_at(1.0) == 0.0
    assert count_at_thresholds(ones, [(1.0,)])[0].disagreed == 0


def certified_with_two(answers: ExitPredictions):
    front = pareto_front(search(answers), COSTS[:2])
    return certify(answers, front, ProvingSet(answers, "", "", "2026-01-31"), COSTS[:2])
