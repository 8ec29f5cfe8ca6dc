"""Admission: short waits, and a client that asks for much leaves room for one that asks for little."""

import asyncio

import pytest

from offramp.server.engine.admission import Admission, EngineLoad
from offramp.server.engine.errors import Overloaded
from tests.server.engine.scripted import Recorder, ScriptedRunner, contract, picture, started

ADMISSION = Admission(max_samples=80, max_wait_s=1.0)


@pytest.mark.parametrize(
    ("own", "load", "taken"),
    [
        (0, EngineLoad(0, 0, 0.1), True),
        (10, EngineLoad(10, 1, 0.1), True),
        (11, EngineLoad(11, 1, 0.1), False),
        # Beside a client with 60 samples, one with none waits for one turn.
        (0, EngineLoad(60, 1, 0.1), True),
        (60, EngineLoad(60, 1, 0.1), False),
        # Of two with as many, each waits for both.
        (5, EngineLoad(10, 2, 0.1), True),
        (6, EngineLoad(12, 2, 0.1), False),
        # The last eighth of the room is for clients with few samples.
        (69, EngineLoad(69, 1, 0.0), True),
        (70, EngineLoad(70, 1, 0.0), False),
        (0, EngineLoad(70, 1, 0.0), True),
        (0, EngineLoad(80, 9, 0.0), False),
    ],
)
def test_which_client_is_taken_in(own, load, taken):
    refusal = ADMISSION.refusal(1, own, load)
    assert (refusal is None) == taken


def test_a_refusal_says_when_to_come_again():
    refusal = ADMISSION.refusal(1, 30, EngineLoad(30, 1, 0.1))
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == 3.0


async def test_a_light_client_is_answered_before_the_rest_of_a_heavy_one():
    runner = ScriptedRunner(gated=True)
    async with started(runner, Recorder(), max_batch_size=2) as engine:
        heavy = engine.submit([picture(n) for n in range(40)], contract(0.0), "heavy")
        await runner.entered()
        [light] = engine.submit([picture(99)], contract(0.0), "light")
        runner.let_all()
        await asyncio.gather(light, *heavy)
        order = [name for stage, names in runner.steps if stage == 1 for name in names]
        # The scheduler has two batches of the heavy client when the light one comes, and then it is its turn.
        assert order.index(99) <= 6
        assert engine.load == EngineLoad(0, 0, engine.load.sample_s)


async def test_a_heavy_client_is_refused_and_a_light_one_is_not():
    runner = ScriptedRunner(gated=True, step_s=1.0)
    async with started(runner, Recorder(), max_wait_s=5.0, max_batch_size=1) as engine:
        [first] = engine.submit([picture(0)], contract(0.0), "heavy")
        runner.let(1)
        await first
        futures = engine.submit([picture(n) for n in range(8)], contract(0.0), "heavy")
        with pytest.raises(Overloaded):
            engine.submit([picture(9)], contract(0.0), "heavy")
        futures += engine.submit([picture(10)], contract(0.0), "light")
        runner.let_all()
        await asyncio.gather(*futures)
