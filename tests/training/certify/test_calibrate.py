"""Calibration: known temperatures are found again, ensembles are used where they help, tolerance is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.models.cost import NetworkCost
from offramp.models.exit_policy import Calibration
from offramp.training.certify.calibrate import (
    CHECKED_BELOW,
    LEAST,
    THRESHOLDS,
    calibrate,
    choose_threshold,
    fit_calibration,
    fit_temperature,
    fit_where_it_helps,
    threshold_pictures,
    total_nll,
)
from offramp.training.evaluate.evaluation import ExitLogits, calibrated, operating_point, predictions_of

COST = NetworkCost((8, 15, 25), (2, 5, 5), (1, 1, 1), (1, 1, 1))


def drawn(logits_NC: Tensor, seed: int = 0) -> Tensor:
    """Labels drawn from the logits' own softmax: a perfectly calibrated network."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits_NC.softmax(dim=1), 1, generator=generator)[:, 0]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def complementary() -> ExitLogits:
    """Three exits that see the same truth through independent noise: together they know more."""
    labels_N = torch.arange(900) % 5
    truth_NC = 2.0 * F.one_hot(labels_N, 5).float()
    return ExitLogits(torch.stack([truth_NC + gaussian(900, 5, seed=k) for k in range(3)]), labels_N)


def nll(outputs: ExitLogits, calibration: Calibration) -> list[float]:
    return [F.nll_loss(p_NC.log(), outputs.labels_N).item() for p_NC in calibrated(outputs, calibration)]


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0, 8.0])
def test_a_known_scaling_is_found_again(scale: float) -> None:
    logits_NC = 2.0 * gaussian(4000, 5)
    temperature, best_nll = fit_temperature(scale * logits_NC, drawn(logits_NC))
    assert temperature == pytest.approx(scale, rel=0.06)
    assert best_nll <= F.cross_entropy(logits_NC, drawn(logits_NC)).item() + 1e-6


def test_the_found_temperature_is_the_best_of_a_grid() -> None:
    logits_NC = gaussian(300, 4, seed=3)
    labels_N = drawn(2.0 * logits_NC, seed=4)
    _, best_nll = fit_temperature(logits_NC, labels_N)
    grid = [F.cross_entropy(logits_NC / t, labels_N).item() for t in np.geomspace(0.05, 20.0, 200)]
    assert best_nll <= min(grid) + 1e-6


def test_exits_that_complement_one_another_are_added(complementary: ExitLogits) -> None:
    calibration = fit_calibration(complementary)
    assert calibration.ensemble_weights[0] == 0.0
    assert min(calibration.ensemble_weights[1:]) >= 0.5
    alone = fit_calibration(complementary, ensemble_weights=(0.0,))
    assert alone.ensemble_weights == (0.0, 0.0, 0.0)
    together, apart = nll(complementary, calibration), nll(complementary, alone)
    assert together[0] == apart[0]
    assert together[1] < apart[1] - 0.02
    assert together[2] < apart[2] - 0.05


def test_an_exit_that_knows_nothing_is_not_carried_along() -> None:
    labels_N = torch.arange(600) % 5
    knows_NC = 3.0 * F.one_hot(labels_N, 5).float() + gaussian(600, 5)
    calibration = fit_calibration(ExitLogits(torch.stack([5.0 * gaussian(600, 5, seed=1), knows_NC]), labels_N))
    assert calibration.ensemble_weights == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_no_exits_likelihood_is_worse_than_with_its_temperature_alone(seed: int) -> None:
    labels_N = torch.arange(200) % 4
    strength_K11 = torch.tensor([0.5, 2.0, 1.0]).reshape(3, 1, 1)
    logits_KNC = strength_K11 * F.one_hot(labels_N, 4) + gaussian(3, 200, 4, seed=seed)
    outputs = ExitLogits(logits_KNC, labels_N)
    alone = nll(outputs, fit_calibration(outputs, ensemble_weights=(0.0,)))
    for fitted, plain in zip(nll(outputs, fit_calibration(outputs)), alone, strict=True):
        assert fitted <= plain + 1e-5


def test_fitted_temperatures_are_those_of_the_sums_that_are_served(complementary: ExitLogits) -> None:
    calibration = fit_calibration(complementary)
    accumulated = None
    for exit, logits_NC in enumerate(complementary.logits_KNC, start=1):
        accumulated = calibration.accumulate(exit, accumulated, logits_NC)
        temperature, _ = fit_temperature(accumulated, complementary.labels_N)
        assert calibration.temperatures[exit - 1] == pytest.approx(temperature, abs=1e-3)


def calibrated_network(pictures: int, seed: int) -> ExitLogits:
    """Two exits whose answers are right just as often as they say: there is nothing to fit."""
    logits_NC = 2.0 * gaussian(pictures, 5, seed=seed)
    return ExitLogits(torch.stack([logits_NC, logits_NC]), drawn(logits_NC, seed + 1))


def too_sure(pictures: int, factor: float = 8.0) -> ExitLogits:
    network = calibrated_network(pictures, seed=7)
    return ExitLogits(factor * network.logits_KNC, network.labels_N)


def test_few_pictures_of_a_calibrated_network_leave_its_confidences_alone() -> None:
    others, neutral = calibrated_network(4_000, seed=100), Calibration.neutral(2)
    draws = [calibrated_network(30, seed) for seed in range(8)]
    fitted = [fit_where_it_helps(draw) for draw in draws]
    assert fitted.count(neutral) >= 4
    always = [total_nll(others, fit_calibration(draw)) for draw in draws]
    assert sum(total_nll(others, calibration) for calibration in fitted) < sum(always)


def test_few_pictures_suffice_where_a_network_is_far_too_sure() -> None:
    few, others = too_sure(40), too_sure(2_000)
    assert fit_where_it_helps(few) == fit_calibration(few)
    assert total_nll(others, fit_where_it_helps(few)) < 0.5 * total_nll(others, Calibration.neutral(2))


def test_a_handful_of_pictures_fits_nothing_and_many_fit_unasked() -> None:
    assert fit_where_it_helps(too_sure(LEAST - 1)) == Calibration.neutral(2)
    assert fit_where_it_helps(too_sure(LEAST)) != Calibration.neutral(2)
    many = calibrated_network(CHECKED_BELOW, seed=3)
    assert fit_where_it_helps(many) == fit_calibration(many) != Calibration.neutral(2)


def test_the_likelihood_is_that_of_what_is_served(complementary: ExitLogits) -> None:
    calibration = fit_calibration(complementary)
    assert total_nll(complementary, calibration) == pytest.approx(900 * sum(nll(complementary, calibration)), rel=1e-5)


def test_full_depth_is_the_default_until_pictures_tell_what_leaving_early_loses(complementary: ExitLogits) -> None:
    assert threshold_pictures(0.02) == 149
    few, enough = complementary.subset(torch.arange(148)), complementary.subset(torch.arange(149))
    _, point = calibrate(few, COST, 0.02)
    assert (point.threshold, point.exit_mix, point.disagreement) == (1.0, (0.0, 0.0, 1.0), 0.0)
    calibration, point = calibrate(enough, COST, 0.02)
    assert point == choose_threshold(predictions_of(enough, calibration), COST, 0.02)
    assert point.threshold < 1.0


def test_no_number_of_pictures_tells_that_nothing_is_lost(complementary: ExitLogits) -> None:
    assert threshold_pictures(0.0) is None
    assert calibrate(complementary, COST, 0.0)[1].threshold == 1.0


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.05, 0.1])
def test_the_chosen_threshold_is_the_cheapest_that_keeps_the_tolerance(
    complementary: ExitLogits, tolerance: float
) -> None:
    calibration = fit_calibration(complementary)
    point = choose_threshold(predictions_of(complementary, calibration), COST, tolerance)
    answers = predictions_of(complementary, calibration)
    allowed = operating_point(answers, COST, 1.0).accuracy - tolerance
    assert all(operating_point(answers, COST, t).accuracy >= allowed for t in THRESHOLDS if t >= point.threshold)
    below = [t for t in THRESHOLDS if t < point.threshold]
    assert not below or operating_point(answers, COST, below[-1]).accuracy < allowed
    assert point == operating_point(answers, COST, point.threshold)


def test_full_tolerance_leaves_everything_at_the_first_exit(complementary: ExitLogits) -> None:
    point = choose_threshold(predictions_of(complementary, fit_calibration(complementary)), COST, 1.0)
    assert (point.threshold, point.exit_mix) == (0.0, (1.0, 0.0, 0.0))


def test_exits_that_agree_cost_nothing_to_leave() -> None:
    labels_N = torch.arange(30) % 3
    same = ExitLogits(F.one_hot(labels_N, 3).float().expand(3, 30, 3) * 4, labels_N)
    assert choose_threshold(predictions_of(same, Calibration.neutral(3)), COST, 0.0).threshold == 0.0


def test_one_call_fits_both(complementary: ExitLogits) -> None:
    calibration, point = calibrate(complementary, COST, 0.02)
    assert calibration == fit_calibration(complementary)
    assert point == choose_threshold(predictions_of(complementary, calibration), COST, 0.02)


def test_the_only_exit_of_a_network_gets_a_temperature_and_no_early_threshold(complementary: ExitLogits) -> None:
    alone = ExitLogits(complementary.logits_KNC[:1], complementary.labels_N)
    calibration, point = calibrate(alone, NetworkCost((48,), (12,), (1,), (1,)), 0.02)
    temperature, _ = fit_temperature(alone.logits_KNC[0], alone.labels_N)
    assert (calibration.temperatures, calibration.ensemble_weights) == ((round(temperature, 4),), (0.0,))
    assert (point.threshold, point.exit_mix, point.compute) == (1.0, (1.0,), 1.0)


def test_pictures_of_a_single_class_are_refused() -> None:
    outputs = ExitLogits(gaussian(3, 10, 4), torch.ones(10, dtype=torch.int64))
    with pytest.raises(ValueError, match="all of one class: hold out at least two classes"):
        calibrate(outputs, COST, 0.01)
