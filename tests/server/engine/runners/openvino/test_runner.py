"""OpenVinoRunner against the reference, and which runner a bundle gets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import openvino as ov
import pytest
import torch

from offramp.models.bundle import Bundle
from offramp.models.config import ModelConfig
from offramp.models.exit_policy import Calibration, ExitRule, exits_taken
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.server.engine.runners.agreement import example_pictures, largest_difference, probabilities
from offramp.server.engine.runners.checked import CheckedRunner
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.openvino.runner import OpenVinoRunner, native_precision
from offramp.server.engine.runners.runner import Runner
from offramp.server.engine.runners.torch_runner import TorchRunner
from tests.server.engine.lively import SIZE, lively_net

EXITS = 4
CPU = torch.device("cpu")


PICTURES = example_pictures(SIZE, 64)


def make_bundle(net: MultiExitNet, temperature: float = 1.0) -> Bundle:
    """Its third exit starts anew, without what the others said."""
    calibration = Calibration((temperature,) * net.num_exits, (0.0, 0.5, 0.0, 0.7))
    labels = tuple(map(str, range(net.config.num_classes)))
    return Bundle("tiny", "1", net.config, Preprocessing(SIZE), labels, calibration, 0.5, net)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(lively_net(PICTURES, 5))


@pytest.fixture(scope="module")
def reference(bundle) -> TorchRunner:
    return TorchRunner(bundle, CPU)


@pytest.fixture(scope="module")
def runner(bundle) -> OpenVinoRunner:
    return OpenVinoRunner(bundle, "float32", threads=1)


def test_the_pictures_tell_exits_apart(reference):
    confidence_NK = probabilities(reference, PICTURES).max(axis=2).T
    taken = exits_taken(confidence_NK, ExitRule.uniform(float(np.quantile(confidence_NK, 0.6)), EXITS))
    assert set(taken) == {1, 2, 3, 4}


@pytest.mark.parametrize("batch_size", [1, 3, 8, 17, 32, 64])
def test_answers_are_the_references_at_every_batch_size(runner, reference, batch_size):
    expected_KNC = probabilities(reference, PICTURES)
    given_KNC = probabilities(runner, PICTURES, batch_size)
    np.testing.assert_allclose(given_KNC, expected_KNC, rtol=0, atol=2e-5)
    for threshold in (0.35, 0.5, 0.7):
        rule = ExitRule.uniform(threshold, EXITS)
        given, expected = (exits_taken(each.max(axis=2).T, rule) for each in (given_KNC, expected_KNC))
        assert (given == expected).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_mates_change_no_bit_of_an_answer(bundle, precision):
    runner = OpenVinoRunner(bundle, precision, threads=1)
    alone = probabilities(runner, PICTURES, 1)
    for batch_size in (2, 5, 16, 64):
        np.testing.assert_array_equal(probabilities(runner, PICTURES, batch_size), alone)


def test_survivors_of_different_batches_merge_in_any_order_while_other_steps_run_between(runner, reference):
    states = {}
    for n in range(0, 20, 2):
        output = runner.run(1, PICTURES[n : n + 2])
        [states[n + n % 4 // 2]] = output.keep([n % 4 // 2])
    order = sorted(states, key=lambda n: n * 7 % 20)
    expected_KNC = probabilities(reference, PICTURES)
    behind: Sequence[object] = runner.run(2, [states[n] for n in order]).keep(range(len(order)))
    runner.run(2, [states[n] for n in order[:3]])
    for stage in (3, 4):
        output = runner.run(stage, behind)
        np.testing.assert_allclose(output.probabilities_BC, expected_KNC[stage - 1, order], rtol=0, atol=2e-5)
        behind = output.keep(range(len(order)))


def test_what_goes_on_holds_little_more_memory_of_its_batch_mates_than_of_its_own(runner):
    for kept in ([5], [3, 4, 60], list(range(0, 64, 2)), list(range(64))):
        states = runner.run(1, PICTURES).keep(kept)
        blocks = {id(state.block): state.block for state in states}
        # A block that served before may have nearly twice the rows that were asked for.
        assert sum(map(len, blocks.values())) < 4 * len(kept)


def test_neighbours_of_one_step_go_on_without_a_copy(runner):
    states = runner.run(1, PICTURES[:8]).keep(range(8))
    stage = runner._stages[1]
    for some in (states, states[2:5]):
        features, accumulated = stage._gather(some, len(some))
        assert np.shares_memory(features.data, states[0].block.memory.features_BHWC)
        assert np.shares_memory(accumulated.data, states[0].block.memory.accumulated_BC)
    for others in (states[::2], [states[1], states[0]]):
        features, _ = stage._gather(others, len(others))
        assert not np.shares_memory(features.data, states[0].block.memory.features_BHWC)


def test_rows_that_fill_a_batch_up_change_no_bit_of_an_answer(bundle):
    """Behind the last sample lies what was there before: of other pictures, or nothing that was ever computed."""
    runner = OpenVinoRunner(bundle, "float32", threads=1)
    runner.warm_up(64)
    alone = probabilities(runner, PICTURES, 1)
    for size in (5, 17, 33, 7, 3):
        np.testing.assert_array_equal(probabilities(runner, PICTURES, size), alone)


def test_memory_between_stages_is_used_again(runner):
    def addresses(count: int) -> set[int]:
        states = runner.run(1, PICTURES[:count]).keep(range(count))
        return {state.block.memory.features_BHWC.ctypes.data for state in states}

    first = addresses(16)
    assert addresses(16) == first
    held = runner.run(1, PICTURES[:16]).keep(range(16))
    assert addresses(16) != first
    assert {state.block.memory.features_BHWC.ctypes.data for state in held} == first


def test_what_openvino_calls_memory_is_made_once(bundle):
    runner = OpenVinoRunner(bundle, "float32", threads=1)

    def views() -> dict[int, object]:
        states = runner.run(1, PICTURES[:16]).keep(range(16))
        runner.run(2, states)
        return dict(states[0].block.memory.views)

    first = views()
    assert set(first) == {16}
    assert views()[16] is first[16]


def test_answers_stay_what_they_were_when_the_next_step_runs(runner):
    output = runner.run(1, PICTURES[:4])
    before = output.probabilities_BC.copy()
    runner.run(1, PICTURES[4:8])
    assert (output.probabilities_BC == before).all()


def test_bfloat16_is_near_and_its_distance_is_told(bundle, reference):
    assert 0.0 < largest_difference(OpenVinoRunner(bundle, "bfloat16"), reference, SIZE) < 0.2


def warm(bundle: Bundle, name: str = "auto", max_batch_size: int = 2) -> Runner:
    """The runner that computes in the end."""
    runner = choose_runner(bundle, CPU, name)
    runner.warm_up(max_batch_size)
    return runner.chosen if isinstance(runner, CheckedRunner) else runner


def test_auto_is_openvino_on_the_cpu(bundle):
    assert isinstance(warm(bundle), OpenVinoRunner)
    assert isinstance(warm(bundle, "torch"), TorchRunner)


class OwnOperation(torch.nn.Module):
    """Something that no converter knows."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_a_network_that_openvino_does_not_know_runs_in_torch_and_the_log_says_so(server_log):
    net = MultiExitNet(ModelConfig("resnet18", 5, width=4, input_size=SIZE)).eval()
    net.stages[1] = torch.nn.Sequential(net.stages[1], OwnOperation())
    strange = make_bundle(net)
    with server_log.at_level(logging.WARNING):
        assert isinstance(warm(strange), TorchRunner)
    [record] = server_log.records
    assert record.getMessage().startswith("tiny runs in plain torch: OpenVINO cannot convert stage 2")
    with pytest.raises(ValueError, match=r"OpenVINO cannot convert stage 2: .*--runner torch"):
        choose_runner(strange, CPU, "openvino")


def test_a_network_that_low_precision_harms_runs_in_float32(bundle, server_log):
    # So cold that the least difference of two logits decides everything.
    with server_log.at_level(logging.WARNING):
        runner = warm(make_bundle(bundle.net, temperature=0.001))
    assert isinstance(runner, OpenVinoRunner)
    assert runner.precision == "float32"
    if native_precision(ov.Core()) == "bfloat16":
        assert "tiny runs in float32: in bfloat16 its probabilities differ by" in server_log.text


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("cuda-graphs", "auto", "runner 'cuda-graphs' does not run on cpu: give --device cuda, or --runner auto"),
        ("torch", "bfloat16", "precision 'bfloat16' is not the torch runner's"),
        ("openvino", "float16", "precision 'float16' is unknown: choose one of auto, float32, bfloat16, int8"),
        ("auto", "float16", "precision 'float16' is unknown"),
        ("tensorrt", "auto", "runner 'tensorrt' is unknown: choose one of auto, torch, openvino, cuda-graphs"),
    ],
)
def test_what_does_not_go_together_is_refused(bundle, name, precision, message):
    with pytest.raises(ValueError, match=message):
        choose_runner(bundle, CPU, name, precision)


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has no second thread")
def test_small_batches_get_one_thread_until_more_are_worth_it(bundle):
    # With one thread and with all, of batches of 1 and of 2: 1 ms against 0.8, 2 against 1.3. No more is asked.
    measured = iter([1e-3, 0.8e-3, 2e-3, 1.3e-3])

    def seconds(work):
        work()
        return next(measured)

    runner = OpenVinoRunner(bundle, "float32", seconds=seconds)
    runner.warm_up(32)
    assert list(measured) == []
    assert runner.threads_of == {1: 1, **dict.fromkeys((2, 4, 8, 12, 16, 24, 32), 0)}
    for bucket in runner.threads_of:
        network = runner._stages[0].requests[bucket].get_compiled_model()
        assert (network.get_property("INFERENCE_NUM_THREADS") == 1) == (bucket == 1)


def test_one_thread_asked_for_is_one_thread_and_nothing_is_tried(bundle):
    def never(work):
        raise AssertionError

    runner = OpenVinoRunner(bundle, "float32", threads=1, seconds=never)
    runner.warm_up(4)
    assert runner.threads_of == {1: 1, 2: 1, 4: 1}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit_of_an_answer(bundle, precision):
    one, all_cores = (OpenVinoRunner(bundle, precision, threads) for threads in (1, 0))
    for batch_size in (1, 4, 32):
        given, expected = (probabilities(runner, PICTURES, batch_size) for runner in (one, all_cores))
        np.testing.assert_array_equal(given, expected)


def test_int8_is_for_the_cpu(bundle):
    with pytest.raises(ValueError, match="precision 'int8' is for the CPU alone, not for cuda"):
        choose_runner(bundle, torch.device("cuda"), precision="int8", pictures=PICTURES)


class Undecided(torch.nn.Module):
    """Does one thing with the two pictures that networks are traced with, and another with more."""

    def forward(self, x):
        return x * 3 if len(x) == 2 else x


@pytest.mark.parametrize("max_batch_size", [2, 8])
def test_a_network_that_decides_by_its_input_runs_in_torch_and_the_log_says_so(server_log, max_batch_size):
    net = lively_net(PICTURES, 5)
    net.stages[2] = torch.nn.Sequential(net.stages[2], Undecided())
    undecided = make_bundle(net)
    with server_log.at_level(logging.WARNING):
        assert isinstance(warm(undecided, max_batch_size=max_batch_size), TorchRunner)
    assert "tiny runs in plain torch: runner 'openvino' computes another network than this" in server_log.text
    with pytest.raises(ValueError, match=r"'openvino' computes another network .* Serve it with --runner torch"):
        warm(undecided, "openvino", max_batch_size=max_batch_size)


def test_more_samples_than_it_is_warm_for_are_refused(bundle):
    runner = OpenVinoRunner(bundle, "float32", threads=1)
    runner.warm_up(4)
    with pytest.raises(ValueError, match="5 samples are out of range: this runner is warm for 4"):
        runner.run(1, PICTURES[:5])


def test_openvino_sends_no_telemetry():
    """Its telemetry is on by default, and needs a home directory to be switched off in."""
    source = (
        "from offramp.server.engine.runners.openvino.runner import ov; from openvino.tools.ovc import telemetry_utils; "
    )
    source += "print(telemetry_utils.tm.__name__)"
    # Under CI it would be silent anyway.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-c", source]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == "openvino.tools.ovc.telemetry_stub\n"
