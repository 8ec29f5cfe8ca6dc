"""Policies: what each chooses, and what holds for all of them behind the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.server.engine.policies import (
    BUSY_BATCHES,
    DEFAULT_POLICY,
    MIN_EFFICIENCY_BUSY,
    POLICIES,
    Choice,
    CostModel,
    FullestFirst,
    FullFirst,
    QueueState,
    RunToCompletion,
)
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.scheduler import Scheduler

B = 8


def profile(*rows: Sequence[float], max_batch_size: int = B) -> CostProfile:
    return CostProfile(max_batch_size, (1, 2, 4, 8), tuple(map(tuple, rows)))


LINEAR = profile(*[(1.0, 2.0, 4.0, 8.0)] * 4)
FLAT = profile(*[(1.0, 1.0, 1.0, 1.0)] * 4)
BETWEEN = profile(*[(1.0, 1.2, 1.6, 2.4)] * 4)


def waiting(*depths: int, going_on: tuple[float, ...] | None = None) -> QueueState:
    return QueueState(depths, going_on or (*[0.5] * (len(depths) - 1), 0.0), B)


@dataclass(eq=False)
class Traveller:
    """A sample that leaves at a known exit."""

    exit: int
    abandoned: bool = False
    deadline_s: float | None = None
    low_priority: bool = False


def test_run_to_completion_takes_the_deepest_however_few():
    assert RunToCompletion().choose(waiting(20, 8, 1, 0)) == Choice(3, 1)
    assert RunToCompletion().choose(waiting(20, 0, 0, 0)) == Choice(1, B)


def test_fullest_first_takes_the_largest_batch_and_of_equal_ones_the_deepest():
    assert FullestFirst().choose(waiting(3, 5, 4, 0)) == Choice(2, 5)
    assert FullestFirst().choose(waiting(30, 8, 9, 1)) == Choice(3, B)


def test_full_first_takes_the_deepest_full_batch_or_else_the_deepest():
    assert FullFirst().choose(waiting(30, 9, 7, 1)) == Choice(2, B)
    assert FullFirst().choose(waiting(7, 0, 7, 1)) == Choice(4, 1)


@given(depths=st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(any))
def test_where_cost_is_linear_the_cost_model_goes_deepest_first(depths):
    state = waiting(*depths)
    assert CostModel(LINEAR).choose(state) == RunToCompletion().choose(state)


def test_where_cost_is_flat_the_cost_model_lets_full_batches_pass_once_much_work_waits():
    policy = CostModel(FLAT)
    assert policy.choose(waiting(40, 0, 0, 1)) == Choice(1, B)
    assert policy.choose(waiting(40, 8, 0, 1)) == Choice(2, B)


@pytest.mark.parametrize("costs", [LINEAR, FLAT, BETWEEN])
def test_while_little_waits_the_cost_model_goes_deepest_first(costs):
    assert CostModel(costs).choose(waiting(1, 2, 0, 1)) == Choice(4, 1)


ALL_GO_ON = (1.0, 1.0, 1.0, 0.0)


def test_where_cost_is_flat_a_small_batch_waits_for_the_larger_one_behind_it():
    policy = CostModel(FLAT)
    # One step spares seven samples three; the two ahead lose one step each.
    assert policy.choose(waiting(5, 2, 0, 0, going_on=ALL_GO_ON)) == Choice(1, 5)
    # The other way round, five lose for the sake of two.
    assert policy.choose(waiting(2, 5, 0, 0, going_on=ALL_GO_ON)) == Choice(2, 5)
    # Near the end there is little left to share.
    assert policy.choose(waiting(5, 0, 0, 2, going_on=ALL_GO_ON)) == Choice(4, 2)
    # More than can go on together need not meet.
    assert policy.choose(waiting(5, 4, 0, 0, going_on=ALL_GO_ON)) == Choice(2, 4)


def test_several_batches_catch_up_in_turn():
    assert CostModel(FLAT).choose(waiting(4, 3, 1, 0, going_on=ALL_GO_ON)) == Choice(1, 4)


def test_samples_that_leave_before_save_no_step():
    """If nearly all samples leave at exit 1, few of them share the steps of deeper samples."""
    policy = CostModel(FLAT)
    assert policy.choose(waiting(3, 1, 0, 0, going_on=ALL_GO_ON)).stage == 1
    assert policy.choose(waiting(3, 1, 0, 0, going_on=(0.05, 1.0, 1.0, 0.0))).stage == 2


def closed_loop(costs: CostProfile, clients: int, answers: int) -> float:
    """Answers a second to clients who ask anew while the step after their last one runs; all go to the end."""
    scheduler: Scheduler[Traveller] = Scheduler(costs.num_stages, B, CostModel(costs))
    scheduler.enqueue(1, [Traveller(costs.num_stages) for _ in range(clients - 1)])
    asking, answered, now_s = 1, 0, 0.0
    while answered < answers:
        batch = scheduler.schedule(now_s)
        scheduler.enqueue(1, [Traveller(costs.num_stages) for _ in range(asking)])
        asking = 0
        if batch is None:
            continue
        now_s += costs.seconds(batch.stage, len(batch.samples))
        if batch.stage < costs.num_stages:
            scheduler.enqueue(batch.stage + 1, batch.samples)
        else:
            asking = len(batch.samples)
            answered += asking
    return answered / now_s


def test_clients_of_a_closed_loop_come_together():
    """Six clients in two batches of five and one, which no rule without a view of both would ever join."""
    assert closed_loop(FLAT, 6, 600) == pytest.approx(6 / 4, rel=0.02)
    assert closed_loop(LINEAR, 6, 600) == pytest.approx(1 / 4, rel=0.02)


def test_how_efficient_a_step_must_be_follows_the_work_that_waits():
    # Two of eight at a flat cost are a quarter of what is possible. All leave at once: work is counted in samples.
    policy, leaving = CostModel(FLAT), (0.0, 0.0, 0.0, 0.0)
    asked = (2 / 8 / MIN_EFFICIENCY_BUSY) ** 0.5 * BUSY_BATCHES * B
    enough_waits = int(asked) + 1 - 2
    assert policy.choose(waiting(enough_waits - 1, 0, 0, 2, going_on=leaving)).stage == 4
    assert policy.choose(waiting(enough_waits + 1, 0, 0, 2, going_on=leaving)).stage == 1


def test_samples_that_go_on_count_with_their_work_at_later_stages():
    policy = CostModel(profile(*[(1.0, 1.0, 1.0, 1.0)] * 2))
    state = (8, 4)
    few_go_on, all_go_on = waiting(*state, going_on=(0.0, 0.0)), waiting(*state, going_on=(1.0, 0.0))
    # The same queues: they are more of what a device can do at once if none of them comes back.
    assert policy.choose(few_go_on).stage == 1
    assert policy.choose(all_go_on).stage == 2


def test_where_no_step_is_efficient_enough_the_deepest_goes():
    # Two stages of a flat cost; the last one is long, so that a few in front of it are much work.
    costs = profile((1.0, 1.0, 1.0, 1.0), (100.0, 100.0, 100.0, 100.0))
    assert CostModel(costs).choose(QueueState((7, 7), (0.0, 0.0), B)) == Choice(2, 7)


def test_no_batch_is_larger_than_what_pays():
    short_of_memory = profile((1.0, 1.5, 2.0, 8.0))
    assert CostModel(short_of_memory).choose(QueueState((30,), (0.0,), B)) == Choice(1, 4)
    hardly_dearer = profile((1.0, 1.5, 2.0, 4.1))
    assert CostModel(hardly_dearer).choose(QueueState((30,), (0.0,), B)) == Choice(1, B)


def test_the_default_is_one_of_the_named_policies():
    assert isinstance(POLICIES[DEFAULT_POLICY](FLAT), CostModel)


NAMES = pytest.mark.parametrize("name", POLICIES)
COSTS = st.sampled_from([LINEAR, FLAT, BETWEEN])


@NAMES
@given(depths=st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any), costs=COSTS)
def test_every_policy_chooses_a_batch_there_is(name, depths, costs):
    choice = POLICIES[name](costs).choose(waiting(*depths))
    assert 1 <= choice.size <= min(B, depths[choice.stage - 1])


@given(exits=st.lists(st.integers(1, 4), min_size=1, max_size=60), arriving=st.lists(st.integers(0, 12), max_size=12))
def test_run_to_completion_never_merges_batches(exits, arriving):
    scheduler: Scheduler[Traveller] = Scheduler(4, B, RunToCompletion())
    new = iter([Traveller(exit) for exit in exits])
    cohort: list[Traveller] = []
    for number in (*arriving, *[0] * 4 * len(exits)):
        scheduler.enqueue(1, islice(new, number))
        batch = scheduler.schedule(0.0)
        if batch is None:
            continue
        if batch.stage == 1:
            assert not any(scheduler.depths[1:])
        else:
            assert batch.samples == cohort
        cohort = [sample for sample in batch.samples if sample.exit > batch.stage]
        if cohort:
            scheduler.enqueue(batch.stage + 1, cohort)


@NAMES
@settings(deadline=None)
@given(
    exits=st.lists(st.integers(1, 4), min_size=1, max_size=80),
    arriving=st.lists(st.integers(0, 20), max_size=30),
    costs=COSTS,
)
def test_every_sample_is_answered_and_overtaken_a_bounded_number_of_times(name, exits, arriving, costs):
    policy = POLICIES[name](costs)
    scheduler: Scheduler[Traveller] = Scheduler(4, B, policy)
    new, answered, in_a_row = iter([Traveller(exit) for exit in exits]), 0, [0] * 4
    for number in (*arriving, len(exits), *[0] * 4 * len(exits)):
        scheduler.enqueue(1, islice(new, number))
        depths = scheduler.depths
        batch = scheduler.schedule(0.0)
        if batch is None:
            continue
        in_a_row[batch.stage - 1] = 0
        for stage in range(batch.stage + 1, 5):
            in_a_row[stage - 1] += depths[stage - 1] > 0
            assert in_a_row[stage - 1] <= policy.patience
        going = [sample for sample in batch.samples if sample.exit > batch.stage]
        answered += len(batch.samples) - len(going)
        if going:
            scheduler.enqueue(batch.stage + 1, going)
    assert answered == len(exits)
    assert not any(scheduler.depths)


@NAMES
def test_an_endless_stream_of_full_batches_holds_a_deep_sample_up_for_a_while_only(name):
    policy = POLICIES[name](FLAT)
    scheduler: Scheduler[Traveller] = Scheduler(4, B, policy)
    alone = Traveller(exit=4)
    scheduler.enqueue(4, [alone])
    for _ in range(policy.patience + 1):
        scheduler.enqueue(1, [Traveller(exit=1) for _ in range(5 * B)])
        batch = scheduler.schedule(0.0)
        assert batch is not None
        if alone in batch.samples:
            return
    pytest.fail(f"passed over more than {policy.patience} times")


@NAMES
def test_an_endless_stream_of_deep_work_cannot_arise_new_samples_have_their_turn(name):
    scheduler: Scheduler[Traveller] = Scheduler(4, B, POLICIES[name](LINEAR))
    steps_between, since = [], 0
    for _ in range(200):
        scheduler.enqueue(1, [Traveller(exit=4) for _ in range(B)])
        batch = scheduler.schedule(0.0)
        assert batch is not None
        since += 1
        if batch.stage == 1:
            steps_between.append(since)
            since = 0
        if batch.stage < 4:
            scheduler.enqueue(batch.stage + 1, batch.samples)
    assert max(*steps_between, since) <= 4 * 4


def test_a_full_batch_is_one_that_was_measured():
    """A runner that fills up to 32 makes 25 cost as much, though the line between 16 and 32 says otherwise."""
    profile = CostProfile(32, (1, 8, 16, 32), ((2.1, 12.0, 23.5, 51.2), (2.2, 9.4, 18.4, 36.0)))
    policy = CostModel(profile)
    crowd = QueueState((100, 0), (0.5, 0.0), 32)
    assert policy.choose(crowd) == Choice(1, 16)
    assert policy.choose(QueueState((0, 100), (0.5, 0.0), 32)) == Choice(2, 32)
