"""Jobs and their requests: arrivals, order, repetition."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest

from benchmarks.plan import Job, plan, poisson_arrivals


def job(**changes: Any) -> Job:
    given: dict[str, Any] = {"url": "", "pictures_folder": "", "thresholds": (0.5, 1.0), "connections": 4}
    return Job(**given | changes)


def test_arrivals_are_the_same_for_a_seed_and_others_for_another() -> None:
    first = poisson_arrivals(100.0, 5.0, seed=3)
    assert first == poisson_arrivals(100.0, 5.0, seed=3)
    assert first != poisson_arrivals(100.0, 5.0, seed=4)


def test_arrivals_are_ordered_and_end_before_the_duration() -> None:
    arrivals = poisson_arrivals(200.0, 3.0, seed=0)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0.0
    assert 2.9 < arrivals[-1] < 3.0


def test_gaps_between_arrivals_have_the_mean_and_the_spread_of_a_poisson_process() -> None:
    arrivals = poisson_arrivals(50.0, 400.0, seed=1)
    gaps = [after - before for before, after in zip([0.0, *arrivals], arrivals, strict=False)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50.0, rel=0.03)
    # Exponential gaps: the standard deviation equals the mean; evenly spaced ones would have none.
    assert variance**0.5 == pytest.approx(mean, rel=0.05)


def test_without_a_duration_every_picture_is_asked_for_at_every_threshold_once() -> None:
    asked = Counter((one.picture, one.threshold) for one in plan(job(), 5))
    assert asked == {(picture, threshold): 1 for picture in range(5) for threshold in (0.5, 1.0)}


def test_the_order_is_shuffled_by_the_seed() -> None:
    orders = [[(one.picture, one.threshold) for one in plan(job(seed=seed), 20)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_timed_closed_loop_repeats_its_pictures_without_end() -> None:
    asked = Counter(one.picture for one in islice(plan(job(duration_s=1.0), 5), 100))
    assert set(asked.values()) == {20}


def test_an_open_loop_is_scheduled_over_warm_up_and_measured_time() -> None:
    planned = list(plan(job(rate=100.0, warmup_s=1.0, duration_s=2.0, seed=7), 5))
    assert [one.at_s for one in planned] == poisson_arrivals(100.0, 3.0, seed=7)


@pytest.mark.parametrize(
    "changes", [{"rate": 5.0}, {"rate": 0.0, "duration_s": 1.0}, {"rate": -1.0, "duration_s": 1.0}]
)
def test_a_rate_needs_to_be_positive_and_to_have_a_duration(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rate"):
        job(**changes)
