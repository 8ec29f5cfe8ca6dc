"""Evaluation: what every exit answers, and what each threshold would cost and get right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.cost import NetworkCost
from models.exit_policy import Calibration, ExitRule, exits_taken
from models.multi_exit import MultiExitNet
from models.preprocess import Preprocessing, normalize
from training.data import Batches

SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
ECE_BINS = 15


@dataclass(frozen=True)
class ExitLogits:
    """What every exit says of N pictures: uncalibrated logits (K, N, classes) float32, and the true classes (N)."""

    logits_KNC: Tensor
    labels_N: Tensor

    @property
    def num_exits(self) -> int:
        """K."""
        return self.logits_KNC.shape[0]


@torch.inference_mode()
def collect_logits(
    net: MultiExitNet, batches: Batches, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32
) -> ExitLogits:
    """Run every picture through every exit; the logits come back on the CPU."""
    net.eval()
    collected, labels = [], []
    for images_BHWC, labels_B in batches.epoch():
        with torch.autocast(batches.device.type, dtype, enabled=dtype != torch.float32):
            logits = net(normalize(images_BHWC, preprocessing)).logits
        collected.append(torch.stack(logits).float().cpu())
        labels.append(labels_B.cpu())
    return ExitLogits(torch.cat(collected, dim=1), torch.cat(labels))


def calibrated(outputs: ExitLogits, calibration: Calibration) -> Tensor:
    """Calibrated probabilities (K, N, classes) of the ensemble of visited exits, as the engine computes them."""
    accumulated: Tensor | None = None
    probabilities = []
    for exit, logits_NC in enumerate(outputs.logits_KNC, start=1):
        accumulated = calibration.accumulate(exit, accumulated, logits_NC)
        probabilities.append(calibration.probabilities(exit, accumulated))
    return torch.stack(probabilities)


@dataclass(frozen=True)
class ExitQuality:
    """One exit, had it answered every picture.

    accuracy: of the exit's own logits; ensemble_accuracy: of what it serves, the ensemble of the exits visited;
    all 0..1. ece: expected calibration error of what it serves, in 15 equal bins.
    multiply_adds: sequential, all earlier heads included; compute: that over the full network's.
    """

    exit: int
    accuracy: float
    ensemble_accuracy: float
    ece: float
    multiply_adds: int
    compute: float


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold: accuracy (0..1), mean cost, share of pictures leaving at each exit, and the share of
    pictures whose answer differs from the full-depth answer."""

    threshold: float
    accuracy: float
    mean_multiply_adds: float
    compute: float
    exit_mix: tuple[float, ...]
    disagreement: float


@dataclass(frozen=True)
class Evaluation:
    """The whole picture of a network on one set. ensemble_accuracy: of the plain mean of all exits' logits."""

    pictures: int
    exits: tuple[ExitQuality, ...]
    ensemble_accuracy: float
    operating_points: tuple[OperatingPoint, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return asdict(self)


def evaluate(
    outputs: ExitLogits, calibration: Calibration, cost: NetworkCost, thresholds: Sequence[float] = SWEEP
) -> Evaluation:
    """Judge every exit and every threshold on the same outputs."""
    probabilities_KNC = calibrated(outputs, calibration)
    confidence_KN, answers_KN = probabilities_KNC.max(dim=2)
    right_KN = answers_KN == outputs.labels_N
    alone_K = (outputs.logits_KNC.argmax(dim=2) == outputs.labels_N).float().mean(dim=1)
    exits = tuple(
        ExitQuality(
            exit=k + 1,
            accuracy=alone_K[k].item(),
            ensemble_accuracy=right_KN[k].float().mean().item(),
            ece=expected_calibration_error(confidence_KN[k].numpy(), right_KN[k].numpy()),
            multiply_adds=cost.sequential_multiply_adds[k],
            compute=cost.compute[k],
        )
        for k in range(outputs.num_exits)
    )
    mean_logits_NC = outputs.logits_KNC.mean(dim=0)
    answers = Answers(confidence_KN.T.numpy(), answers_KN.T.numpy(), outputs.labels_N.numpy())
    return Evaluation(
        pictures=len(outputs.labels_N),
        exits=exits,
        ensemble_accuracy=(mean_logits_NC.argmax(dim=1) == outputs.labels_N).float().mean().item(),
        operating_points=tuple(operating_point(answers, cost, threshold) for threshold in thresholds),
    )


@dataclass(frozen=True)
class Answers:
    """What every exit would serve: calibrated confidence and class (N, K), and the true class (N)."""

    confidence_NK: npt.NDArray[np.float32]
    class_id_NK: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]


def operating_point(answers: Answers, cost: NetworkCost, threshold: float) -> OperatingPoint:
    """What one threshold, the same at every early exit, does to these pictures."""
    num_exits = answers.confidence_NK.shape[1]
    exit_N = exits_taken(answers.confidence_NK, ExitRule.uniform(threshold, num_exits))
    served_N = np.take_along_axis(answers.class_id_NK, exit_N[:, None] - 1, axis=1)[:, 0]
    mix_K = np.bincount(exit_N - 1, minlength=num_exits) / len(exit_N)
    mean_cost = float(mix_K @ np.array(cost.sequential_multiply_adds, dtype=np.float64))
    return OperatingPoint(
        threshold=threshold,
        accuracy=float((served_N == answers.labels_N).mean()),
        mean_multiply_adds=mean_cost,
        compute=mean_cost / cost.sequential_multiply_adds[-1],
        exit_mix=tuple(mix_K.tolist()),
        disagreement=float((served_N != answers.class_id_NK[:, -1]).mean()),
    )


def expected_calibration_error(
    confidence_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.bool_], bins: int = ECE_BINS
) -> float:
    """Mean distance between confidence and accuracy over equal-width bins, weighted by their pictures.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
    """
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_N, weights=confidence_N.astype(np.float64) - right_N, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence_N))
