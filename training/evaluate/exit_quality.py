"""Quality of an exit: calibration, ranking of right above wrong answers, overthinking. Pure functions of arrays.

A picture leaves early by its confidence. So an exit is good when its right answers are more confident than its wrong
ones: failure prediction (AUROC) and selective risk (AURC). Temperature changes calibration, never ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

ECE_BINS = 15
COVERAGES = 50


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: share of the pictures, mean confidence and accuracy (all 0..1) of each bin, rising.

    Bins without pictures are left out.
    """

    share: tuple[float, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (ECE), 0..1: the mean distance between confidence and accuracy.

        Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation 3.
        """
        gaps = zip(self.share, self.confidence, self.accuracy, strict=True)
        return sum(share * abs(confidence - accuracy) for share, confidence, accuracy in gaps)


def reliability(
    confidence_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.bool_], bins: int = ECE_BINS
) -> Reliability:
    """Group answers by confidence into bins of equal width."""
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    filled_B = count_B > 0
    confidence_B = np.bincount(bin_N, weights=confidence_N, minlength=bins)[filled_B] / count_B[filled_B]
    accuracy_B = np.bincount(bin_N, weights=right_N, minlength=bins)[filled_B] / count_B[filled_B]
    share_B = count_B[filled_B] / len(confidence_N)
    return Reliability(tuple(share_B.tolist()), tuple(confidence_B.tolist()), tuple(accuracy_B.tolist()))


def failure_auroc(confidence_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.bool_]) -> float | None:
    """The chance that a right answer is more confident than a wrong one, ties counting half; 0.5 is chance.

    None when all answers are right, or all are wrong.
    Source: Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples" (ICLR 2017).
    """
    # In float64: scipy sums ranks in the type of its arguments.
    right, wrong = confidence_N[right_N].astype(np.float64), confidence_N[~right_N].astype(np.float64)
    if not len(right) or not len(wrong):
        return None
    return float(mannwhitneyu(right, wrong, method="asymptotic").statistic / (len(right) * len(wrong)))


@dataclass(frozen=True)
class SelectiveRisk:
    """Wrong answers among the most confident ones.

    area: AURC, the mean share of wrong answers over all coverages 1/N, 2/N .. 1; lower is better.
    excess: AURC above that of the best ranking with as many wrong answers; 0 when all right answers rank first.
    curve: the share of wrong answers among the most confident 1/n, 2/n .. 1 of the pictures, n its length.
    """

    area: float
    excess: float
    curve: tuple[float, ...]


def selective_risk(
    confidence_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.bool_], coverages: int = COVERAGES
) -> SelectiveRisk:
    """Count wrong answers among the most confident ones; the mean over all orders of equal confidences.

    Sources: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks" (NIPS 2017), the curve; Geifman,
    Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers" (ICLR 2019), AURC and E-AURC.
    """
    risk_N = _risks(confidence_N, right_N)
    area = float(risk_N.mean())
    best = float(_risks(right_N.astype(np.float32), right_N).mean())
    # Integers, rounded up: 0.06 * 50 would be a little more than 3.
    last = [-(-step * len(risk_N) // coverages) - 1 for step in range(1, coverages + 1)]
    return SelectiveRisk(area, area - best, tuple(risk_N[last].tolist()))


def _risks(confidence_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Share of wrong answers among the 1, 2 .. N most confident ones."""
    _, tie_N, size_T = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    wrong_T = np.bincount(tie_N, weights=~right_N)
    risk_N: npt.NDArray[np.float64] = np.cumsum(np.repeat(wrong_T / size_T, size_T)) / np.arange(1, len(right_N) + 1)
    return risk_N


@dataclass(frozen=True)
class Oracle:
    """A cascade in which each picture leaves at the first exit with the right answer, or at the last one.

    accuracy: share of pictures with a right answer at any exit, the ceiling of every exit policy.
    mean_multiply_adds, compute: its mean cost, in multiply-adds of one picture and as a share of full depth.
    overthought: share that is right at an earlier exit and wrong at the deepest ("destructive" overthinking).
    wasted: share that is right at an earlier exit and at the deepest ("wasteful" overthinking).
    """

    accuracy: float
    mean_multiply_adds: float
    compute: float
    overthought: float
    wasted: float


def oracle(right_NK: npt.NDArray[np.bool_], multiply_adds_K: Sequence[int]) -> Oracle:
    """The oracle, from whether each exit is right; costs are sequential, as in serving.

    Source: Kaya, Hong & Dumitras, "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking" (ICML
    2019).
    """
    any_N, early_N, last_N = right_NK.any(axis=1), right_NK[:, :-1].any(axis=1), right_NK[:, -1]
    left_at_N = np.where(any_N, right_NK.argmax(axis=1), right_NK.shape[1] - 1)
    mean_cost = float(np.asarray(multiply_adds_K, dtype=np.float64)[left_at_N].mean())
    return Oracle(
        accuracy=float(any_N.mean()),
        mean_multiply_adds=mean_cost,
        compute=mean_cost / multiply_adds_K[-1],
        overthought=float((early_N & ~last_N).mean()),
        wasted=float((early_N & last_N).mean()),
    )


def settled(class_id_NK: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """For each exit, the share of pictures that all later exits answer in the same way; 1.0 at the last."""
    same_NK = class_id_NK == class_id_NK[:, -1:]
    stays_NK = np.logical_and.accumulate(same_NK[:, ::-1], axis=1)[:, ::-1]
    return tuple(stays_NK.mean(axis=0).tolist())
