"""Calibration: temperatures, carries and a default threshold, from pictures held out of train."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from offramp.models.cost import NetworkCost
from offramp.models.exit_policy import Calibration
from offramp.training.certify.promises import DELTA
from offramp.training.certify.statistics import pictures_needed
from offramp.training.evaluate.evaluation import (
    FULL_DEPTH,
    ExitLogits,
    OperatingPoint,
    calibrated,
    operating_point,
    served_logits,
)
from offramp.training.evaluate.predictions import ExitPredictions

CARRIES = tuple(np.linspace(0.0, 1.5, 16).round(1).tolist())
TEMPERATURE_RANGE = (0.05, 20.0)
THRESHOLDS = tuple((np.arange(0, 201) / 200).tolist())
# Over draws from the pictures of two networks, as trained, made too sure and made too unsure: of 10 pictures a fit may
# double the negative log-likelihood even where cross-validation approves; of 20 to 60 cross-validation refuses the fits
# that harm, save a few; of 100 and more every fit helped.
LEAST = 20
CHECKED_BELOW = 1_000
FOLDS = 5


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """The temperature of least negative log-likelihood, and that likelihood; found by Brent's method in log T.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
    """

    def nll(log_temperature: float) -> float:
        return F.cross_entropy(logits_NC / float(np.exp(log_temperature)), labels_N).item()

    low, high = np.log(TEMPERATURE_RANGE)
    best = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x)), float(best.fun)


def fit_calibration(outputs: ExitLogits, carries: Sequence[float] = CARRIES) -> Calibration:
    """Exit by exit: how much of the visited exits' logits to carry along, and the temperature that fits the sum.

    Chosen by negative log-likelihood, which rewards ranking and calibration both. O(K x carries) fits.
    """
    temperatures: list[float] = []
    chosen: list[float] = []
    accumulated_NC: Tensor | None = None
    for logits_NC in outputs.logits_KNC:
        options = (0.0,) if accumulated_NC is None else carries
        sums = [logits_NC if accumulated_NC is None else carry * accumulated_NC + logits_NC for carry in options]
        fits = [fit_temperature(sum_NC, outputs.labels_N) for sum_NC in sums]
        best = min(range(len(options)), key=lambda index: fits[index][1])
        accumulated_NC = sums[best]
        chosen.append(options[best])
        temperatures.append(round(fits[best][0], 4))
    return Calibration(tuple(temperatures), tuple(chosen))


def fit_where_it_helps(outputs: ExitLogits) -> Calibration:
    """`fit_calibration`; the neutral one for fewer than LEAST pictures, and where cross-validation prefers it.

    That is asked of fewer than CHECKED_BELOW pictures, and judged by the negative log-likelihood over all exits.
    """
    neutral, pictures = Calibration.neutral(outputs.num_exits), len(outputs.labels_N)
    if pictures < LEAST:
        return neutral
    if pictures < CHECKED_BELOW:
        order_N = torch.randperm(pictures, generator=torch.Generator().manual_seed(0))
        before = after = 0.0
        for fold in range(FOLDS):
            seen_N = torch.arange(pictures) % FOLDS != fold
            unseen = outputs.subset(order_N[~seen_N])
            before += total_nll(unseen, neutral)
            after += total_nll(unseen, fit_calibration(outputs.subset(order_N[seen_N])))
        if not after < before:
            return neutral
    return fit_calibration(outputs)


def total_nll(outputs: ExitLogits, calibration: Calibration) -> float:
    """Negative log-likelihood, in nats, summed over pictures and exits."""
    served = zip(served_logits(outputs, calibration), calibration.temperatures, strict=True)
    return sum(F.cross_entropy(logits_NC / t, outputs.labels_N, reduction="sum").item() for logits_NC, t in served)


def threshold_pictures(tolerance: float) -> int | None:
    """How many pictures tell what leaving early costs: none of them lost then proves a loss of at most `tolerance`.

    None: no number does.
    """
    return pictures_needed(tolerance, DELTA)


def choose_threshold(
    outputs: ExitLogits, calibration: Calibration, cost: NetworkCost, tolerance: float
) -> OperatingPoint:
    """The cheapest threshold that loses at most `tolerance` of accuracy (0..1) against full depth, on these pictures.

    Every cheaper threshold may lose more: the search starts at full depth and stops at the first that does. With one
    exit nothing leaves early, and the threshold is 1.
    """
    answers = ExitPredictions.of(calibrated(outputs, calibration), outputs.labels_N)
    best = full = operating_point(answers, cost, FULL_DEPTH)
    if outputs.num_exits == 1:
        return full
    for threshold in reversed(THRESHOLDS):
        point = operating_point(answers, cost, threshold)
        if point.accuracy < full.accuracy - tolerance:
            break
        best = point
    return best


def calibrate(outputs: ExitLogits, cost: NetworkCost, tolerance: float) -> tuple[Calibration, OperatingPoint]:
    """Fit everything; the default operating point is judged on the same held-out pictures, never on test.

    It is full depth where the pictures are fewer than `threshold_pictures`.
    """
    if not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"tolerance {tolerance} is out of range: give a share of accuracy in [0, 1]")
    if len(torch.unique(outputs.labels_N)) < 2:
        raise ValueError("the calibration pictures are all of one class: hold out at least two classes")
    calibration = fit_where_it_helps(outputs)
    needed = threshold_pictures(tolerance)
    if needed is None or len(outputs.labels_N) < needed:
        answers = ExitPredictions.of(calibrated(outputs, calibration), outputs.labels_N)
        return calibration, operating_point(answers, cost, FULL_DEPTH)
    return calibration, choose_threshold(outputs, calibration, cost, tolerance)
