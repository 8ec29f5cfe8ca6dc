"""The cost profile: values between measurements, invalid tables, and the measurement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.server.engine.profile import CostProfile, grid, measure_profile
from offramp.server.engine.runners.runner import StepOutput


def test_measured_sizes_cost_what_was_measured_and_those_between_lie_on_a_line():
    profile = CostProfile(4, (1, 2, 4), ((1.0, 1.5, 3.5), (2.0, 2.0, 2.0)))
    assert [profile.seconds(1, size) for size in range(5)] == [0.0, 1.0, 1.5, 2.5, 3.5]
    assert [profile.seconds(2, size) for size in (1, 3, 4)] == [2.0, 2.0, 2.0]
    assert profile.num_stages == 2


def test_beyond_the_largest_measured_size_every_sample_costs_the_same():
    profile = CostProfile(8, (1, 4), ((1.0, 2.0),))
    assert profile.seconds(1, 8) == pytest.approx(4.0)
    assert profile.seconds(1, 5) == pytest.approx(2.5)
    assert len(profile.table(1)) == 9


def test_a_size_that_seemed_slower_than_a_larger_one_costs_no_more_than_that():
    profile = CostProfile(4, (1, 2, 4), ((1.0, 9.0, 3.0),))
    assert profile.table(1) == pytest.approx((0.0, 1.0, 3.0, 3.0, 3.0))


def test_the_best_sample_is_that_of_the_most_efficient_batch():
    profile = CostProfile(4, (1, 2, 4), ((1.0, 1.0, 3.0), (1.0, 2.0, 4.0)))
    assert profile.best_sample_s(1) == 0.5
    assert profile.best_sample_s(2) == 1.0


def test_a_profile_comes_back_from_json():
    profile = CostProfile(6, (1, 2, 4), ((1.0, 1.5, 2.5), (0.25, 0.5, 0.5)))
    document = json.loads(json.dumps({"name": "a machine", **profile.to_dict()}))
    assert CostProfile.from_dict(document) == profile


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((4, (2, 4), ((1.0, 2.0),)), r"batch_sizes \(2, 4\) are out of range"),
        ((4, (1, 1), ((1.0, 2.0),)), r"batch_sizes \(1, 1\) are out of range"),
        ((4, (), ((),)), r"batch_sizes \(\) are out of range"),
        ((2, (1, 4), ((1.0, 2.0),)), "max_batch_size 2 is out of range: at least 4"),
        ((4, (1, 4), ()), r"measured_s \(\) are out of range"),
        ((4, (1, 4), ((1.0, 2.0), (1.0,))), "of stage 2 are out of range: give 2 finite times"),
        ((4, (1, 4), ((1.0, 0.0),)), "of stage 1 are out of range"),
        ((4, (1, 4), ((1.0, float("inf")),)), "of stage 1 are out of range"),
    ],
)
def test_what_is_no_table_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CostProfile(*values)


@pytest.mark.parametrize("values", [{}, {"max_batch_size": 1, "batch_sizes": [1]}, {"max_batch_size": None}])
def test_a_document_that_is_no_profile_is_refused(values):
    with pytest.raises(ValueError, match="a cost profile needs max_batch_size, batch_sizes and measured_s"):
        CostProfile.from_dict(values)


@given(
    times=st.lists(st.lists(st.floats(1e-6, 1e3), min_size=4, max_size=4), min_size=1, max_size=4),
    more=st.integers(0, 20),
)
def test_a_larger_batch_never_costs_less(times, more):
    profile = CostProfile(8 + more, (1, 2, 5, 8), tuple(map(tuple, times)))
    for stage in range(1, profile.num_stages + 1):
        row = profile.table(stage)
        assert row[0] == 0.0
        assert all(before <= after * (1 + 1e-12) for before, after in pairwise(row))


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (33, (1, 2, 4, 8, 16, 32, 33))],
)
def test_the_grid_doubles_and_ends_with_the_largest_batch(largest, sizes):
    assert grid(largest) == sizes


@dataclass
class ClockedRunner:
    """Moves its clock by what a step costs; states say how often they were kept."""

    num_stages: int = 3
    now_s: float = 5.0
    disturbed_steps: frozenset[int] = frozenset()
    steps: list[tuple[int, int]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        if stage == 1:
            assert all(state.shape == (2, 2, 3) and state.dtype == np.uint8 for state in states)
        else:
            assert list(states) == [("kept", stage - 1, row) for row in range(len(states))]
        self.now_s += cost_s(stage, len(states)) + (100.0 if len(self.steps) in self.disturbed_steps else 0.0)
        self.steps.append((stage, len(states)))

        def keep(rows: Sequence[int]) -> list[Any]:
            assert stage < self.num_stages, "no sample goes on behind the last stage"
            return [("kept", stage, row) for row in rows]

        return StepOutput(np.zeros((len(states), 2), np.float32), keep)

    def warm_up(self, max_batch_size: int) -> None: ...


def cost_s(stage: int, batch_size: int) -> float:
    return stage + 0.125 * batch_size


def test_a_measured_profile_holds_the_cost_of_every_stage_and_size():
    runner = ClockedRunner()
    profile = measure_profile(runner, 2, 6, runner.clock, budget_s=1e6)
    assert profile.batch_sizes == (1, 2, 4, 6)
    assert profile.max_batch_size == 6
    for stage in (1, 2, 3):
        assert profile.measured_s[stage - 1] == pytest.approx([cost_s(stage, size) for size in (1, 2, 4, 6)])


def test_rounds_are_interleaved_and_an_interruption_does_not_count():
    runner = ClockedRunner(disturbed_steps=frozenset({0, 7, 15}))
    profile = measure_profile(runner, 2, 2, runner.clock, rounds=3, budget_s=1e6)
    sizes = [size for stage, size in runner.steps if stage == 1]
    assert sizes == [1, 2, 1, 2, 1, 2]
    assert profile.measured_s == ((1.125, 1.25), (2.125, 2.25), (3.125, 3.25))


def test_no_round_is_begun_when_the_budget_is_spent():
    runner = ClockedRunner()
    measure_profile(runner, 2, 2, runner.clock, rounds=50, budget_s=20.0)
    # A round of both sizes takes 12.75 s: the second begins within 20 s, the third would not.
    assert [size for stage, size in runner.steps if stage == 1] == [1, 2, 1, 2]


def test_sizes_beyond_the_budget_are_extrapolated():
    runner = ClockedRunner()
    profile = measure_profile(runner, 2, 64, runner.clock, budget_s=10.0)
    assert profile.batch_sizes == (1, 2)
    assert profile.seconds(1, 64) == pytest.approx(32 * cost_s(1, 2))


def test_one_walk_is_made_however_small_the_budget():
    runner = ClockedRunner()
    assert measure_profile(runner, 2, 8, runner.clock, budget_s=0.0).batch_sizes == (1,)
    assert runner.steps == [(1, 1), (2, 1), (3, 1)]
