"""The search over all combinations counts exactly what the exit policy decides."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from offramp.training.certify.search import MOST_COMBINATIONS, levels_for, levels_of, pareto_front, search
from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds


def made_up(pictures: int, num_exits: int, seed: int = 0) -> ExitPredictions:
    """ExitPredictions with ties: confidences in hundredths, among them exactly 1."""
    rng = np.random.default_rng(seed)
    confidence_NK = (rng.integers(20, 101, (pictures, num_exits)) / 100).astype(np.float32)
    class_id_NK = rng.integers(0, 3, (pictures, num_exits))
    return ExitPredictions(confidence_NK, class_id_NK, rng.integers(0, 3, pictures))


COSTS = (3.0, 5.0, 11.0, 13.0, 20.0)


@pytest.mark.parametrize("num_exits", [2, 3, 4, 5])
@pytest.mark.parametrize("most_levels", [None, 7])
def test_counts_are_those_of_the_exit_policy_on_random_combinations(num_exits: int, most_levels: int | None) -> None:
    answers = made_up(400, num_exits, seed=num_exits)
    grid = search(answers, most_levels)
    cost = grid.mean_cost(COSTS[:num_exits])
    rng = np.random.default_rng(1)
    for flat_index in rng.integers(0, grid.disagreed.size, 60).tolist():
        (counts,) = count_at_thresholds(answers, [grid.thresholds(flat_index)])
        assert grid.disagreed.ravel()[flat_index] == counts.disagreed
        assert cost.ravel()[flat_index] == pytest.approx(counts.mean_cost(COSTS[:num_exits]))
        places = np.unravel_index(flat_index, grid.disagreed.shape)
        left = [400, *(int(passed[places[: k + 1]]) for k, passed in enumerate(grid.passed)), 0]
        assert [before - after for before, after in pairwise(left)] == list(counts.mix_K)


def test_thresholds_that_float32_has_not_are_compared_as_float32() -> None:
    confidence_NK = np.full((10, 2), np.float32(0.7))
    answers = ExitPredictions(confidence_NK, np.tile([0, 1], (10, 1)), np.zeros(10, dtype=np.int64))
    grid = search(answers)
    for flat_index in range(grid.disagreed.size):
        assert grid.disagreed[flat_index] == count_at_thresholds(answers, [grid.thresholds(flat_index)])[0].disagreed


@pytest.mark.parametrize("num_exits", [2, 3, 4])
def test_no_combination_beats_the_front_and_the_front_has_no_other(num_exits: int) -> None:
    answers = made_up(60, num_exits, seed=3)
    grid = search(answers, 6)
    front = pareto_front(grid, COSTS[:num_exits])
    combinations = list(product(*(levels.tolist() for levels in grid.levels)))
    everything = [
        (counts.disagreed, round(counts.mean_cost(COSTS[:num_exits]), 9))
        for counts in count_at_thresholds(answers, combinations)
    ]
    best = {
        (disagreed, cost)
        for disagreed, cost in everything
        if not any(d <= disagreed and c <= cost and (d, c) != (disagreed, cost) for d, c in everything)
    }
    assert {(point.disagreed, round(point.cost, 9)) for point in front} == best
    assert [point.disagreed for point in front] == sorted(point.disagreed for point in front)


def test_levels_go_from_all_pictures_to_no_picture_and_are_finer_near_1() -> None:
    confidence_N = np.random.default_rng(0).beta(2, 1, 5000).astype(np.float32)
    levels = levels_of(confidence_N, 50)
    assert levels[-1] == 1.0
    assert levels[0] <= confidence_N.min()
    assert (np.diff(levels) > 0).all()
    assert len(levels) == 50
    shares = [(confidence_N >= level).mean() for level in levels]
    assert shares[-2] - shares[-3] > 0.2 * (shares[1] - shares[0]) or shares[-2] < 0.01


def test_confidences_of_one_leave_only_below_threshold_one() -> None:
    answers = ExitPredictions(
        np.ones((20, 2), dtype=np.float32), np.tile([0, 1], (20, 1)), np.zeros(20, dtype=np.int64)
    )
    grid = search(answers)
    assert grid.levels[0].tolist() == [0.999999, 1.0]
    assert grid.disagreed.tolist() == [20, 0]


@pytest.mark.parametrize("num_exits", range(1, 12))
def test_combinations_stay_few(num_exits: int) -> None:
    assert levels_for(num_exits) >= 2
    assert levels_for(num_exits) ** (num_exits - 1) <= MOST_COMBINATIONS
