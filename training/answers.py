"""What every exit would serve of a set of pictures, cached: all that thresholds are chosen and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.exit_policy import ExitRule, exits_taken
from training.exit_quality import settled

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Of the order in which the pictures of a class are dealt to both sides of a division; any constant would do.
DIVISION_SEED = 1


@dataclass(frozen=True)
class Answers:
    """What every exit would serve: calibrated confidence and class (N, K), and the true class (N)."""

    confidence_NK: Float32Array
    class_id_NK: Int64Array
    labels_N: Int64Array

    @classmethod
    def of(cls, probabilities_KNC: Tensor, labels_N: Tensor) -> Answers:
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
        """Whether each exit has each picture right."""
        right_NK: BoolArray = self.class_id_NK == self.labels_N[:, None]
        return right_NK

    @cached_property
    def differs_NK(self) -> BoolArray:
        """Whether each exit answers otherwise than full depth."""
        differs_NK: BoolArray = self.class_id_NK != self.class_id_NK[:, -1:]
        return differs_NK

    @cached_property
    def settled_K(self) -> tuple[float, ...]:
        """Per exit, the share of pictures that it answers as all later exits do."""
        return settled(self.class_id_NK)

    def subset(self, indices_M: Int64Array) -> Answers:
        """The pictures at `indices_M`, in that order."""
        return Answers(self.confidence_NK[indices_M], self.class_id_NK[indices_M], self.labels_N[indices_M])


@dataclass(frozen=True)
class Outcome:
    """What thresholds did to pictures, counted. mix_K: pictures leaving at each exit. disagreed: answered otherwise
    than full depth. lost: right at full depth and wrong early; gained: the reverse."""

    mix_K: tuple[int, ...]
    disagreed: int
    lost: int
    gained: int

    @property
    def pictures(self) -> int:
        """How many."""
        return sum(self.mix_K)

    @property
    def exit_mix(self) -> tuple[float, ...]:
        """Share of pictures leaving at each exit."""
        return tuple(count / self.pictures for count in self.mix_K)

    def mean_cost(self, sequential_K: Sequence[float]) -> float:
        """Mean of what answering at each exit costs."""
        return sum(count * cost for count, cost in zip(self.mix_K, sequential_K, strict=True)) / self.pictures


def outcomes(answers: Answers, thresholds_P: Sequence[Sequence[float]]) -> list[Outcome]:
    """Count what each of these thresholds (K - 1 numbers) does, by the decisions of `models.exit_policy`."""
    full_N = answers.right_NK[:, -1]
    found = []
    for thresholds in thresholds_P:
        at_N = exits_taken(answers.confidence_NK, ExitRule(tuple(thresholds))) - 1
        flat_N = np.arange(len(answers)) * answers.num_exits + at_N
        early_N = answers.right_NK.ravel()[flat_N]
        found.append(
            Outcome(
                mix_K=tuple(np.bincount(at_N, minlength=answers.num_exits).tolist()),
                disagreed=int(np.count_nonzero(answers.differs_NK.ravel()[flat_N])),
                lost=int(np.count_nonzero(full_N & ~early_N)),
                gained=int(np.count_nonzero(early_N & ~full_N)),
            )
        )
    return found


def divide(labels_N: Int64Array, share: float) -> tuple[Int64Array, Int64Array]:
    """Indices of two disjoint parts, each sorted: floor(share * N) pictures, and the others; stratified by class.

    The pictures of each class are shuffled by a constant seed, and of the classes in a row every picture at which
    share * position reaches a whole number goes to the first part (systematic sampling): each class gives its share,
    give or take one picture, also where it has a single one. A pure function of its arguments.
    """
    # RandomState, as NumPy froze its stream for good; default_rng may change between releases.
    random = np.random.RandomState(DIVISION_SEED)
    row = np.concatenate([random.permutation(np.flatnonzero(labels_N == label)) for label in np.unique(labels_N)])
    position = np.arange(1, len(row) + 1)
    # A little more than nothing, so that 0.4 * 5 is 2 whatever its last bit.
    first = np.floor(position * share + 1e-9) > np.floor((position - 1) * share + 1e-9)
    return np.sort(row[first]).astype(np.int64), np.sort(row[~first]).astype(np.int64)
