"""A device that fails every call, or does not end a step: the engine ends, and every sample fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from offramp.models.bundle import Bundle
from offramp.server.engine.engine import Engine
from offramp.server.engine.errors import DeviceLost, EngineStopped, InferenceFailed, WarmUpFailed
from offramp.server.engine.promises.promises import AuditOptions, Promises
from offramp.server.engine.runners.cuda.capture import Eager, Work
from offramp.server.engine.runners.cuda.cuda_graphs import CudaGraphRunner
from offramp.server.engine.runners.torch_runner import TorchRunner
from offramp.server.engine.step_watch import LOOKS, StepWatch
from tests.server.engine.lively import draw_pictures, lively_bundle
from tests.server.engine.scripted import NUM_STAGES, Recorder, ScriptedRunner, contract, picture, started

CPU = torch.device("cpu")
SICK = 9


class Faults:
    """Raises what it is given in the first steps, counted from 1, or whenever the sick picture is in one."""

    def __init__(self, error: Exception, steps: Sequence[int] = range(1, 10**6), sick: int | None = None) -> None:
        self.error, self.steps, self.sick = error, steps, sick
        self.calls = 0

    def __call__(self, stage: int, names: list[int]) -> None:
        self.calls += 1
        if (self.calls in self.steps) if self.sick is None else (self.sick in names):
            raise self.error


async def outcomes(engine: Engine, number: int) -> list[object]:
    """What the futures of so many pictures, handed in one after another, deliver."""
    given: list[object] = []
    for _ in range(number):
        given += await asyncio.gather(*engine.submit([picture(0)], contract(0.0)), return_exceptions=True)
    return given


async def test_a_lost_device_ends_the_engine_at_once_and_the_log_says_why_in_a_line(server_log):
    runner = ScriptedRunner(faults=Faults(DeviceLost("CUDA error: an illegal memory access was encountered")))
    async with started(runner, Recorder()) as engine:
        futures = engine.submit([picture(n) for n in range(4)], contract())
        failed = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(each) for each in failed] == [InferenceFailed] * 4
        assert not engine.alive
        with pytest.raises(EngineStopped):
            engine.submit([picture(0)], contract())
    assert len(runner.steps) == 1
    [record] = server_log.records
    assert record.getMessage() == "the engine died: CUDA error: an illegal memory access was encountered"
    assert record.exc_info is None


async def test_three_steps_in_a_row_in_which_every_sample_fails_end_the_engine():
    runner = ScriptedRunner(faults=Faults(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")))
    async with started(runner, Recorder(), max_batch_size=8) as engine:
        futures = engine.submit([picture(n) for n in range(64)], contract())
        failed = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(each) for each in failed] == [InferenceFailed] * 64
        assert not engine.alive
    # Together and each alone, three times.
    assert len(runner.steps) == 3 * (1 + 8)


async def test_failures_with_a_success_between_them_end_nothing():
    runner = ScriptedRunner(faults=Faults(RuntimeError("no memory"), steps=(1, 2, 4, 5)))
    async with started(runner, Recorder()) as engine:
        given = await outcomes(engine, 6)
        assert [type(each).__name__ for each in given] == [
            *("InferenceFailed", "InferenceFailed", "Answer"),
            *("InferenceFailed", "InferenceFailed", "Answer"),
        ]
        assert engine.alive


async def test_a_picture_that_fails_in_every_step_ends_nothing_while_others_get_their_answers():
    runner = ScriptedRunner(faults=Faults(RuntimeError("this picture"), sick=SICK))
    async with started(runner, Recorder()) as engine:
        for _ in range(5):
            sick, well = engine.submit([picture(SICK), picture(1)], contract())
            assert (await well).exit == NUM_STAGES
            with pytest.raises(InferenceFailed):
                await sick
        assert engine.alive


async def test_a_device_lost_in_an_audit_ends_the_engine_as_well():
    lost = Faults(DeviceLost("CUDA error: unspecified launch failure"), steps=(2,))
    runner, observer = ScriptedRunner(faults=lost), Recorder()
    async with started(runner, observer, promises=Promises(NUM_STAGES, AuditOptions(share=1.0))) as engine:
        assert (await engine.submit([picture(0)], contract(0.0))[0]).exit == 1
        await asyncio.to_thread(engine._worker._thread.join)
        assert not engine.alive
    assert runner.steps == [(1, [0]), (1, [0])]


async def test_a_failing_step_is_logged_once_a_second(server_log):
    runner = ScriptedRunner(faults=Faults(RuntimeError("no memory"), steps=range(1, 40)), step_s=0.25)
    async with started(runner, Recorder(), max_batch_size=32) as engine:
        await asyncio.gather(*engine.submit([picture(n) for n in range(32)], contract()), return_exceptions=True)
    failures = [record for record in server_log.records if "failed" in record.getMessage()]
    assert 1 < len(failures) <= 1 + 33 * 0.25


# ---- a step that does not end ----------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
async def test_a_step_that_does_not_end_ends_the_engine_and_nothing_waits_for_it(server_log):
    runner = ScriptedRunner(gated=True)
    engine = Engine(runner, Recorder(), clock=runner.clock, hung_after_s=0.06)
    await engine.start(asyncio.get_running_loop())
    [running] = engine.submit([picture(0)], contract())
    await runner.entered()
    [queued] = engine.submit([picture(1)], contract())
    failed = await asyncio.gather(running, queued, return_exceptions=True)
    assert [type(each) for each in failed] == [InferenceFailed] * 2
    assert not engine.alive
    assert "a step has not ended for 0.06 s" in server_log.text
    await engine.drain()
    assert engine._worker._thread.is_alive()
    runner.let_all()
    engine._worker._thread.join()
    assert len(runner.steps) == 1


def looks(watch: StepWatch, number: int) -> list[bool]:
    return [watch.look() for _ in range(number)]


def test_looks_are_counted_at_one_step_alone():
    watch = StepWatch()
    assert not any(looks(watch, 2 * LOOKS))
    watch.begin()
    assert not any(looks(watch, LOOKS))
    watch.succeed()
    watch.end()
    watch.begin()
    assert not any(looks(watch, LOOKS))
    assert watch.look()
    assert watch.hangs


def test_where_steps_take_long_more_time_is_given():
    watch = StepWatch(60.0)
    watch.allow(0.1)
    assert (watch.hung_after_s, watch.look_s) == (60.0, 60.0 / LOOKS)
    watch.allow(30.0)
    assert watch.hung_after_s == 600.0


# ---- runners ---------------------------------------------------------------------------------------------------------


class Replaced(Eager):
    """Work that a device refuses once it has been captured."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def capture(self, work: Work) -> Work:
        def replay() -> None:
            if self.error is not None:
                raise self.error
            work()

        return replay


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return lively_bundle(draw_pictures(8))


class BrokenNet(torch.nn.Module):
    num_exits = 4

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def run_stage(self, stage: int, x_BCHW: torch.Tensor) -> None:
        raise self.error


def broken(kind: str, bundle: Bundle, error: Exception) -> TorchRunner | CudaGraphRunner:
    if kind == "torch":
        runner = TorchRunner(bundle, CPU)
        runner.net = BrokenNet(error)
        return runner
    capture = Replaced()
    graphs = CudaGraphRunner(bundle, CPU, max_samples=4, capture=capture)
    graphs.warm_up(2)
    capture.error = error
    return graphs


@pytest.mark.parametrize("kind", ["torch", "cuda-graphs"])
def test_runners_tell_a_lost_device_from_a_step_that_failed(kind, bundle):
    picture_HWC = np.zeros((16, 16, 3), np.uint8)
    lost = torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
    )
    with pytest.raises(DeviceLost, match=r"^CUDA error: an illegal memory access was encountered$"):
        broken(kind, bundle, lost).run(1, [picture_HWC])
    with pytest.raises(torch.OutOfMemoryError):
        broken(kind, bundle, torch.OutOfMemoryError("CUDA out of memory")).run(1, [picture_HWC])


# ---- warming up ------------------------------------------------------------------------------------------------------


async def test_a_warm_up_that_ends_with_a_sentence_is_told_without_a_traceback(server_log):
    def warm_up() -> None:
        raise ValueError("OpenVINO cannot run this network: no kernel; serve it with --runner torch")

    engine = Engine(ScriptedRunner(), Recorder())
    with pytest.raises(WarmUpFailed, match=r"^OpenVINO cannot run this network: no kernel; "):
        await engine.start(asyncio.get_running_loop(), warm_up)
    await engine.drain()
    assert [record for record in server_log.records if record.levelno >= logging.ERROR] == []
