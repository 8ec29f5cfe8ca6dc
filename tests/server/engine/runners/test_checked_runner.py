"""A fast runner that cannot run a network, or computes another: the next precision, torch, or one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from offramp.models.bundle import Bundle
from offramp.server.engine.errors import DeviceLost
from offramp.server.engine.runners.agreement import example_pictures, probabilities
from offramp.server.engine.runners.checked import CheckedRunner, FastRunner
from offramp.server.engine.runners.cuda.capture import Eager, Work
from offramp.server.engine.runners.cuda.cuda_graphs import CaptureFailed, CudaGraphRunner
from offramp.server.engine.runners.runner import StepOutput
from offramp.server.engine.runners.torch_runner import TorchRunner
from tests.server.engine.lively import SIZE, draw_pictures, lively_bundle

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PRECISIONS = ("float16", "bfloat16", "float32")
PICTURES = example_pictures(SIZE, 6)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return lively_bundle(draw_pictures(96))


def graphs(bundle: Bundle, wrong: tuple[str, ...] = ()) -> Callable[[str], CudaGraphRunner]:
    """Makes runners of CUDA graphs on the CPU, the fastest in float16; with another weight in some precisions."""

    def make(precision: str) -> CudaGraphRunner:
        precision = "float16" if precision == "auto" else precision
        runner = CudaGraphRunner(bundle, CPU, max_samples=16, precision=precision, capture=Eager())
        if precision in wrong:
            runner.net.heads[0].classifier.weight.data.neg_()  # type: ignore[operator, union-attr]
        return runner

    return make


def checked(
    bundle: Bundle,
    make: Callable[[str], FastRunner],
    precisions: tuple[str, ...] = PRECISIONS,
    falls_back: bool = True,
) -> CheckedRunner:
    return CheckedRunner(bundle, CPU, "runner 'cuda-graphs'", make, precisions, falls_back)


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def test_a_fast_runner_that_agrees_serves_and_nothing_is_said(bundle, server_log):
    runner = checked(bundle, graphs(bundle))
    runner.warm_up(8)
    assert isinstance(runner.chosen, CudaGraphRunner)
    assert runner.chosen.precision == "float16"
    assert runner.num_stages == 4
    assert warnings_of(server_log) == []


@pytest.mark.parametrize("max_batch_size", [1, 3, 32])
def test_a_precision_that_computes_something_else_gives_way_to_the_next_wider(bundle, server_log, max_batch_size):
    runner = checked(bundle, graphs(bundle, wrong=("float16",)))
    runner.warm_up(max_batch_size)
    assert isinstance(runner.chosen, CudaGraphRunner)
    assert runner.chosen.precision == "bfloat16"
    [said] = warnings_of(server_log)
    assert said.startswith("tiny runs in bfloat16: in float16 its probabilities differ by 0.")


def test_where_no_precision_agrees_the_reference_serves(bundle, server_log):
    runner = checked(bundle, graphs(bundle, wrong=PRECISIONS))
    runner.warm_up(8)
    assert isinstance(runner.chosen, TorchRunner)
    *_, said = warnings_of(server_log)
    assert said.startswith("tiny runs in plain torch: runner 'cuda-graphs' computes another network than this")


def test_where_no_precision_agrees_and_the_runner_was_asked_for_it_is_refused(bundle):
    runner = checked(bundle, graphs(bundle, wrong=PRECISIONS), falls_back=False)
    with pytest.raises(ValueError, match=r"'cuda-graphs' computes another network than this: .* in float32"):
        runner.warm_up(8)


def test_a_precision_that_was_asked_for_is_not_compared(bundle):
    runner = checked(bundle, graphs(bundle, wrong=("float16",)), precisions=(), falls_back=False)
    runner.warm_up(8)
    assert isinstance(runner.chosen, CudaGraphRunner)


class Unwilling(Eager):
    def capture(self, work: Work) -> Work:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


def unwilling(bundle: Bundle) -> Callable[[str], FastRunner]:
    return lambda _: CudaGraphRunner(bundle, CPU, max_samples=16, capture=Unwilling())


def test_where_nothing_can_be_captured_torch_answers_and_one_warning_says_why(bundle, server_log):
    runner = checked(bundle, unwilling(bundle))
    runner.warm_up(4)
    wanted = probabilities(TorchRunner(bundle, CPU), PICTURES, 3)
    np.testing.assert_array_equal(probabilities(runner, PICTURES, 3), wanted)
    [said] = warnings_of(server_log)
    assert said.startswith("tiny runs in plain torch: stage 1 cannot be captured as a CUDA graph for 1 samples: CUDA")


def test_where_nothing_can_be_captured_and_graphs_were_asked_for_it_is_refused(bundle):
    with pytest.raises(CaptureFailed, match="stage 1 cannot be captured"):
        checked(bundle, unwilling(bundle), falls_back=False).warm_up(4)


# ---- errors of a library ---------------------------------------------------------------------------------------------

OPENVINO = "Exception from src/core/src/dimension.cpp:208:\nCannot get length of dynamic dimension\n\n"
RAISED = [
    (RuntimeError(OPENVINO), "Cannot get length of dynamic dimension"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee ..."), "CUDA out of memory. Tried"),
    (TypeError("forward() takes 1 positional argument"), r"TypeError: forward\(\) takes 1 positional argument"),
    (AttributeError(), "AttributeError"),
    (ImportError("No module named 'openvino'"), "No module named 'openvino'"),
]


class Failing:
    """Fails in its warm-up, or only when it is asked to run."""

    precision, num_stages = "float32", 4

    def __init__(self, warming_up: Exception | None = None, running: Exception | None = None) -> None:
        self.warming_up, self.running = warming_up, running

    def warm_up(self, max_batch_size: int) -> None:
        if self.warming_up:
            raise self.warming_up

    def run(self, stage: int, states: object) -> StepOutput:
        assert self.running
        raise self.running


def failing(when: str, error: Exception) -> Callable[[str], FastRunner]:
    def make(precision: str) -> FastRunner:
        if when == "loading":
            raise error
        return Failing(**{when: error})

    return make


@pytest.mark.parametrize(("error", "cause"), RAISED)
@pytest.mark.parametrize("when", ["loading", "warming_up", "running"])
def test_after_any_error_torch_takes_over_with_one_warning(bundle, server_log, when, error, cause):
    runner = checked(bundle, failing(when, error))
    runner.warm_up(2)
    assert isinstance(runner.chosen, TorchRunner)
    [said] = warnings_of(server_log)
    assert said.startswith("tiny runs in plain torch: ")
    assert "\n" not in said
    assert cause.replace("\\", "") in said


@pytest.mark.parametrize(("error", "cause"), RAISED[:-1])
@pytest.mark.parametrize("when", ["loading", "warming_up", "running"])
def test_any_error_of_a_named_runner_becomes_one_sentence(bundle, when, error, cause):
    with pytest.raises(ValueError, match=rf"^runner 'cuda-graphs' cannot run this network: {cause}.*--runner torch$"):
        checked(bundle, failing(when, error), falls_back=False).warm_up(2)


def test_on_a_device_that_is_lost_torch_is_not_tried(bundle, server_log):
    runner = checked(bundle, failing("running", DeviceLost("CUDA error: unspecified launch failure")))
    with pytest.raises(DeviceLost):
        runner.warm_up(2)
    assert warnings_of(server_log) == []
