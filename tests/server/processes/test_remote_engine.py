"""A frontend's view of the engine process: over a real socket and real shared memory, it is as the engine itself."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from offramp.models.bundle import Bundle
from offramp.models.cost import count_cost
from offramp.models.exit_policy import ExitRule
from offramp.server.engine.admission import Admission
from offramp.server.engine.engine import Engine
from offramp.server.engine.errors import DeadlineExceeded, EngineStopped, InferenceFailed, Overloaded
from offramp.server.engine.request import Answer, Contract, ExitPlan
from offramp.server.processes.engine_process import EngineHost, FrontendConnection
from offramp.server.processes.messages import Stream, Update
from offramp.server.processes.remote_engine import LOST, SILENT, EngineLink, RemoteEngine
from offramp.server.registry import Registry, ServedModel
from tests.server.engine.scripted import Recorder, ScriptedRunner, contract

SURE_AT_2 = dict.fromkeys(range(256), (0.3, 0.95, 0.5, 0.6))

cost_of = cache(count_cost)


def picture(name: int) -> np.ndarray:
    return np.full((32, 32, 3), name, np.uint8)


@dataclass
class EngineProcess:
    """An engine process as its frontends see it, in this process. `die` looks like a kill."""

    address: Path
    bundles: list[Bundle]
    memory: list[int]
    runner: ScriptedRunner = field(default_factory=partial(ScriptedRunner, SURE_AT_2))
    max_samples: int = 8

    async def begin(self) -> None:
        self.runners = [self.runner, *(ScriptedRunner(SURE_AT_2) for _ in self.bundles[1:])]
        self.observers = [Recorder() for _ in self.bundles]
        served = []
        for bundle, runner, observer in zip(self.bundles, self.runners, self.observers, strict=True):
            engine = Engine(runner, observer, clock=runner.clock, max_samples=self.max_samples)
            served.append(ServedModel(bundle, cost_of(bundle.config), "cpu", engine, lambda: None))
        self.host = EngineHost(Registry(served), self.memory, self.max_samples)
        self.connections: list[FrontendConnection] = []
        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(self._connection, str(self.address))
        await self.host.registry.start()
        self.host.send_states()

    def _connection(self) -> FrontendConnection:
        self.connections.append(FrontendConnection(self.host))
        return self.connections[-1]

    @property
    def given_up(self) -> int:
        """Samples of the first engine whose cancellation has arrived."""
        engine = self.host.engines[0]
        assert isinstance(engine, Engine)
        return sum(sample.abandoned for sample in engine._inflight)

    async def die(self) -> None:
        self.server.close()
        self.address.unlink()
        for connection in self.connections:
            connection._transport.abort()
        for runner in self.runners:
            runner.let_all()
        await self.host.registry.drain()


class CountingLink(EngineLink):
    """Counts the messages from the engine process that have outcomes."""

    deliveries = 0

    def data_received(self, data: bytes) -> None:
        received = Stream().feed(data)
        self.deliveries += sum(isinstance(message, Update) and bool(message.outcomes) for message in received)
        super().data_received(data)


def link_to(process: EngineProcess, frontend: int = 0) -> CountingLink:
    memory = process.memory[frontend]
    return CountingLink(str(process.address), frontend, memory, process.bundles, Admission(process.max_samples))


@asynccontextmanager
async def connected(process: EngineProcess, frontend: int = 0) -> AsyncIterator[list[RemoteEngine]]:
    """A frontend's engines, warm."""
    link = link_to(process, frontend)
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(engine.start(loop, lambda: None) for engine in link.engines))
    try:
        yield link.engines
    finally:
        process.runner.let_all()
        await asyncio.gather(*(engine.drain() for engine in link.engines))


@pytest.fixture
async def process(bundle, tmp_path):
    memory = [os.memfd_create("test") for _ in range(2)]
    process = EngineProcess(tmp_path / "engine", [bundle, replace(bundle, version="2")], memory)
    await process.begin()
    yield process
    if process.server.is_serving():
        await process.die()
    for fd in memory:
        os.close(fd)


@pytest.fixture
def gated(process):
    process.runner.gated = True
    return process


async def test_answers_are_the_engines_own(process):
    async with connected(process) as [remote, _]:
        through = await asyncio.gather(*remote.submit([picture(n) for n in range(5)], contract(0.9)))
        local = process.host.engines[0]
        direct = await asyncio.gather(*local.submit([picture(n) for n in range(5)], contract(0.9)))
    for answer, expected in zip(through, direct, strict=True):
        assert (answer.visited, answer.reason) == (expected.visited, expected.reason)
        assert np.array_equal(answer.probabilities_C, expected.probabilities_C)
        assert answer.latency_s == answer.queue_s + answer.inference_s
    assert [answer.exit for answer in through] == [2] * 5


async def test_each_model_and_each_frontend_gets_its_own_answers(process):
    async with connected(process, 0) as [a, b], connected(process, 1) as [c, d]:
        engines = [a, b, c, d]
        futures = [
            engine.submit([picture(10 * n), picture(10 * n + 3)], contract(0.0)) for n, engine in enumerate(engines)
        ]
        answers = [[answer.class_id for answer in await asyncio.gather(*some)] for some in futures]
    assert answers == [[0, 3]] * 4
    asked = [{name for stage, names in runner.steps if stage == 1 for name in names} for runner in process.runners]
    assert asked == [{0, 3, 20, 23}, {10, 13, 30, 33}]


async def test_slots_come_back_so_that_more_pictures_pass_than_there_are_slots(process):
    async with connected(process) as [remote, _]:
        for n in range(10):
            answers = await asyncio.gather(*remote.submit([picture(n)] * 8, contract(0.0)))
            assert {answer.class_id for answer in answers} == {n}
        assert remote.inflight_samples == 0


async def test_a_failed_picture_says_so_and_harms_no_other(process):
    def fault(stage, names):
        if 5 in names:
            raise ZeroDivisionError

    process.runner.faults = fault
    async with connected(process) as [remote, _]:
        results = await asyncio.gather(*remote.submit([picture(4), picture(5)], contract(0.0)), return_exceptions=True)
        assert isinstance(results[0], Answer)
        assert results[0].class_id == 4
        assert isinstance(results[1], InferenceFailed)
        assert str(results[1]) == "stage 1 failed for this picture"


async def test_a_deadline_is_kept_by_the_engine(gated):
    async with connected(gated) as [remote, _]:
        now_s = gated.runner.clock()
        [future] = remote.submit([picture(1)], contract(0.9), deadline_s=now_s)
        with pytest.raises(DeadlineExceeded, match="before the first exit"):
            await future


def stop(process: EngineProcess) -> None:
    """The engine process reads nothing more, as after SIGSTOP."""
    for connection in process.connections:
        connection._transport.pause_reading()


async def test_a_deadline_is_kept_by_the_frontend_where_the_engine_process_has_stopped(process, until):
    async with connected(process) as [remote, _]:
        stop(process)
        futures = remote.submit([picture(1), picture(2)], contract(0.9), deadline_s=time.monotonic())
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [str(result) for result in results] == ["the deadline passed before the engine process answered"] * 2
        # The pictures lie in shared memory until the engine process lets go of them.
        assert remote.inflight_samples == 2
        for connection in process.connections:
            connection._transport.resume_reading()

        def released() -> bool:
            process.host.send_states()
            return remote.inflight_samples == 0

        await until(released)


async def test_an_answer_is_not_kept_until_its_deadline(process):
    async with connected(process) as [remote, _]:
        [future] = remote.submit([picture(1)], contract(0.0), deadline_s=time.monotonic() + 3600.0)
        await future
        gone = weakref.ref(future)
        del future
        # The event loop holds it until this task has slept once.
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None


async def test_an_engine_process_that_is_silent_takes_no_requests_until_it_is_heard_again(gated, until, server_log):
    async with connected(gated) as [remote, other]:
        [waiting] = remote.submit([picture(3)], contract(0.0))
        await gated.runner.entered()
        for _ in range(SILENT - 1):
            remote._link.look()
        assert remote.alive
        remote._link.look()
        assert not remote.alive
        assert not other.alive
        with pytest.raises(EngineStopped):
            remote.submit([picture(3)], contract(0.0))
        gated.host.send_states()
        await until(lambda: remote.alive and other.alive)
        gated.runner.let_all()
        assert (await waiting).class_id == 3
    assert [record.message for record in server_log.records] == [
        "the engine process has been silent for 2 s: not ready",
        "the engine process is heard again",
    ]


async def test_requests_are_given_up_where_the_engine_process_stays_silent(process, until):
    async with connected(process) as [remote, other]:
        stop(process)
        futures = remote.submit([picture(n) for n in range(7)], contract(0.0))
        for _ in range(LOST):
            remote._link.look()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, EngineStopped) for result in results)
        # The same process goes on: the frontend connects again, and earlier requests stay given up.
        await until(lambda: remote.alive and other.alive)
        answers = await asyncio.gather(*remote.submit([picture(n) for n in range(7)], contract(0.0)))
        assert [answer.class_id for answer in answers] == list(range(7))


async def test_an_engine_process_that_has_said_nothing_yet_is_not_silent(process):
    class Transport(asyncio.Transport):
        aborted = False

        def write(self, data):
            pass

        def abort(self):
            self.aborted = True

    link, transport = link_to(process), Transport()
    link.connection_made(transport)
    for _ in range(2 * LOST):
        link.look()
    assert not link.silent
    assert not transport.aborted


async def test_a_cancelled_sample_is_dropped_and_keeps_its_slot_until_the_engine_has_dropped_it(gated, until):
    async with connected(gated) as [remote, _]:
        [running] = remote.submit([picture(0)], contract(0.0))
        await gated.runner.entered()
        waiting = remote.submit([picture(n) for n in range(1, 8)], contract(0.0))
        for future in waiting:
            future.cancel()
        # Not before the engine process has answered: until then they are in flight, and their slots are taken.
        await asyncio.sleep(0)
        assert remote.inflight_samples == 8
        await until(lambda: gated.given_up == 7)
        gated.runner.let_all()
        assert (await running).class_id == 0
        await gated.observers[0].until_cancelled(7)
        assert [name for _, names in gated.runner.steps for name in names] == [0]


async def test_more_than_the_engine_holds_is_refused_at_once(gated):
    async with connected(gated) as [remote, _]:
        remote.submit([picture(0)] * 5, contract(0.0))
        # The last eighth of the room is for clients with few samples.
        assert remote.overload(2) is None
        refusal = remote.overload(3)
        assert refusal is not None
        assert refusal.retry_after_s == 1.0
        with pytest.raises(Overloaded):
            remote.submit([picture(0)] * 4, contract(0.0))
        gated.runner.let_all()


async def test_the_engine_has_the_last_word_where_two_frontends_want_the_last_room(gated):
    async with connected(gated, 0) as [first, _], connected(gated, 1) as [other, _]:
        submitted = [first.submit([picture(0)] * 6, contract(0.0)), other.submit([picture(1)] * 6, contract(0.0))]
        await asyncio.wait([*submitted[0], *submitted[1]], return_when=asyncio.FIRST_COMPLETED)
        refused = [futures for futures in submitted if all(future.done() for future in futures)]
        assert len(refused) == 1
        for future in refused[0]:
            with pytest.raises(Overloaded):
                await future
        gated.runner.let_all()


async def test_a_frontend_learns_what_the_others_have_in_flight(gated, until):
    async with connected(gated, 0) as [first, _], connected(gated, 1) as [other, _]:
        first.submit([picture(0)] * 6, contract(0.0))
        await gated.runner.entered()
        gated.host.send_states()
        await until(lambda: other.inflight_samples == 6)
        assert first.inflight_samples == 6
        assert other.overload(3) is not None
        gated.runner.let_all()
        await until(lambda: gated.host.engines[0].inflight_samples == 0)
        gated.host.send_states()
        await until(lambda: other.inflight_samples == 0 and first.inflight_samples == 0)


async def test_queue_depths_are_the_engines(gated, until):
    async with connected(gated) as [remote, _]:
        assert remote.queue_depths == (0, 0, 0, 0)
        remote.submit([picture(0)], contract(0.0))
        await gated.runner.entered()
        remote.submit([picture(0)] * 3, contract(0.0))
        await until(lambda: gated.host.engines[0].inflight_samples == 4)
        gated.host.send_states()
        await until(lambda: remote.queue_depths == (3, 0, 0, 0))
        gated.runner.let_all()


async def test_when_the_engine_process_dies_all_samples_end_at_once_and_the_next_process_is_found(gated, until):
    async with connected(gated) as [remote, other]:
        futures = remote.submit([picture(0)] * 8, contract(0.0))
        await gated.runner.entered()
        await gated.die()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, EngineStopped) and not result.draining for result in results)
        assert not remote.alive
        assert not other.alive
        with pytest.raises(EngineStopped):
            remote.submit([picture(0)], contract(0.0))
        gated.runner = ScriptedRunner(SURE_AT_2)
        await gated.begin()
        await until(lambda: remote.alive and other.alive)
        answers = await asyncio.gather(*remote.submit([picture(3)] * 8, contract(0.0)))
        assert {answer.class_id for answer in answers} == {3}


async def test_when_a_frontend_dies_its_pictures_are_dropped_and_the_others_go_on(gated, until):
    async with connected(gated, 1) as [other, _]:
        async with connected(gated, 0) as [first, _]:
            [running] = other.submit([picture(9)], contract(0.0))
            await gated.runner.entered()
            first.submit([picture(n) for n in range(7)], contract(0.0))
            await until(lambda: gated.host.engines[0].inflight_samples == 8)
            first._link.close()
            await until(lambda: len(gated.host.connections) == 1)
            gated.runner.let_all()
            assert (await running).class_id == 9
            await gated.observers[0].until_cancelled(7)
        assert [name for _, names in gated.runner.steps for name in names] == [9]


async def test_draining_waits_for_what_is_in_flight_and_takes_in_nothing_more(gated):
    async with connected(gated) as [remote, other]:
        [future] = remote.submit([picture(2)], contract(0.0))
        draining = asyncio.gather(remote.drain(), other.drain())
        await gated.runner.entered()
        with pytest.raises(EngineStopped) as stopped:
            remote.submit([picture(2)], contract(0.0))
        assert stopped.value.draining
        assert not draining.done()
        gated.runner.let_all()
        assert (await future).class_id == 2
        await draining
        assert not remote.alive


async def test_a_frontend_with_another_bundle_is_refused(process, until):
    bundles = [replace(process.bundles[0], labels=tuple("abcdefghij")), process.bundles[1]]
    link = EngineLink(str(process.address), 0, process.memory[0], bundles, Admission(process.max_samples))
    starting = [engine.start(asyncio.get_running_loop(), lambda: None) for engine in link.engines]
    await until(lambda: link.refused)
    assert not any(engine.alive for engine in link.engines)
    link.close()
    await asyncio.gather(*starting)


async def test_the_wait_for_an_engine_that_never_comes_can_be_ended(process, until):
    await process.die()
    link = link_to(process)
    starting = [engine.start(asyncio.get_running_loop(), lambda: None) for engine in link.engines]
    link.stop_waiting()
    await asyncio.gather(*starting)
    await asyncio.gather(*(engine.drain() for engine in link.engines))


async def test_a_request_that_the_engine_can_never_take_raises_a_value_error(process):
    async with connected(process) as [remote, _]:
        with pytest.raises(ValueError, match="9 pictures at once are out of range"):
            remote.submit([picture(0)] * 9, contract(0.0))
        shallow = ExitPlan(ExitRule((0.5,)))
        with pytest.raises(ValueError, match="a rule for 2 exits"):
            remote.submit([picture(0)], Contract(shallow))


async def test_outcomes_of_one_step_come_in_one_message(gated):
    """So that the cost of a message is shared by a batch."""
    async with connected(gated) as [remote, _]:
        link = remote._link
        assert isinstance(link, CountingLink)
        futures = remote.submit([picture(n) for n in range(8)], contract(0.0))
        await gated.runner.entered()
        gated.runner.let()
        await asyncio.gather(*futures)
        assert link.deliveries == 1


async def test_a_frontend_of_several_models_becomes_ready_though_they_are_started_one_after_the_other(process):
    link = link_to(process)
    models = [
        ServedModel(bundle, cost_of(bundle.config), "cpu", engine, lambda: None)
        for bundle, engine in zip(process.bundles, link.engines, strict=True)
    ]
    registry = Registry(models)
    await asyncio.wait_for(registry.start(), 10)
    assert registry.why_not_ready() is None
    await registry.drain()


async def test_an_engine_whose_wait_was_ended_before_its_start_does_not_wait(process):
    link = link_to(process)
    link.stop_waiting()
    loop = asyncio.get_running_loop()
    for engine in link.engines:
        await asyncio.wait_for(engine.start(loop, lambda: None), 10)
        await engine.drain()
