"""Evaluation: its figures against plain loops and sums by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.special import softmax

from offramp.models.config import ModelConfig
from offramp.models.cost import NetworkCost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize
from offramp.training.data import Batches, ImageSet
from offramp.training.evaluate.evaluation import (
    SWEEP,
    ExitLogits,
    calibrated,
    collect_logits,
    evaluate,
    operating_point,
)
from offramp.training.evaluate.exit_quality import failure_auroc, oracle, reliability, selective_risk
from offramp.training.evaluate.predictions import ExitPredictions

# Sequential: 10, 30, 60.
COST = NetworkCost((8, 15, 25), (2, 5, 5), (1, 1, 1), (1, 1, 1))
CALIBRATION = Calibration((1.5, 0.8, 1.1), (0.0, 0.5, 0.7))


@pytest.fixture
def outputs() -> ExitLogits:
    """60 pictures of 4 classes; deeper exits know more."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(4, (60,), generator=generator)
    truth_NC = torch.nn.functional.one_hot(labels_N, 4).float()
    logits_KNC = torch.stack([torch.randn(60, 4, generator=generator) + k * truth_NC for k in (1.0, 2.0, 3.0)])
    return ExitLogits(logits_KNC, labels_N)


def answers_of(outputs: ExitLogits, calibration: Calibration = CALIBRATION) -> ExitPredictions:
    confidence_KN, class_id_KN = calibrated(outputs, calibration).max(dim=2)
    return ExitPredictions(confidence_KN.T.numpy(), class_id_KN.T.numpy(), outputs.labels_N.numpy())


def test_logits_are_those_of_the_network_picture_by_picture(toy_set: ImageSet) -> None:
    torch.manual_seed(0)
    net, preprocessing = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16)), Preprocessing(16)
    batches = Batches(toy_set, 7, torch.device("cpu"))
    outputs = collect_logits(net.train(), batches, preprocessing)
    assert outputs.logits_KNC.shape == (4, 24, 3)
    assert outputs.num_exits == 4
    assert outputs.labels_N.tolist() == toy_set.labels_N.tolist()
    assert not net.training
    with torch.no_grad():
        for index in (0, 6, 7, 23):
            images_BHWC = torch.from_numpy(toy_set.images_NHWC[index : index + 1])
            alone = torch.stack(net(normalize(images_BHWC, preprocessing)).logits)[:, 0]
            torch.testing.assert_close(outputs.logits_KNC[:, index], alone)


def test_bfloat16_logits_come_back_in_float32(toy_set: ImageSet) -> None:
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16))
    batches = Batches(toy_set, 24, torch.device("cpu"))
    assert collect_logits(net, batches, Preprocessing(16), torch.bfloat16).logits_KNC.dtype == torch.float32


def test_calibrated_probabilities_carry_the_exits_visited(outputs: ExitLogits) -> None:
    z1, z2, z3 = outputs.logits_KNC
    a2 = 0.5 * z1 + z2
    a3 = 0.7 * a2 + z3
    expected = torch.stack([(z1 / 1.5).softmax(1), (a2 / 0.8).softmax(1), (a3 / 1.1).softmax(1)])
    torch.testing.assert_close(calibrated(outputs, CALIBRATION), expected)


def test_every_operating_point_equals_a_plain_loop_over_pictures(outputs: ExitLogits) -> None:
    answers = answers_of(outputs)
    for threshold in (0.0, 0.3, 0.5, 0.72, 0.95, 1.0):
        right = differs = spent = 0
        mix = [0, 0, 0]
        for picture in range(60):
            exit = 0
            while exit < 2 and (threshold >= 1.0 or answers.confidence_NK[picture, exit] < np.float32(threshold)):
                exit += 1
            served = answers.class_id_NK[picture, exit]
            right += served == answers.labels_N[picture]
            differs += served != answers.class_id_NK[picture, 2]
            spent += (10, 30, 60)[exit]
            mix[exit] += 1
        point = operating_point(answers, COST, threshold)
        assert point.threshold == threshold
        assert point.accuracy == pytest.approx(right / 60)
        assert point.disagreement == pytest.approx(differs / 60)
        assert point.mean_multiply_adds == pytest.approx(spent / 60)
        assert point.compute == pytest.approx(spent / 60 / 60)
        assert point.exit_mix == pytest.approx([count / 60 for count in mix])


def test_thresholds_0_and_1_are_the_first_and_the_last_exit(outputs: ExitLogits) -> None:
    evaluation = evaluate(outputs, CALIBRATION, COST)
    first, last = evaluation.operating_points[0], evaluation.operating_points[-1]
    assert (first.threshold, first.exit_mix, first.mean_multiply_adds) == (0.0, (1.0, 0.0, 0.0), 10)
    assert (last.threshold, last.exit_mix, last.mean_multiply_adds) == (1.0, (0.0, 0.0, 1.0), 60)
    assert first.accuracy == pytest.approx(evaluation.exits[0].ensemble_accuracy)
    assert last.accuracy == pytest.approx(evaluation.exits[2].ensemble_accuracy)
    assert (last.compute, last.disagreement) == (1.0, 0.0)


def test_threshold_1_is_full_depth_even_for_pictures_that_are_certain() -> None:
    sure = ExitLogits(torch.tensor([[[100.0, 0.0]], [[100.0, 0.0]], [[0.0, 100.0]]]), torch.tensor([1]))
    answers = answers_of(sure, Calibration.neutral(3))
    assert answers.confidence_NK[0, 0] == 1.0
    assert operating_point(answers, COST, 1.0).exit_mix == (0.0, 0.0, 1.0)


def test_cost_never_falls_as_the_threshold_rises(outputs: ExitLogits) -> None:
    costs = [point.mean_multiply_adds for point in evaluate(outputs, CALIBRATION, COST).operating_points]
    assert costs == sorted(costs)
    assert costs[0] < costs[len(costs) // 2] < costs[-1]


def test_exits_are_measured_alone_and_as_served(outputs: ExitLogits) -> None:
    evaluation = evaluate(outputs, CALIBRATION, COST)
    labels_N = outputs.labels_N.numpy()
    z1, z2, z3 = outputs.logits_KNC.numpy()
    a2 = 0.5 * z1 + z2
    for quality, alone, served in zip(evaluation.exits, (z1, z2, z3), (z1, a2, 0.7 * a2 + z3), strict=True):
        assert quality.accuracy == pytest.approx((alone.argmax(1) == labels_N).mean())
        assert quality.ensemble_accuracy == pytest.approx((served.argmax(1) == labels_N).mean())
    assert evaluation.ensemble_accuracy == pytest.approx(((z1 + z2 + z3).argmax(1) == labels_N).mean())
    assert evaluation.pictures == 60
    assert [quality.exit for quality in evaluation.exits] == [1, 2, 3]
    assert [quality.multiply_adds for quality in evaluation.exits] == [10, 30, 60]
    assert [quality.compute for quality in evaluation.exits] == pytest.approx([1 / 6, 1 / 2, 1.0])


def test_an_evaluation_is_plain_json(outputs: ExitLogits) -> None:
    evaluation = evaluate(outputs, CALIBRATION, COST)
    read = json.loads(json.dumps(asdict(evaluation), allow_nan=False))
    assert [point["threshold"] for point in read["operating_points"]] == list(SWEEP)
    assert read["exits"][2]["accuracy"] == evaluation.exits[2].accuracy
    assert read["oracle"]["accuracy"] == evaluation.oracle.accuracy
    assert read["curves"][1]["risk"] == list(evaluation.curves[1].risk)
    assert read["curves"][1]["calibrated"]["share"] == list(evaluation.curves[1].calibrated.share)


def test_every_exit_is_measured_by_the_ensemble_that_it_serves(outputs: ExitLogits) -> None:
    evaluation = evaluate(outputs, CALIBRATION, COST)
    labels_N = outputs.labels_N.numpy()
    z1, z2, z3 = outputs.logits_KNC.numpy().astype(np.float64)
    a2 = 0.5 * z1 + z2
    served = (z1, a2, 0.7 * a2 + z3)
    right_NK = np.stack([a_NC.argmax(1) == labels_N for a_NC in served], axis=1)
    deepest_N = served[-1].argmax(1)
    for k, (quality, a_NC) in enumerate(zip(evaluation.exits, served, strict=True)):
        before, after = softmax(a_NC, axis=1), softmax(a_NC / CALIBRATION.temperatures[k], axis=1)
        confidence_N, right_N = after.max(1).astype(np.float32), right_NK[:, k]
        plain_N = before.max(1).astype(np.float32)
        assert quality.nll == pytest.approx(-np.log(after[np.arange(60), labels_N]).mean())
        assert quality.ece == pytest.approx(reliability(confidence_N, right_N).calibration_error, abs=1e-6)
        assert quality.ece_uncalibrated == pytest.approx(reliability(plain_N, right_N).calibration_error, abs=1e-6)
        assert quality.auroc == pytest.approx(failure_auroc(confidence_N, right_N))
        risk = selective_risk(confidence_N, right_N)
        assert (quality.aurc, quality.excess_aurc) == pytest.approx((risk.area, risk.excess))
        assert quality.agreement == pytest.approx((a_NC.argmax(1) == deepest_N).mean())
        assert quality.overthought == pytest.approx((right_N & ~right_NK[:, -1]).mean())
        assert evaluation.curves[k].exit == k + 1
        assert evaluation.curves[k].risk == pytest.approx(risk.curve)
        assert evaluation.curves[k].calibrated.calibration_error == quality.ece
        assert evaluation.curves[k].uncalibrated.calibration_error == quality.ece_uncalibrated
    assert evaluation.oracle == oracle(right_NK, (10, 30, 60))
    last, first = evaluation.exits[-1], evaluation.exits[0]
    assert (last.agreement, last.settled, last.overthought) == (1.0, 1.0, 0.0)
    assert 0.0 < first.settled <= first.agreement < 1.0
    assert first.ece != first.ece_uncalibrated


def test_a_network_of_one_exit_has_one_operating_point(outputs: ExitLogits) -> None:
    alone = ExitLogits(outputs.logits_KNC[-1:], outputs.labels_N)
    evaluation = evaluate(alone, Calibration((2.0,), (0.0,)), NetworkCost((48,), (12,), (1,), (1,)))
    (exit,), (point,) = evaluation.exits, evaluation.operating_points
    assert exit.accuracy == exit.ensemble_accuracy == evaluation.ensemble_accuracy == point.accuracy
    assert (point.threshold, point.compute, point.exit_mix, point.disagreement) == (1.0, 1.0, (1.0,), 0.0)
    assert (exit.agreement, exit.settled, exit.overthought) == (1.0, 1.0, 0.0)
    assert (evaluation.oracle.accuracy, evaluation.oracle.compute) == (exit.accuracy, 1.0)


def test_an_exit_that_is_always_right_has_no_ranking_and_is_still_plain_json() -> None:
    sure = ExitLogits(torch.tensor([[[200.0, 0.0], [0.0, 200.0]]] * 3), torch.tensor([0, 1]))
    evaluation = evaluate(sure, Calibration.neutral(3), COST)
    assert [exit.auroc for exit in evaluation.exits] == [None] * 3
    read = json.loads(json.dumps(asdict(evaluation), allow_nan=False))
    assert read["exits"][0]["auroc"] is None


def test_certain_mistakes_have_a_finite_likelihood() -> None:
    wrong = ExitLogits(torch.tensor([[[200.0, 0.0]]] * 3), torch.tensor([1]))
    assert evaluate(wrong, Calibration.neutral(3), COST).exits[0].nll == pytest.approx(200.0)
