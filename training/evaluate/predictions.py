"""Predictions of every exit for a set of pictures: the basis for choosing and proving thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from offramp.models.exit_policy import ExitRule, exits_taken

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Seed of the order of pictures in a division; any constant will do.
DIVISION_SEED = 1


@dataclass(frozen=True)
class ExitPredictions:
    """Predictions of every exit: calibrated confidence and class (N, K), and the true class (N)."""

    confidence_NK: Float32Array
    class_id_NK: Int64Array
    labels_N: Int64Array

    @classmethod
    def of(cls, probabilities_KNC: Tensor, labels_N: Tensor) -> ExitPredictions:
        """The most probable class of each picture at each exit."""
        confidence_KN, class_id_KN = probabilities_KNC.max(dim=2)
        return cls(confidence_KN.T.numpy(), class_id_KN.T.numpy(), labels_N.numpy())

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def num_exits(self) -> int:
        """K."""
        return int(self.confidence_NK.shape[1])

    @cached_property
    def right_NK(self) -> BoolArray:
        """Whether each exit has the right class for each picture."""
        right_NK: BoolArray = self.class_id_NK == self.labels_N[:, None]
        return right_NK

    @cached_property
    def differs_NK(self) -> BoolArray:
        """Whether each exit answers otherwise than full depth."""
        differs_NK: BoolArray = self.class_id_NK != self.class_id_NK[:, -1:]
        return differs_NK

    @property
    def full_accuracy(self) -> float:
        """Accuracy of full depth."""
        return float(self.right_NK[:, -1].mean())

    def subset(self, indices_M: Int64Array) -> ExitPredictions:
        """The pictures at `indices_M`, in that order."""
        return ExitPredictions(self.confidence_NK[indices_M], self.class_id_NK[indices_M], self.labels_N[indices_M])


@dataclass(frozen=True)
class ThresholdCounts:
    """Counts of pictures under some thresholds.

    mix_K: pictures that leave at each exit. disagreed: pictures with another answer than at full depth. lost: pictures
    that are right at full depth and wrong early; gained: the reverse.
    """

    mix_K: tuple[int, ...]
    disagreed: int
    lost: int
    gained: int

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return sum(self.mix_K)

    @property
    def exit_mix(self) -> tuple[float, ...]:
        """Share of pictures that leave at each exit."""
        return tuple(count / self.pictures for count in self.mix_K)

    def mean_cost(self, sequential_K: Sequence[float]) -> float:
        """Mean cost of an answer; `sequential_K` is the cost at each exit."""
        return sum(count * cost for count, cost in zip(self.mix_K, sequential_K, strict=True)) / self.pictures


def count_at_thresholds(predictions: ExitPredictions, thresholds_P: Sequence[Sequence[float]]) -> list[ThresholdCounts]:
    """Counts for each of P combinations of K - 1 thresholds, by the decisions of `offramp.models.exit_policy`."""
    full_N = predictions.right_NK[:, -1]
    counts = []
    for thresholds in thresholds_P:
        at_N = exits_taken(predictions.confidence_NK, ExitRule(tuple(thresholds))) - 1
        flat_N = np.arange(len(predictions)) * predictions.num_exits + at_N
        early_N = predictions.right_NK.ravel()[flat_N]
        counts.append(
            ThresholdCounts(
                mix_K=tuple(np.bincount(at_N, minlength=predictions.num_exits).tolist()),
                disagreed=int(np.count_nonzero(predictions.differs_NK.ravel()[flat_N])),
                lost=int(np.count_nonzero(full_N & ~early_N)),
                gained=int(np.count_nonzero(early_N & ~full_N)),
            )
        )
    return counts


def divide(labels_N: Int64Array, share: float) -> tuple[Int64Array, Int64Array]:
    """Indices of two disjoint parts, each sorted: floor(share * N) pictures, and the rest; stratified by class.

    The pictures of each class are shuffled by a constant seed, and the classes are put in a row. Every picture at which
    share * position reaches a whole number goes to the first part (systematic sampling). So each class gives its share,
    to one picture, also a class with a single picture. A pure function of its arguments.
    """
    # NumPy guarantees the stream of RandomState; that of default_rng may change between releases.
    random = np.random.RandomState(DIVISION_SEED)
    row = np.concatenate([random.permutation(np.flatnonzero(labels_N == label)) for label in np.unique(labels_N)])
    position = np.arange(1, len(row) + 1)
    # A tiny amount more, so that 0.4 * 5 is 2 despite rounding.
    first = np.floor(position * share + 1e-9) > np.floor((position - 1) * share + 1e-9)
    return np.sort(row[first]).astype(np.int64), np.sort(row[~first]).astype(np.int64)
