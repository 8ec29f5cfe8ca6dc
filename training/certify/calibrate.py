"""Calibration: temperatures, ensemble weights and a default threshold, from pictures held out of train."""

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
    operating_point,
    predictions_of,
    served_logits,
)
from offramp.training.evaluate.predictions import ExitPredictions

ENSEMBLE_WEIGHTS = tuple(np.linspace(0.0, 1.5, 16).round(1).tolist())
TEMPERATURE_RANGE = (0.05, 20.0)
THRESHOLDS = tuple((np.arange(0, 201) / 200).tolist())
# Measured over draws of pictures of two networks, as trained, overconfident and underconfident. With 10 pictures a fit
# can double the negative log-likelihood even where cross-validation approves. With 20 to 60 pictures cross-validation
# refuses nearly all harmful fits. With 100 and more every fit helped.
LEAST = 20
CHECKED_BELOW = 1_000
FOLDS = 5


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """The temperature with the least negative log-likelihood, and that likelihood; by Brent's method in log T.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
    """

    def nll(log_temperature: float) -> float:
        return F.cross_entropy(logits_NC / float(np.exp(log_temperature)), labels_N).item()

    low, high = np.log(TEMPERATURE_RANGE)
    best = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x)), float(best.fun)


def fit_calibration(outputs: ExitLogits, ensemble_weights: Sequence[float] = ENSEMBLE_WEIGHTS) -> Calibration:
    """For each exit, the weight of the earlier exits' logits, and the temperature that fits the sum.

    Both have the least negative log-likelihood, which rewards ranking and calibration. O(K x ensemble_weights) fits.
    """
    temperatures: list[float] = []
    chosen: list[float] = []
    accumulated_NC: Tensor | None = None
    for logits_NC in outputs.logits_KNC:
        options = (0.0,) if accumulated_NC is None else ensemble_weights
        sums = [logits_NC if accumulated_NC is None else weight * accumulated_NC + logits_NC for weight in options]
        fits = [fit_temperature(sum_NC, outputs.labels_N) for sum_NC in sums]
        best = min(range(len(options)), key=lambda index: fits[index][1])
        accumulated_NC = sums[best]
        chosen.append(options[best])
        temperatures.append(round(fits[best][0], 4))
    return Calibration(tuple(temperatures), tuple(chosen))


def fit_where_it_helps(outputs: ExitLogits) -> Calibration:
    """`fit_calibration`; the neutral calibration for fewer than LEAST pictures.

    With fewer than CHECKED_BELOW pictures, the neutral one too where cross-validation does not show that a fit lowers
    the negative log-likelihood over all exits.
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
    """Number of pictures that prove a loss of at most `tolerance` when early answers lose none of them.

    None when no number does.
    """
    return pictures_needed(tolerance, DELTA)


def choose_threshold(predictions: ExitPredictions, cost: NetworkCost, tolerance: float) -> OperatingPoint:
    """The cheapest threshold that loses at most `tolerance` of accuracy (0..1) against full depth, on these pictures.

    The search goes from full depth to lower thresholds, and stops at the first that loses more. A network with one exit
    has the threshold 1.
    """
    best = full = operating_point(predictions, cost, FULL_DEPTH)
    for threshold in reversed(THRESHOLDS) if predictions.num_exits > 1 else ():
        point = operating_point(predictions, cost, threshold)
        if point.accuracy < full.accuracy - tolerance:
            break
        best = point
    return best


def calibrate(outputs: ExitLogits, cost: NetworkCost, tolerance: float) -> tuple[Calibration, OperatingPoint]:
    """Temperatures, ensemble weights and the default operating point, all from the same held-out pictures.

    The operating point is full depth when the pictures are fewer than `threshold_pictures`. Raises ValueError for
    pictures of a single class.
    """
    if len(torch.unique(outputs.labels_N)) < 2:
        raise ValueError("the calibration pictures are all of one class: hold out at least two classes")
    calibration, needed = fit_where_it_helps(outputs), threshold_pictures(tolerance)
    predictions = predictions_of(outputs, calibration)
    if needed is None or len(predictions) < needed:
        return calibration, operating_point(predictions, cost, FULL_DEPTH)
    return calibration, choose_threshold(predictions, cost, tolerance)
