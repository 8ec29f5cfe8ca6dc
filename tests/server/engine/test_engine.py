"""The engine on a scripted runner: when each sample is answered, and that none is lost, harmed or left waiting."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

from offramp.models.exit_policy import ExitReason, ExitRule
from offramp.server.engine.engine import Engine
from offramp.server.engine.errors import InferenceFailed, Overloaded
from offramp.server.engine.request import Contract, ExitPlan
from offramp.server.engine.stats import SampleStats, StepStats
from tests.server.engine.scripted import Clock, Recorder, ScriptedRunner, contract, picture, started

SURE = (0.95, 0.96, 0.97, 0.98)
NAN = float("nan")


def exits(answers) -> list[int]:
    return [answer.exit for answer in answers]


async def test_answers_come_in_the_order_of_the_pictures_not_of_the_exits():
    runner = ScriptedRunner({0: (0.1, 0.2, 0.3, 0.4), 1: SURE, 2: (0.1, 0.95, 0.1, 0.1)})
    async with started(runner, Recorder()) as engine:
        answers = await asyncio.gather(*engine.submit([picture(0), picture(1), picture(2)], contract()))
    assert [(answer.class_id, answer.exit) for answer in answers] == [(0, 4), (1, 1), (2, 2)]


async def test_no_pictures_give_no_futures():
    async with started(ScriptedRunner(), Recorder()) as engine:
        assert engine.submit([], contract()) == []


async def test_each_sample_of_a_batch_leaves_by_its_own_contract():
    runner = ScriptedRunner(gated=True)
    contracts = [
        contract(0.0),
        contract(0.35),
        contract(0.45),
        contract(1.0),
        contract(1.0, max_exit=2),
        contract(0.0, min_exit=3),
    ]
    async with started(runner, Recorder()) as engine:
        [blocker] = engine.submit([picture(9)], contract(0.0))
        await runner.entered()
        futures = [engine.submit([picture(n)], each)[0] for n, each in enumerate(contracts)]
        runner.let_all()
        answers = await asyncio.gather(*futures)
        await blocker
    assert runner.steps[1] == (1, [0, 1, 2, 3, 4, 5])
    assert exits(answers) == [1, 2, 3, 4, 2, 3]
    assert answers[4].reason == ExitReason.MAX_EXIT


async def test_an_early_leaver_is_answered_before_the_deeper_step_is_over():
    runner = ScriptedRunner({1: SURE}, gated=True)
    async with started(runner, Recorder()) as engine:
        slow, quick = engine.submit([picture(0), picture(1)], contract())
        runner.let(1)
        assert await runner.entered() == (1, [0, 1])
        assert await runner.entered() == (2, [0])
        assert (await quick).exit == 1
        assert not slow.done()


async def test_survivors_of_different_requests_are_run_together():
    runner = ScriptedRunner({0: SURE, 1: SURE}, gated=True)
    async with started(runner, Recorder(), max_batch_size=2) as engine:
        futures = engine.submit([picture(9)], contract(0.0))
        await runner.entered()
        for n in (0, 2, 1, 3):
            futures += engine.submit([picture(n)], contract())
        runner.let_all()
        await asyncio.gather(*futures)
    assert runner.steps[1:4] == [(1, [0, 2]), (1, [1, 3]), (2, [2, 3])]


async def test_only_survivors_states_are_cut_out():
    runner = ScriptedRunner({0: SURE, 1: (0.1, 0.95, 0.1, 0.1)})
    async with started(runner, Recorder()) as engine:
        await asyncio.gather(*engine.submit([picture(n) for n in range(3)], contract(max_exit=3)))
    assert runner.materialised == [(1, 1), (1, 2), (2, 2)]


async def test_times_of_an_answer_add_up_and_waiting_for_a_running_step_counts():
    runner = ScriptedRunner({0: SURE}, gated=True, step_s=0.25)
    async with started(runner, Recorder()) as engine:
        [first] = engine.submit([picture(0)], contract())
        await runner.entered()
        [second] = engine.submit([picture(1)], contract())
        runner.let_all()
        await first
        answer = await second
    assert (answer.queue_s, answer.inference_s, answer.latency_s) == (0.25, 1.0, 1.25)


# ---- hanging up ---------------------------------------------------------------------------------


async def test_a_sample_cancelled_in_the_queue_is_never_run_and_counted_once():
    runner, observer = ScriptedRunner({0: SURE}, gated=True), Recorder()
    async with started(runner, observer) as engine:
        [first] = engine.submit([picture(0)], contract())
        await runner.entered()
        cancelled, others = engine.submit([picture(1), picture(2)], contract())
        cancelled.cancel()
        runner.let_all()
        await asyncio.gather(first, others)
    assert all(1 not in names for _, names in runner.steps)
    assert [stats.phase for stats in observer.cancels] == ["queued"]
    assert len(observer.samples) == 2


async def test_a_sample_cancelled_on_its_way_goes_no_deeper_and_is_counted_once():
    runner, observer = ScriptedRunner(gated=True), Recorder()
    async with started(runner, observer) as engine:
        cancelled, others = engine.submit([picture(0), picture(1)], contract())
        await runner.entered()
        cancelled.cancel()
        runner.let_all()
        await others
    assert runner.steps == [(1, [0, 1]), (2, [1]), (3, [1]), (4, [1])]
    assert [stats.phase for stats in observer.cancels] == ["running"]
    assert len(observer.samples) == 1


async def test_a_sample_cancelled_during_the_step_it_would_leave_at_is_counted_once_as_cancelled():
    runner, observer = ScriptedRunner({0: SURE, 1: (NAN,) * 4}, gated=True), Recorder()
    async with started(runner, observer) as engine:
        futures = engine.submit([picture(0), picture(1)], contract())
        await runner.entered()
        for future in futures:
            future.cancel()
    assert len(observer.cancels) == 2
    assert observer.samples == []


# ---- isolation ----------------------------------------------------------------------------------


def fails_for(bad: int, at_stage: int):
    def fault(stage: int, names: list[int]) -> None:
        if stage == at_stage and bad in names:
            raise RuntimeError("broken picture")

    return fault


@pytest.mark.parametrize("stage", [1, 2, 4])
async def test_a_sample_whose_step_raises_harms_no_other(stage):
    runner = ScriptedRunner(faults=fails_for(1, stage))
    async with started(runner, Recorder()) as engine:
        good, bad, also_good = engine.submit([picture(0), picture(1), picture(2)], contract())
        with pytest.raises(InferenceFailed, match=f"stage {stage}"):
            await bad
        assert exits(await asyncio.gather(good, also_good)) == [4, 4]
        [after] = await asyncio.gather(*engine.submit([picture(3)], contract()))
        assert [visit.exit for visit in after.visited] == [1, 2, 3, 4]
        assert engine.alive


async def test_a_runner_that_fails_only_for_batches_answers_every_sample():
    def no_batches(stage: int, names: list[int]) -> None:
        if len(names) > 1:
            raise MemoryError("the batch is too large")

    runner = ScriptedRunner({1: SURE}, faults=no_batches)
    async with started(runner, Recorder()) as engine:
        answers = await asyncio.gather(*engine.submit([picture(n) for n in range(3)], contract()))
    assert exits(answers) == [4, 1, 4]
    assert [[visit.exit for visit in answer.visited] for answer in answers] == [[1, 2, 3, 4], [1], [1, 2, 3, 4]]


async def test_a_sample_with_nan_fails_alone():
    runner = ScriptedRunner({1: (0.1, NAN, 0.1, 0.1)})
    async with started(runner, Recorder()) as engine:
        good, bad = engine.submit([picture(0), picture(1)], contract())
        with pytest.raises(InferenceFailed, match="stage 2 gave no finite probabilities"):
            await bad
        assert (await good).exit == 4


# ---- admission ----------------------------------------------------------------------------------


async def test_a_request_is_taken_in_whole_or_not_at_all():
    runner = ScriptedRunner(gated=True)
    async with started(runner, Recorder(), max_samples=3) as engine:
        futures = engine.submit([picture(0), picture(1)], contract(0.0))
        with pytest.raises(Overloaded) as refusal:
            engine.submit([picture(2), picture(3)], contract(0.0))
        assert refusal.value.retry_after_s >= 1.0
        assert engine.inflight_samples == 2
        futures += engine.submit([picture(4)], contract(0.0))
        runner.let_all()
        await asyncio.gather(*futures)
        assert engine.inflight_samples == 0
        await asyncio.gather(*engine.submit([picture(n) for n in range(3)], contract(0.0)))


async def test_a_question_for_room_is_answered_and_takes_none():
    runner = ScriptedRunner(gated=True, step_s=1.0)
    async with started(runner, Recorder(), max_samples=3, max_wait_s=0.5) as engine:
        assert engine.overload(3) is None
        assert isinstance(engine.overload(4), Overloaded)
        assert engine.inflight_samples == 0
        [first] = engine.submit([picture(0)], contract(0.0))
        assert engine.overload(2) is None
        assert isinstance(engine.overload(3), Overloaded)
        runner.let(1)
        await first
        # From now on a step's second is known, and one sample in flight is too long a wait.
        engine.submit([picture(1)], contract(0.0))
        refusal = engine.overload(1)
        assert refusal is not None
        assert refusal.retry_after_s == 1.0


async def test_a_request_larger_than_the_engine_is_no_matter_of_waiting():
    async with started(ScriptedRunner(), Recorder(), max_samples=3) as engine:
        with pytest.raises(ValueError, match=r"4 pictures .* at most 3"):
            engine.submit([picture(n) for n in range(4)], contract())


async def test_a_rule_for_another_depth_is_refused_and_the_engine_lives():
    async with started(ScriptedRunner(), Recorder()) as engine:
        for num_exits in (3, 5):
            with pytest.raises(ValueError, match=f"{num_exits} exits .* has 4; give 3 thresholds"):
                engine.submit([picture(0)], Contract(ExitPlan(ExitRule.uniform(0.5, num_exits))))
        assert (await engine.submit([picture(0)], contract())[0]).exit == 4


async def test_cancelled_samples_hold_their_place_until_the_engine_lets_go_of_them():
    runner, observer = ScriptedRunner(gated=True), Recorder()
    async with started(runner, observer, max_samples=2) as engine:
        running, queued = *engine.submit([picture(0)], contract(0.0)), *engine.submit([picture(1)], contract(0.0))
        await runner.entered()
        queued.cancel()
        with pytest.raises(Overloaded):
            engine.submit([picture(2)], contract(0.0))
        runner.let_all()
        await running
        await observer.until_cancelled(1)
        assert (await engine.submit([picture(2)], contract(0.0))[0]).exit == 1


async def test_the_predicted_wait_is_work_a_sample_times_samples_before_it():
    # 32 pictures: 31 leave behind stage 1, one goes to the end: 4 steps of 1 s for 32 samples.
    runner = ScriptedRunner(dict.fromkeys(range(1, 32), SURE), step_s=1.0)
    async with started(runner, Recorder(), max_wait_s=0.2) as engine:
        assert engine.load.wait_s == 0.0
        await asyncio.gather(*engine.submit([picture(n) for n in range(32)], contract()))
        runner.gated = True
        engine.submit([picture(1)], contract())
        assert engine.load.wait_s == pytest.approx(4 / 32, rel=0.05)
        engine.submit([picture(2)], contract())
        with pytest.raises(Overloaded):
            engine.submit([picture(3)], contract())


async def test_failing_samples_do_not_spoil_the_predicted_wait():
    runner = ScriptedRunner({0: (NAN,) * 4, 1: SURE}, step_s=1.0)
    async with started(runner, Recorder()) as engine:
        for _ in range(20):
            with pytest.raises(InferenceFailed):
                await engine.submit([picture(0)], contract())[0]
        await engine.submit([picture(1)], contract())[0]
        runner.gated = True
        engine.submit([picture(1)], contract())
        assert engine.load.wait_s == pytest.approx(1.0)


# ---- what is reported ---------------------------------------------------------------------------


async def test_every_sample_is_reported_exactly_once_and_steps_add_up():
    runner, observer = ScriptedRunner({1: SURE, 2: (NAN,) * 4}, gated=True), Recorder()
    async with started(runner, observer) as engine:
        futures = engine.submit([picture(n) for n in range(4)], contract())
        futures[3].cancel()
        runner.let_all()
        await asyncio.gather(*futures, return_exceptions=True)
    assert sorted((stats.exit, stats.reason) for stats in observer.samples) == [
        (1, ExitReason.CONFIDENT),
        (4, ExitReason.FINAL),
    ]
    assert len(observer.cancels) == 1
    assert sum(stats.batch_size for stats in observer.steps) == sum(len(names) for _, names in runner.steps)
    assert observer.steps[-1] == StepStats(stage=4, batch_size=1, duration_s=0.25)


async def test_queue_depths_are_current_even_where_waiting_samples_were_dropped():
    runner, observer = ScriptedRunner(gated=True), Recorder()
    async with started(runner, observer, max_batch_size=2) as engine:
        running, *waiting = engine.submit([picture(n) for n in range(5)], contract(0.0))
        await runner.entered()
        more = engine.submit([picture(5)], contract(0.0))
        assert engine.queue_depths == (4, 0, 0, 0)
        for future in (*waiting, *more):
            future.cancel()
        runner.let_all()
        await running
        await observer.until_cancelled(5)
        assert engine.queue_depths == (0, 0, 0, 0)


class FaultyObserver(Recorder):
    def __call__(self, event):
        if isinstance(event, SampleStats):
            raise ZeroDivisionError("a bug in the metrics")


async def test_a_fault_in_the_observer_leaves_no_sample_waiting():
    complaints: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    async with started(ScriptedRunner(), FaultyObserver()) as engine:
        answers = await asyncio.gather(*engine.submit([picture(0), picture(1)], contract(0.0)))
    assert exits(answers) == [1, 1]
    assert isinstance(complaints[0]["exception"], ZeroDivisionError)


# ---- memory -------------------------------------------------------------------------------------


async def test_nothing_of_a_sample_is_kept_after_its_answer():
    runner = ScriptedRunner({1: (NAN,) * 4})
    async with started(runner, Recorder()) as engine:
        pictures = [picture(0), picture(1), picture(2)]
        others = [weakref.ref(each) for each in pictures]
        futures = engine.submit(pictures, contract(), deadline_s=1e9)
        futures[2].cancel()
        samples = [weakref.ref(sample) for sample in engine._inflight]
        await asyncio.gather(*futures, return_exceptions=True)
        # One more step, so that the engine thread has left the frames of those before.
        await engine.submit([picture(3)], contract())[0]
        del pictures, futures
        gc.collect()
        assert [each() for each in others] == [None] * 3
        assert [each() for each in samples] == [None] * 3


# ---- the whole ----------------------------------------------------------------------------------


async def test_64_concurrent_submitters_each_get_their_own_pictures_answer():
    generator = np.random.default_rng(0)
    script = {name: tuple(map(float, np.sort(generator.uniform(0.2, 0.99, 4)))) for name in range(200)}
    runner, observer = ScriptedRunner(script, clock=Clock(), step_s=0.0), Recorder()
    answered = 0

    async def client(number: int, engine: Engine) -> None:
        nonlocal answered
        draws = np.random.default_rng(number)
        for _ in range(6):
            names = [int(name) for name in draws.integers(0, 200, draws.integers(1, 6))]
            threshold = float(draws.uniform(0, 1))
            for name, answer in zip(
                names,
                await asyncio.gather(*engine.submit([picture(name) for name in names], contract(threshold))),
                strict=True,
            ):
                wanted = next((k for k in (1, 2, 3) if np.float32(script[name][k - 1]) >= np.float32(threshold)), 4)
                assert (answer.class_id, answer.exit) == (name % 10, wanted)
                assert [visit.confidence for visit in answer.visited] == pytest.approx(script[name][:wanted])
                answered += 1

    async with started(runner, observer, max_batch_size=8) as engine:
        await asyncio.gather(*(client(number, engine) for number in range(64)))
        assert engine.inflight_samples == 0
    assert len(observer.samples) == answered
    assert max(len(names) for _, names in runner.steps) == 8


async def test_the_event_loop_is_woken_only_for_answers_and_gets_every_step(monkeypatch):
    runner, observer, deliveries = ScriptedRunner({0: (0.1, 0.2, 0.3, 0.9)}), Recorder(), []
    async with started(runner, observer) as engine:
        deliver = engine._deliver

        def counted(delivery):
            deliveries.append(delivery)
            deliver(delivery)

        monkeypatch.setattr(engine, "_deliver", counted)
        [answer] = await asyncio.gather(*engine.submit([picture(0)], contract(0.8)))
    assert answer.exit == 4
    assert len(deliveries) == 1
    assert [step.stage for step in observer.steps] == [1, 2, 3, 4]
