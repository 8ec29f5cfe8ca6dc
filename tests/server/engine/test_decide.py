"""After one step: which samples leave, why, with which times; and a failing step changes no sample."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from offramp.models.exit_policy import ExitReason
from offramp.server.engine.decide import decide
from offramp.server.engine.errors import InferenceFailed
from offramp.server.engine.request import Sample, Visit
from offramp.server.engine.runners.runner import StepOutput
from tests.server.engine.scripted import contract


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def sample(loop: asyncio.AbstractEventLoop, threshold: float = 0.9, **bounds: int) -> Sample:
    asked = contract(threshold, **bounds)
    return Sample("picture", asked, asked.asked, loop.create_future(), 10.0)


def output(*confidences: float, states: list | None = None) -> StepOutput:
    """Two classes; the second has the confidence."""
    probabilities_BC = np.array([[1 - c, c] for c in confidences], np.float32)
    states = states or [f"state {row}" for row in range(len(confidences))]
    return StepOutput(probabilities_BC, lambda rows: [states[row] for row in rows])


def test_each_sample_leaves_by_its_own_limit(loop):
    samples = [sample(loop, threshold) for threshold in (0.5, 0.9, 0.0, 1.0)]
    decision = decide(1, samples, output(0.75, 0.75, 0.75, 0.75), 11.0, 12.0)
    assert [s for s, _ in decision.answers] == [samples[0], samples[2]]
    assert decision.survivors == [samples[1], samples[3]]
    assert [s.state for s in decision.survivors] == ["state 1", "state 3"]
    assert decision.failures == []


def test_confidence_equal_to_the_threshold_leaves(loop):
    assert decide(1, [sample(loop, 0.75)], output(0.75), 0.0, 0.0).answers


def test_a_threshold_of_one_never_leaves_early_at_any_confidence(loop):
    assert decide(3, [sample(loop, 1.0)], output(1.0), 0.0, 0.0).survivors


@pytest.mark.parametrize(
    ("stage", "threshold", "bounds", "reason"),
    [
        (1, 0.6, {}, ExitReason.CONFIDENT),
        (4, 0.6, {}, ExitReason.FINAL),
        (4, 0.9, {}, ExitReason.FINAL),
        (2, 0.9, {"max_exit": 2}, ExitReason.MAX_EXIT),
        (2, 0.6, {"max_exit": 2}, ExitReason.CONFIDENT),
        (2, 0.6, {"min_exit": 2}, ExitReason.CONFIDENT),
    ],
)
def test_the_reason_says_why(loop, stage, threshold, bounds, reason):
    [(_, answer)] = decide(stage, [sample(loop, threshold, **bounds)], output(0.75), 0.0, 0.0).answers
    assert answer.reason == reason


def test_no_sample_leaves_before_min_exit(loop):
    waiting = sample(loop, 0.0, min_exit=3)
    assert decide(1, [waiting], output(1.0), 0.0, 0.0).survivors
    assert decide(2, [waiting], output(1.0), 0.0, 0.0).survivors
    assert decide(3, [waiting], output(0.5), 0.0, 0.0).answers


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_sample_without_finite_probabilities_fails_alone(loop, broken):
    bad, good = sample(loop), sample(loop)
    decision = decide(1, [bad, good], output(broken, 0.95), 0.0, 0.0)
    [(failed, error)] = decision.failures
    assert failed is bad
    assert isinstance(error, InferenceFailed)
    assert [s for s, _ in decision.answers] == [good]
    assert bad.trail == ()


def test_times_add_up_over_the_stages(loop):
    waiting = sample(loop)
    decide(1, [waiting], output(0.6), start_s=11.0, end_s=11.5)
    answer = waiting.answer(ExitReason.DEADLINE, 11.75)
    assert (answer.queue_s, answer.inference_s, answer.latency_s) == (1.0, 0.5, 1.75)
    [(_, answer)] = decide(2, [waiting], output(0.95), start_s=13.5, end_s=13.75).answers
    assert (answer.queue_s, answer.inference_s, answer.latency_s) == (3.0, 0.75, 3.75)


def test_the_answer_tells_of_every_exit_passed(loop):
    waiting = sample(loop)
    decide(1, [waiting], output(0.25), 0.0, 0.0)
    [(_, answer)] = decide(2, [waiting], output(1.0), 0.0, 0.0).answers
    assert answer.visited == (Visit(1, 0, 0.75), Visit(2, 1, 1.0))
    assert (answer.exit, answer.class_id, answer.confidence) == (2, 1, 1.0)
    assert answer.probabilities_C.tolist() == [0.0, 1.0]


def test_an_answers_probabilities_hold_no_memory_of_the_batch(loop):
    together = output(0.25, 0.95)
    [(_, answer)] = decide(1, [sample(loop), sample(loop)], together, 0.0, 0.0).answers
    assert not np.shares_memory(answer.probabilities_C, together.probabilities_BC)


class OneStateBroken(list):
    def __getitem__(self, row):
        if row == 1:
            raise RuntimeError("out of memory")
        return super().__getitem__(row)


@pytest.mark.parametrize(
    "bad_output",
    [
        output(0.5, 0.5, states=OneStateBroken(["state 0", "state 1"])),
        output(0.5),
        output(0.5, 0.5, 0.5),
    ],
    ids=["a state that cannot be had", "too few rows", "too many rows"],
)
def test_where_it_raises_no_sample_is_changed(loop, bad_output):
    samples = [sample(loop), sample(loop)]
    with pytest.raises((RuntimeError, AssertionError)):
        decide(1, samples, bad_output, 11.0, 12.0)
    assert [(s.state, s.trail) for s in samples] == [("picture", ())] * 2
