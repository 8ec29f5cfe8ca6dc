"""Deadlines, draining and death of the engine: every sample gets an outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from offramp.models.exit_policy import ExitReason
from offramp.server.engine.engine import Engine
from offramp.server.engine.errors import DeadlineExceeded, EngineStopped, InferenceFailed, WarmUpFailed
from offramp.server.engine.policies import CostModel
from offramp.server.engine.profile import CostProfile
from tests.server.engine.scripted import (
    Clock,
    ClockLoop,
    Recorder,
    ScriptedRunner,
    contract,
    on_clock,
    picture,
    started,
)

# ---- deadlines: the loop's timers are due by the same clock as the engine --------------------------


def test_a_deadline_before_exit_1_ends_the_wait_while_the_step_still_runs():
    clock = Clock()

    async def story() -> None:
        runner, observer = ScriptedRunner(clock=clock, gated=True), Recorder()
        async with started(runner, observer) as engine:
            [future] = engine.submit([picture(0)], contract(), deadline_s=clock.now_s + 1)
            await runner.entered()
            clock.now_s += 1
            with pytest.raises(DeadlineExceeded):
                await future
            assert engine.inflight_samples == 1
        assert runner.steps == [(1, [0])]
        assert (observer.samples, observer.cancels) == ([], [])

    on_clock(clock, story())


def test_a_deadline_on_the_way_is_answered_at_once_with_the_deepest_exit_reached():
    clock = Clock()

    async def story() -> None:
        runner, observer = ScriptedRunner(clock=clock, gated=True, step_s=0.0), Recorder()
        async with started(runner, observer) as engine:
            [future] = engine.submit([picture(3)], contract(), deadline_s=clock.now_s + 1)
            runner.let(2)
            for stage in (1, 2, 3):
                assert await runner.entered() == (stage, [3])
            clock.now_s += 1
            answer = await future
            assert (answer.exit, answer.reason, answer.class_id) == (2, ExitReason.DEADLINE, 3)
            assert answer.latency_s == 1.0
        assert runner.steps == [(1, [3]), (2, [3]), (3, [3])]
        assert [(stats.exit, stats.reason) for stats in observer.samples] == [(2, ExitReason.DEADLINE)]
        assert observer.cancels == []

    on_clock(clock, story())


def test_a_sample_that_expires_in_the_queue_is_never_run():
    clock = Clock()

    async def story() -> None:
        runner = ScriptedRunner(clock=clock, gated=True)
        async with started(runner, Recorder()) as engine:
            [first] = engine.submit([picture(0)], contract(0.0))
            await runner.entered()
            [late] = engine.submit([picture(1)], contract(), deadline_s=clock.now_s + 0.1)
            runner.let_all()
            assert (await first).exit == 1
            with pytest.raises(DeadlineExceeded):
                await late
        assert runner.steps == [(1, [0])]

    on_clock(clock, story())


async def test_the_engine_answers_an_expired_sample_even_where_the_loops_timer_is_not_due():
    # The engine's clock runs ahead of the loop's, so that only the stage boundary can notice.
    runner, observer = ScriptedRunner(gated=True, step_s=50.0), Recorder()
    async with started(runner, observer) as engine:
        on_its_way, *_ = engine.submit([picture(0)], contract(), deadline_s=runner.clock.now_s + 40)
        await runner.entered()
        [queued] = engine.submit([picture(1)], contract(), deadline_s=runner.clock.now_s + 40)
        runner.let_all()
        assert (await on_its_way).reason == ExitReason.DEADLINE
        with pytest.raises(DeadlineExceeded):
            await queued
    assert runner.steps == [(1, [0])]
    assert len(observer.samples) == 1


async def test_a_deadline_that_has_passed_already_is_refused_without_a_step():
    runner = ScriptedRunner()
    async with started(runner, Recorder()) as engine:
        with pytest.raises(DeadlineExceeded):
            await engine.submit([picture(0)], contract(), deadline_s=runner.clock.now_s)[0]
    assert runner.steps == []


async def test_a_deadline_that_is_met_changes_nothing():
    runner, observer = ScriptedRunner(), Recorder()
    async with started(runner, observer) as engine:
        answer = await engine.submit([picture(0)], contract(), deadline_s=runner.clock.now_s + 1000)[0]
    assert (answer.exit, answer.reason) == (4, ExitReason.FINAL)
    assert len(observer.samples) == 1


# ---- draining -----------------------------------------------------------------------------------


async def test_draining_an_engine_that_never_started_or_has_nothing_to_do_ends_it():
    fresh = Engine(ScriptedRunner(), Recorder())
    await fresh.drain()
    with pytest.raises(EngineStopped, match="shutting down"):
        fresh.submit([picture(0)], contract())
    async with started(ScriptedRunner(), Recorder()) as idle:
        await idle.drain()
        assert not idle.alive


async def test_draining_answers_what_is_in_flight_and_takes_in_nothing_new():
    runner = ScriptedRunner(gated=True)
    async with started(runner, Recorder()) as engine:
        futures = engine.submit([picture(0), picture(1)], contract())
        await runner.entered()
        drains = [asyncio.ensure_future(engine.drain()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(EngineStopped):
            engine.submit([picture(2)], contract())
        assert engine.alive
        assert not any(drain.done() for drain in drains)
        runner.let_all()
        await asyncio.gather(*drains)
        assert [future.result().exit for future in futures] == [4, 4]
        assert not engine.alive
        await engine.drain()


async def test_draining_does_not_wait_for_steps_of_cancelled_samples():
    runner = ScriptedRunner(gated=True)
    async with started(runner, Recorder()) as engine:
        [future] = engine.submit([picture(0)], contract())
        await runner.entered()
        future.cancel()
        runner.let_all()
        await engine.drain()
    assert runner.steps == [(1, [0])]


# ---- warming up -----------------------------------------------------------------------------------


async def test_the_engines_thread_begins_with_the_warm_up_and_samples_wait_for_it():
    runner, threads, release = ScriptedRunner(), [], threading.Event()

    def warm_up() -> None:
        threads.append(threading.current_thread().name)
        release.wait()

    engine = Engine(runner, Recorder())
    warm = engine.start(asyncio.get_running_loop(), warm_up)
    [future] = engine.submit([picture(0)], contract())
    assert runner.steps == []
    assert not warm.done()
    release.set()
    await warm
    assert (await future).exit == 4
    await engine.drain()
    assert threads == ["offramp-engine"]


async def test_what_the_warm_up_measured_decides_what_is_run_next_and_is_reported():
    profile, recorder = CostProfile(32, (1, 32), ((1.0, 2.0),) * 4), Recorder()
    engine = Engine(ScriptedRunner(), recorder)
    await engine.start(asyncio.get_running_loop(), lambda: profile)
    assert recorder.profiles == [profile]
    assert isinstance(engine.policy, CostModel)
    assert engine.policy.profile is profile
    await engine.drain()


@pytest.mark.parametrize("cause", [KeyError("no kernel"), StopIteration("no kernel"), SystemExit("no kernel")])
async def test_any_error_of_the_warm_up_is_delivered_and_no_sample_is_left_waiting(cause):
    asked = threading.Event()

    def warm_up() -> None:
        asked.wait()
        raise cause

    engine = Engine(ScriptedRunner(), Recorder())
    warm = engine.start(asyncio.get_running_loop(), warm_up)
    [future] = engine.submit([picture(0)], contract())
    asked.set()
    with pytest.raises(WarmUpFailed, match=f"{type(cause).__name__}: '?no kernel"):
        await warm
    with pytest.raises(InferenceFailed):
        await future
    assert not engine.alive
    with pytest.raises(EngineStopped):
        engine.submit([picture(1)], contract())
    await engine.drain()


async def test_a_warm_up_that_nothing_waits_for_any_more_harms_nothing():
    complaints: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    release = threading.Event()

    def warm_up() -> None:
        release.wait()

    engine = Engine(ScriptedRunner(), Recorder())
    engine.start(asyncio.get_running_loop(), warm_up).cancel()
    release.set()
    assert (await engine.submit([picture(0)], contract())[0]).exit == 4
    await engine.drain()
    assert complaints == []


# ---- death --------------------------------------------------------------------------------------


class Bug(BaseException):
    """Something that no isolation of samples can help with."""


def dies(stage: int, names: list[int]) -> None:
    raise Bug


async def test_when_the_thread_dies_every_sample_fails_and_none_is_taken_in():
    runner, observer = ScriptedRunner(faults=dies, gated=True), Recorder()
    async with started(runner, observer) as engine:
        running, cancelled = engine.submit([picture(0), picture(1)], contract(), deadline_s=1e6)
        await runner.entered()
        [queued] = engine.submit([picture(2)], contract())
        cancelled.cancel()
        runner.let_all()
        outcomes = await asyncio.gather(running, queued, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InferenceFailed] * 2
        assert outcomes[0] is not outcomes[1]
        assert not engine.alive
        with pytest.raises(EngineStopped, match="not running"):
            engine.submit([picture(3)], contract())
        await engine.drain()
        assert engine.inflight_samples == 0
    assert len(observer.cancels) == 1


class LingeringLoop(asyncio.SelectorEventLoop):
    """Holds the engine's thread after it has reported its death."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, **options: Any
    ) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(callback, *args, **options)
        if getattr(callback, "__name__", "") == "_on_death":
            self.let_go.wait()
        return handle


def test_no_sample_is_taken_in_while_a_dying_thread_has_not_ended_yet():
    loop = LingeringLoop()

    async def story() -> None:
        async with started(ScriptedRunner(faults=dies), Recorder()) as engine:
            with pytest.raises(InferenceFailed):
                await engine.submit([picture(0)], contract())[0]
            try:
                assert engine._worker._thread.is_alive()
                assert not engine.alive
                with pytest.raises(EngineStopped):
                    engine.submit([picture(1)], contract())
            finally:
                loop.let_go.set()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(story())


async def test_a_drain_under_way_ends_when_the_thread_dies():
    runner = ScriptedRunner(faults=dies, gated=True)
    async with started(runner, Recorder()) as engine:
        [future] = engine.submit([picture(0)], contract())
        await runner.entered()
        drain = asyncio.ensure_future(engine.drain())
        await asyncio.sleep(0)
        runner.let_all()
        await drain
        assert isinstance(future.exception(), InferenceFailed)


def test_the_thread_ends_quietly_when_the_loop_is_closed_over_its_head():
    runner = ScriptedRunner(gated=True)
    loop = ClockLoop(runner.clock)
    engine = Engine(runner, Recorder(), clock=runner.clock)

    async def submit_and_leave() -> None:
        engine.start(loop)
        engine.submit([picture(0)], contract())
        await runner.entered()

    loop.run_until_complete(submit_and_leave())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    runner.let_all()
    engine._worker._thread.join()
    assert not engine.alive


class CountingClock(Clock):
    """Counts how often the engine's thread asks for the time, as it does on each of its rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __call__(self) -> float:
        if threading.current_thread().name == "offramp-engine":
            self.asked += 1
        return self.now_s


async def test_an_idle_engine_does_not_spin():
    clock = CountingClock()
    runner = ScriptedRunner(clock=clock)
    async with started(runner, Recorder()) as engine:
        await engine.submit([picture(0)], contract(0.0))[0]
        for _ in range(1000):
            await asyncio.sleep(0)
        rounds = clock.asked
        await engine.submit([picture(0)], contract(0.0))[0]
    # Idle time added nothing: both pictures together cost a handful of readings.
    assert rounds <= 8
