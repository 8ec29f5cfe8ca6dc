"""The scheduler alone: what is conserved, in which order, and what is never run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.server.engine.policies import Choice, FullestFirst, FullFirst, QueueState, RunToCompletion
from offramp.server.engine.request import Sample
from offramp.server.engine.scheduler import PRIOR_SAMPLES, SHARE_DECAY, Batch, Scheduler
from tests.server.engine.scripted import NUM_STAGES, contract

PATIENCE = FullFirst().patience


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def waiting(loop: asyncio.AbstractEventLoop, name: int = 0, deadline_s: float | None = None) -> Sample:
    asked = contract()
    return Sample(name, asked, asked.asked, loop.create_future(), 0.0, deadline_s)


def scheduled(scheduler: Scheduler[Sample], now_s: float = 0.0) -> Batch[Sample]:
    batch = scheduler.schedule(now_s)
    assert batch is not None
    return batch


def several(loop: asyncio.AbstractEventLoop, number: int) -> list[Sample]:
    return [waiting(loop) for _ in range(number)]


def test_nothing_waiting_gives_no_batch():
    assert Scheduler(NUM_STAGES, 2).schedule(0.0) is None


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="max_batch_size 0 is out of range"):
        Scheduler(NUM_STAGES, 0)


def test_repr_shows_the_queues(loop):
    scheduler = Scheduler[Sample](3, 2)
    scheduler.enqueue(1, several(loop, 4))
    scheduler.enqueue(3, several(loop, 1))
    assert repr(scheduler) == "Scheduler(stage 1: 4, stage 2: 0, stage 3: 1)"
    assert scheduler.depths == (4, 0, 1)


def test_the_deepest_goes_first_where_no_batch_is_full(loop):
    scheduler = Scheduler[Sample](NUM_STAGES, 4)
    for stage in (2, 4, 1, 3):
        scheduler.enqueue(stage, several(loop, 1))
    assert [scheduled(scheduler).stage for _ in range(4)] == [4, 3, 2, 1]


def test_the_deepest_goes_first_where_several_are_full(loop):
    scheduler = Scheduler[Sample](NUM_STAGES, 2)
    for stage in (1, 3, 2):
        scheduler.enqueue(stage, several(loop, 2))
    assert [scheduled(scheduler).stage for _ in range(3)] == [3, 2, 1]


def test_survivors_of_different_batches_go_on_as_one(loop):
    scheduler = Scheduler[Sample](2, 4)
    scheduler.enqueue(1, several(loop, 8))
    survivors = []
    for _ in range(2):
        batch = scheduled(scheduler)
        assert (batch.stage, len(batch.samples)) == (1, 4)
        survivors.append(batch.samples[0])
        scheduler.enqueue(2, batch.samples[:1])
    assert scheduled(scheduler).samples == survivors


def test_new_samples_overtake_a_deeper_one_a_bounded_number_of_times(loop):
    scheduler = Scheduler[Sample](2, 2)
    scheduler.enqueue(2, several(loop, 1))
    stages = []
    for _ in range(PATIENCE + 1):
        scheduler.enqueue(1, several(loop, 2))
        stages.append(scheduled(scheduler).stage)
    assert stages == [1] * PATIENCE + [2]


def test_patience_begins_anew_after_a_step(loop):
    scheduler = Scheduler[Sample](2, 2)
    scheduler.enqueue(1, several(loop, 20))
    for _ in range(2):
        scheduler.enqueue(2, several(loop, 1))
        assert [scheduled(scheduler).stage for _ in range(PATIENCE + 1)] == [1] * PATIENCE + [2]


def test_a_sample_expires_at_its_deadline_and_not_before(loop):
    scheduler = Scheduler[Sample](NUM_STAGES, 4)
    sample = waiting(loop, deadline_s=5.0)
    scheduler.enqueue(2, [sample])
    assert scheduled(scheduler, 4.999).samples == [sample]
    scheduler.enqueue(2, [sample])
    assert scheduled(scheduler, 5.0).dropped == [sample]


def test_samples_that_are_over_leave_their_place_in_the_batch_to_others(loop):
    scheduler = Scheduler[Sample](NUM_STAGES, 2)
    gone, first, late, second = waiting(loop), waiting(loop), waiting(loop, deadline_s=1.0), waiting(loop)
    gone.future.cancel()
    scheduler.enqueue(1, [gone, first, late, second])
    batch = scheduled(scheduler, 2.0)
    assert (batch.samples, batch.dropped) == ([first, second], [gone, late])
    assert scheduler.schedule(2.0) is None


class Few:
    """A policy that takes as few as there can be, from the shallowest stage."""

    patience = 2

    def choose(self, waiting: QueueState) -> Choice:
        return Choice(min(waiting.stages()), 1)


def test_the_policy_says_how_many_go(loop):
    scheduler = Scheduler[Sample](2, 4, Few())
    samples = several(loop, 3)
    scheduler.enqueue(1, samples)
    assert [scheduled(scheduler).samples for _ in range(3)] == [[sample] for sample in samples]


def test_those_passed_over_for_too_long_go_at_last_and_all_at_once(loop):
    scheduler = Scheduler[Sample](3, 4, Few())
    scheduler.enqueue(1, several(loop, 9))
    scheduler.enqueue(2, several(loop, 9))
    scheduler.enqueue(3, several(loop, 2))
    batches = [scheduled(scheduler) for _ in range(5)]
    assert [(batch.stage, len(batch.samples)) for batch in batches] == [(1, 1), (1, 1), (3, 2), (2, 4), (1, 1)]


def test_another_policy_takes_over_where_the_last_one_left(loop):
    scheduler = Scheduler[Sample](2, 4)
    scheduler.enqueue(1, several(loop, 8))
    scheduler.enqueue(2, several(loop, 3))
    assert scheduled(scheduler).stage == 1
    scheduler.policy = RunToCompletion()
    assert scheduled(scheduler).stage == 2
    scheduler.policy = FullestFirst()
    assert scheduled(scheduler).stage == 1


def test_the_share_that_goes_on_is_learnt_from_what_comes_back(loop):
    scheduler = Scheduler[Sample](3, 10)
    assert scheduler.going_on == (0.5, 0.5, 0.0)
    for _ in range(200):
        scheduler.enqueue(1, several(loop, 10))
        first = scheduled(scheduler)
        scheduler.enqueue(2, first.samples[:4])
        # New arrivals between a step and the next are no survivors.
        scheduler.enqueue(1, several(loop, 0))
        second = scheduled(scheduler)
        assert (first.stage, second.stage) == (1, 2)
    assert scheduler.going_on == pytest.approx((0.4, 0.0, 0.0), abs=1e-3)


def test_one_step_counts_against_the_prior_by_its_samples(loop):
    scheduler = Scheduler[Sample](2, 10)
    scheduler.enqueue(1, several(loop, 6))
    scheduler.enqueue(2, scheduled(scheduler).samples)
    prior = SHARE_DECAY * PRIOR_SAMPLES
    assert scheduler.going_on[0] == pytest.approx((prior / 2 + 6) / (prior + 6))


def test_the_policy_is_told_what_waits_and_what_goes_on(loop):
    asked = []

    class Listening(Few):
        def choose(self, waiting: QueueState) -> Choice:
            asked.append(waiting)
            return super().choose(waiting)

    scheduler = Scheduler[Sample](2, 4, Listening())
    scheduler.enqueue(1, several(loop, 5))
    scheduled(scheduler)
    assert asked == [QueueState((5, 0), (0.5, 0.0), 4)]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 7), st.sampled_from([None, 3.0, 9.0])),
        st.tuples(st.just("schedule"), st.floats(0, 1), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
        st.tuples(st.just("tick"), st.integers(1, 3), st.none()),
    ),
    max_size=40,
)


class History:
    """Plays operations against a scheduler and checks every batch against what must hold for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_batch_size: int) -> None:
        self.loop, self.scheduler, self.now_s = loop, Scheduler[Sample](NUM_STAGES, max_batch_size), 0.0
        self.queues: list[list[Sample]] = [[] for _ in range(NUM_STAGES)]
        self.all: list[Sample] = []
        self.ended: list[Sample] = []

    def enqueue(self, stage: int, samples: list[Sample]) -> None:
        self.scheduler.enqueue(stage, samples)
        self.queues[stage - 1] += samples

    def submit(self, number: int, deadline_s: float | None) -> None:
        samples = [waiting(self.loop, len(self.all) + i, deadline_s) for i in range(number)]
        self.all += samples
        self.enqueue(1, samples)

    def cancel(self, which: int) -> None:
        for sample in self.all[which : which + 1]:
            sample.future.cancel()

    def tick(self, by_s: int) -> None:
        self.now_s += by_s

    def schedule(self, surviving_share: float) -> None:
        batch = self.scheduler.schedule(self.now_s)
        if batch is None:
            assert not any(self.queues)
            return
        size, queue = self.scheduler.max_batch_size, self.queues[batch.stage - 1]
        assert len(batch.samples) <= size
        assert len(batch.samples) + len(batch.dropped) > 0
        taken = queue[: len(batch.samples) + len(batch.dropped)]
        del queue[: len(taken)]
        over = [s for s in taken if s.future.done() or (s.deadline_s or 1e9) <= self.now_s]
        assert batch.dropped == over
        assert batch.samples == [sample for sample in taken if sample not in over]
        assert len(batch.samples) == size or not queue
        self.ended += batch.dropped
        going = batch.samples[: round(surviving_share * len(batch.samples))] if batch.stage < NUM_STAGES else []
        self.ended += batch.samples[len(going) :]
        if going:
            self.enqueue(batch.stage + 1, going)

    def check(self) -> None:
        assert self.scheduler.depths == tuple(map(len, self.queues))
        everywhere = [*self.ended, *(sample for queue in self.queues for sample in queue)]
        assert sorted(s.state for s in everywhere) == [s.state for s in self.all]


@settings(deadline=None)
@given(operations=operations, max_batch_size=st.integers(1, 5))
def test_any_history_conserves_samples_in_order_and_comes_to_an_end(loop, operations, max_batch_size):
    history = History(loop, max_batch_size)
    for name, *arguments in operations:
        getattr(history, name)(*(argument for argument in arguments if name == "submit" or argument is not None))
        history.check()
    for _ in range(NUM_STAGES * len(history.all)):
        history.schedule(1.0)
        history.check()
    assert history.scheduler.schedule(history.now_s) is None
    assert len(history.ended) == len(history.all)


@settings(deadline=None)
@given(
    arrivals=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    max_batch_size=st.integers(1, 4),
    survivors=st.integers(0, 4),
)
def test_a_waiting_stage_is_passed_over_for_full_batches_only_and_a_bounded_number_of_times(
    loop, arrivals, max_batch_size, survivors
):
    scheduler = Scheduler[Sample](3, max_batch_size)
    in_a_row = [0, 0, 0]
    for number in arrivals:
        scheduler.enqueue(1, several(loop, number))
        depths = scheduler.depths
        batch = scheduler.schedule(0.0)
        if batch is None:
            continue
        passed_over = [stage for stage in range(batch.stage + 1, 4) if depths[stage - 1]]
        if passed_over:
            full = depths[batch.stage - 1] >= max_batch_size
            assert full or in_a_row[batch.stage - 1] == PATIENCE
        in_a_row[batch.stage - 1] = 0
        for stage in passed_over:
            in_a_row[stage - 1] += 1
            assert in_a_row[stage - 1] <= PATIENCE
        if batch.stage < 3:
            scheduler.enqueue(batch.stage + 1, batch.samples[:survivors])
