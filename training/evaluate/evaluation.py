"""Evaluation: accuracy and quality of every exit; accuracy and cost of each threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.models.cost import NetworkCost
from offramp.models.exit_policy import Calibration, ExitRule, exits_taken
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize
from offramp.training.data import Batches
from offramp.training.evaluate.exit_quality import (
    Oracle,
    Reliability,
    failure_auroc,
    oracle,
    reliability,
    selective_risk,
    settled,
)
from offramp.training.evaluate.predictions import ExitPredictions, Int64Array

SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
FULL_DEPTH = 1.0


@dataclass(frozen=True)
class ExitLogits:
    """Uncalibrated logits of every exit (K, N, classes), float32, and the true classes (N)."""

    logits_KNC: Tensor
    labels_N: Tensor

    @property
    def num_exits(self) -> int:
        """K."""
        return self.logits_KNC.shape[0]

    def subset(self, indices_M: Tensor | Int64Array) -> ExitLogits:
        """The pictures at `indices_M`."""
        return ExitLogits(self.logits_KNC[:, indices_M], self.labels_N[indices_M])


@torch.inference_mode()
def collect_logits(
    net: MultiExitNet, batches: Batches, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32
) -> ExitLogits:
    """Logits of every picture at every exit, on the CPU."""
    logits, labels = [], []
    for logits_KBC, labels_B in _logits_of_batches(net, batches, preprocessing, dtype):
        logits.append(logits_KBC.float().cpu())
        labels.append(labels_B.cpu())
    return ExitLogits(torch.cat(logits, dim=1), torch.cat(labels))


def _logits_of_batches(
    net: MultiExitNet, batches: Batches, preprocessing: Preprocessing, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (K, B, classes) and labels (B) of each batch that has pictures, on its device."""
    net.eval()
    for images_BHWC, labels_B in batches.epoch():
        if len(labels_B):
            with torch.autocast(batches.device.type, dtype, enabled=dtype != torch.float32):
                logits = net(normalize(images_BHWC, preprocessing)).logits
            yield torch.stack(logits), labels_B


@torch.inference_mode()
def accuracy_per_exit(
    net: MultiExitNet,
    batches: Batches,
    preprocessing: Preprocessing,
    dtype: torch.dtype,
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> tuple[float, ...]:
    """Accuracy (0..1) of each exit alone, shallowest first; counted on the device.

    total: the sum over all processes that share the pictures.
    """
    counts = torch.zeros(net.num_exits + 1, dtype=torch.float64, device=batches.device)
    for logits_KBC, labels_B in _logits_of_batches(net, batches, preprocessing, dtype):
        counts[:-1] += (logits_KBC.argmax(dim=2) == labels_B).sum(dim=1)
        counts[-1] += len(labels_B)
    counts = total(counts)
    return tuple((counts[:-1] / counts[-1]).tolist())


def served_logits(outputs: ExitLogits, calibration: Calibration) -> Iterator[Tensor]:
    """Exit by exit, the logits (N, classes) of the ensemble of visited exits, before temperature."""
    accumulated: Tensor | None = None
    for exit, logits_NC in enumerate(outputs.logits_KNC, start=1):
        accumulated = calibration.accumulate(exit, accumulated, logits_NC)
        yield accumulated


def calibrated(outputs: ExitLogits, calibration: Calibration) -> Tensor:
    """Calibrated probabilities (K, N, classes) of the ensemble of visited exits, as the engine computes them."""
    served = enumerate(served_logits(outputs, calibration), start=1)
    return torch.stack([calibration.probabilities(exit, logits_NC) for exit, logits_NC in served])


def predictions_of(outputs: ExitLogits, calibration: Calibration) -> ExitPredictions:
    """Calibrated confidence and class of every picture at every exit."""
    return ExitPredictions.of(calibrated(outputs, calibration), outputs.labels_N)


@dataclass(frozen=True)
class ExitQuality:
    """One exit, if it answered every picture. Shares are 0..1. All figures but `accuracy` are of the served logits.

    accuracy: of the exit's own logits; ensemble_accuracy: of the served ones, the ensemble of the exits visited.
    nll: mean negative log-likelihood, in nats. ece: expected calibration error in 15 equal bins, with the fitted
    temperature; ece_uncalibrated: at temperature 1 (sums over exits are large, hence overconfident).
    auroc: of failure prediction, None where all answers are right or all wrong. aurc, excess_aurc: `SelectiveRisk`.
    agreement: share with the deepest exit's answer; settled: share with the answer of all later exits;
    overthought: share that is right here and wrong at the deepest exit.
    multiply_adds: sequential, all earlier heads included; compute: relative to the full network.
    """

    exit: int
    accuracy: float
    ensemble_accuracy: float
    nll: float
    ece_uncalibrated: float
    ece: float
    auroc: float | None
    aurc: float
    excess_aurc: float
    agreement: float
    settled: float
    overthought: float
    multiply_adds: int
    compute: float


@dataclass(frozen=True)
class ExitCurves:
    """One exit's curves, for plots. They are too long for a bundle.

    risk: the share of wrong answers among the most confident 1/n, 2/n .. 1 of the pictures, n its length.
    uncalibrated, calibrated: reliability at temperature 1 and at the fitted one.
    """

    exit: int
    risk: tuple[float, ...]
    uncalibrated: Reliability
    calibrated: Reliability


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold: accuracy (0..1), mean cost, share of pictures that leave at each exit, and disagreement: the
    share of answers that differ from full depth's."""

    threshold: float
    accuracy: float
    mean_multiply_adds: float
    compute: float
    exit_mix: tuple[float, ...]
    disagreement: float


@dataclass(frozen=True)
class Evaluation:
    """All figures of a network on one set. ensemble_accuracy: of the plain mean of all exits' logits."""

    pictures: int
    exits: tuple[ExitQuality, ...]
    ensemble_accuracy: float
    oracle: Oracle
    operating_points: tuple[OperatingPoint, ...]
    curves: tuple[ExitCurves, ...]


def evaluate(
    outputs: ExitLogits, calibration: Calibration, cost: NetworkCost, thresholds: Sequence[float] = SWEEP
) -> Evaluation:
    """Measure every exit and every threshold on the same outputs. A network with one exit has one threshold, 1."""
    predictions = predictions_of(outputs, calibration)
    served = enumerate(served_logits(outputs, calibration), start=1)
    measured = [_measure_exit(exit, outputs, logits_NC, calibration, predictions, cost) for exit, logits_NC in served]
    if outputs.num_exits == 1:
        thresholds = (FULL_DEPTH,)
    return Evaluation(
        pictures=len(outputs.labels_N),
        exits=tuple(quality for quality, _ in measured),
        ensemble_accuracy=_accuracy(outputs.logits_KNC.mean(dim=0), outputs.labels_N),
        oracle=oracle(predictions.right_NK, cost.sequential_multiply_adds),
        operating_points=tuple(operating_point(predictions, cost, threshold) for threshold in thresholds),
        curves=tuple(curves for _, curves in measured),
    )


def _measure_exit(
    exit: int,
    outputs: ExitLogits,
    served_NC: Tensor,
    calibration: Calibration,
    predictions: ExitPredictions,
    cost: NetworkCost,
) -> tuple[ExitQuality, ExitCurves]:
    """Figures of exit 1..K; `served_NC` are its served logits, before temperature."""
    k = exit - 1
    confidence_N, right_N = predictions.confidence_NK[:, k], predictions.right_NK[:, k]
    uncalibrated = reliability(served_NC.softmax(dim=1).amax(dim=1).numpy(), right_N)
    fitted = reliability(confidence_N, right_N)
    risk = selective_risk(confidence_N, right_N)
    quality = ExitQuality(
        exit=exit,
        accuracy=_accuracy(outputs.logits_KNC[k], outputs.labels_N),
        ensemble_accuracy=float(right_N.mean()),
        nll=F.cross_entropy(served_NC / calibration.temperatures[k], outputs.labels_N).item(),
        ece_uncalibrated=uncalibrated.calibration_error,
        ece=fitted.calibration_error,
        auroc=failure_auroc(confidence_N, right_N),
        aurc=risk.area,
        excess_aurc=risk.excess,
        agreement=float((~predictions.differs_NK[:, k]).mean()),
        settled=settled(predictions.class_id_NK)[k],
        overthought=float((right_N & ~predictions.right_NK[:, -1]).mean()),
        multiply_adds=cost.sequential_multiply_adds[k],
        compute=cost.compute[k],
    )
    return quality, ExitCurves(exit, risk.curve, uncalibrated, fitted)


def _accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    return int((logits_NC.argmax(dim=1) == labels_N).sum()) / len(labels_N)


def operating_point(predictions: ExitPredictions, cost: NetworkCost, threshold: float) -> OperatingPoint:
    """Figures of one threshold, the same at every early exit."""
    num_exits = predictions.num_exits
    exit_N = exits_taken(predictions.confidence_NK, ExitRule.uniform(threshold, num_exits))
    served_N = np.take_along_axis(predictions.class_id_NK, exit_N[:, None] - 1, axis=1)[:, 0]
    mix_K = np.bincount(exit_N - 1, minlength=num_exits) / len(exit_N)
    mean_cost = float(mix_K @ np.array(cost.sequential_multiply_adds, dtype=np.float64))
    return OperatingPoint(
        threshold=threshold,
        accuracy=float((served_N == predictions.labels_N).mean()),
        mean_multiply_adds=mean_cost,
        compute=mean_cost / cost.sequential_multiply_adds[-1],
        exit_mix=tuple(mix_K.tolist()),
        disagreement=float((served_N != predictions.class_id_NK[:, -1]).mean()),
    )
