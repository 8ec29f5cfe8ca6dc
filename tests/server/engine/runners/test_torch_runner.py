"""TorchRunner, alone and in the engine, against the whole forward pass and the exit policy of each picture alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from offramp.models.bundle import Bundle
from offramp.models.device import choose_device
from offramp.models.exit_policy import ExitReason, ExitRule, exits_taken
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import normalize
from offramp.server.engine.engine import Engine
from offramp.server.engine.request import Contract, ExitPlan
from offramp.server.engine.runners.agreement import probabilities
from offramp.server.engine.runners.torch_runner import TorchRunner
from offramp.server.offline import predict
from tests.devices import TOLERANCES, assert_near
from tests.server.engine.lively import ENSEMBLE_WEIGHTS, draw_pictures, lively_bundle
from tests.server.engine.scripted import Recorder

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, EXITS, PICTURES = 10, 4, 48
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
)


@dataclass(frozen=True)
class Reference:
    """Calibrated probabilities (K, N, classes) of each picture alone, whole forward pass, no runner, no engine."""

    probabilities_KNC: np.ndarray

    @property
    def confidence_NK(self) -> np.ndarray:
        return self.probabilities_KNC.max(axis=2).T

    def exit_of(self, number: int, rule: ExitRule) -> int:
        return int(exits_taken(self.confidence_NK[number : number + 1], rule)[0])

    def threshold(self, quantile: float) -> float:
        """Near this quantile of all confidences, and as far as can be from any: rounding decides nothing."""
        sorted_confidence = np.sort(self.confidence_NK, axis=None)
        at = round(quantile * (sorted_confidence.size - 1))
        near = slice(max(0, at - 5), at + 6)
        gap = int(np.diff(sorted_confidence[near]).argmax()) + near.start
        assert sorted_confidence[gap + 1] - sorted_confidence[gap] > 10 * max(TOLERANCES.values())
        return float(sorted_confidence[gap : gap + 2].mean())


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return draw_pictures(PICTURES)


@pytest.fixture(scope="module")
def bundle(pictures: list[np.ndarray]) -> Bundle:
    return lively_bundle(pictures)


@pytest.fixture(scope="module")
def reference(bundle: Bundle, pictures: list[np.ndarray]) -> Reference:
    def alone(picture: np.ndarray) -> np.ndarray:
        x_BCHW = normalize(torch.from_numpy(picture[None]), bundle.preprocessing)
        with torch.no_grad():
            logits = [logits_BC[0].double().numpy() for logits_BC in bundle.net.cpu()(x_BCHW).logits]
        accumulated, probabilities = np.zeros(CLASSES), []
        for logits_C, weight, temperature in zip(
            logits, ENSEMBLE_WEIGHTS, bundle.calibration.temperatures, strict=True
        ):
            accumulated = weight * accumulated + logits_C
            powers = np.exp((accumulated - accumulated.max()) / temperature)
            probabilities.append(powers / powers.sum())
        return np.stack(probabilities)

    return Reference(np.stack([alone(picture) for picture in pictures], axis=1).astype(np.float32))


@pytest.fixture(params=["cpu", CUDA])
def runner(request: pytest.FixtureRequest, bundle: Bundle, reference: Reference) -> TorchRunner:
    return TorchRunner(bundle, choose_device(request.param))


def test_the_pictures_tell_exits_and_classes_apart(reference):
    """Guards the tests below: with a network that answers everything alike they would prove nothing."""
    taken = exits_taken(reference.confidence_NK, ExitRule.uniform(reference.threshold(0.5), EXITS))
    assert set(taken) == {1, 2, 3, 4}
    assert all(len(set(labels_N)) >= 5 for labels_N in reference.probabilities_KNC.argmax(axis=2))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 17, 32])
def test_batch_mates_change_neither_exit_nor_label_and_probabilities_by_rounding_only(
    runner, reference, pictures, batch_size
):
    probabilities_KNC = probabilities(runner, pictures, batch_size)
    assert_near(probabilities_KNC, reference.probabilities_KNC, runner.device)
    assert (probabilities_KNC.argmax(axis=2) == reference.probabilities_KNC.argmax(axis=2)).all()
    for quantile in (0.1, 0.5, 0.9):
        rule = ExitRule.uniform(reference.threshold(quantile), EXITS)
        confidence_NK = probabilities_KNC.max(axis=2).T
        assert (exits_taken(confidence_NK, rule) == exits_taken(reference.confidence_NK, rule)).all()


def test_states_of_different_batches_merge_in_any_order(runner, reference, pictures):
    carried = {n: runner.run(1, [pictures[n], pictures[n + 1]]).keep([0])[0] for n in range(0, 10, 2)}
    order = [8, 0, 6, 2, 4]
    output = runner.run(2, [carried[n] for n in order])
    assert_near(output.probabilities_BC, reference.probabilities_KNC[1, order], runner.device)


class WatchedNet(torch.nn.Module):
    """Passes everything on to the network and keeps what stages are given and under which setting."""

    def __init__(self, net: MultiExitNet) -> None:
        super().__init__()
        self.net, self.num_exits = net, net.num_exits
        self.inputs: list[torch.Tensor] = []
        self.tf32_allowed: list[bool] = []

    def run_stage(self, stage: int, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.inputs.append(x_BCHW)
        self.tf32_allowed.append(torch.backends.cudnn.allow_tf32)
        features_BCHW, logits_BC = self.net.run_stage(stage, x_BCHW)
        return features_BCHW, logits_BC


@pytest.mark.parametrize("batch_size", [1, 5])
def test_channels_last_is_kept_between_stages(runner, pictures, batch_size):
    runner.net = WatchedNet(runner.net)
    probabilities(runner, pictures[:batch_size])
    assert [x_BCHW.shape[0] for x_BCHW in runner.net.inputs] == [batch_size] * EXITS
    assert all(x_BCHW.is_contiguous(memory_format=torch.channels_last) for x_BCHW in runner.net.inputs)


def test_a_step_tracks_no_gradients_and_gives_float32_on_the_host(runner, pictures):
    output = runner.run(1, pictures[:2])
    assert output.probabilities_BC.dtype == np.float32
    assert output.probabilities_BC.sum(axis=1) == pytest.approx([1.0, 1.0])
    states = output.keep([0, 1])
    assert not any(state.features_HWC.requires_grad for state in states)
    assert [state.accumulated_C.shape for state in states] == [(CLASSES,)] * 2


def test_the_state_of_one_that_goes_on_holds_no_memory_of_its_batch_mates(runner, pictures):
    alone, together = runner.run(1, pictures[:1]).keep([0])[0], runner.run(1, pictures).keep([3])[0]
    for mine, shared in (
        (alone.features_HWC, together.features_HWC),
        (alone.accumulated_C, together.accumulated_C),
    ):
        assert shared.untyped_storage().size() == mine.untyped_storage().size() == mine.numel() * mine.element_size()


def test_a_step_leaves_the_settings_of_the_process_as_they_are(runner, pictures):
    """They are every thread's: what one engine set and reset would come in the way of another."""
    runner.net = WatchedNet(runner.net)
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        runner.run(1, pictures[:1])
        assert runner.net.tf32_allowed == [True]
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_warming_up_leaves_answers_as_they_are(runner, reference, pictures):
    runner.warm_up(3)
    assert_near(probabilities(runner, pictures[:4]), reference.probabilities_KNC[:, :4], runner.device)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_predict_takes_the_reference_exit(runner, reference, pictures, quantile):
    rule = ExitRule.uniform(reference.threshold(quantile), EXITS)
    for number in range(0, PICTURES, 4):
        prediction = predict(runner, pictures[number], rule)
        assert prediction.exit == reference.exit_of(number, rule)
        wanted_C = reference.probabilities_KNC[prediction.exit - 1, number]
        assert prediction.reason == rule.reason(prediction.exit, prediction.ranking[0][1])
        class_ids, probabilities = zip(*prediction.ranking, strict=True)
        assert class_ids[0] == wanted_C.argmax()
        assert_near(np.array(probabilities), wanted_C[list(class_ids)], runner.device)
        assert list(probabilities) == sorted(probabilities, reverse=True)


async def test_64_concurrent_submitters_with_mixed_contracts_get_what_each_picture_alone_gets(
    runner, reference, pictures
):
    observer = Recorder()
    engine = Engine(runner, observer, max_batch_size=16, max_wait_s=3600.0, clock=time.monotonic)
    engine.start(asyncio.get_running_loop())
    rules = [ExitRule.uniform(reference.threshold(quantile), EXITS) for quantile in (0.1, 0.3, 0.5, 0.7, 0.9)]
    rules += [
        ExitRule.uniform(0.0, EXITS),
        ExitRule.uniform(1.0, EXITS),
        ExitRule.uniform(reference.threshold(0.5), EXITS, min_exit=2, max_exit=3),
        ExitRule((reference.threshold(0.2), reference.threshold(0.8), 1.0)),
    ]

    async def client(client_number: int) -> int:
        draws = np.random.default_rng(client_number)
        numbers = [int(n) for n in draws.integers(0, PICTURES, draws.integers(1, 5))]
        rule = rules[client_number % len(rules)]
        futures = engine.submit([pictures[n] for n in numbers], Contract(ExitPlan(rule)))
        for number, answer in zip(numbers, await asyncio.gather(*futures), strict=True):
            wanted_C = reference.probabilities_KNC[answer.exit - 1, number]
            assert answer.exit == reference.exit_of(number, rule)
            assert answer.class_id == wanted_C.argmax()
            assert_near(answer.probabilities_C, wanted_C, runner.device)
            assert [visit.exit for visit in answer.visited] == list(range(1, answer.exit + 1))
            assert answer.reason == rule.reason(answer.exit, answer.confidence)
        return len(numbers)

    try:
        answered = sum(await asyncio.gather(*(client(number) for number in range(64))))
    finally:
        await engine.drain()
    assert len(observer.samples) == answered
    assert {stats.reason for stats in observer.samples} >= {ExitReason.CONFIDENT, ExitReason.FINAL}
    assert max(stats.batch_size for stats in observer.steps if stats.stage > 1) > 1
