"""Every combination of thresholds at once: exact disagreement and cost on stored confidences.

A confidence matters only by the number of its exit's levels that it reaches. So pictures are counted in histograms over
these numbers, with an axis for each exit. A cumulative sum along each axis gives two counts for all combinations at
once: pictures that pass the first k exits, and pictures that exit k answers otherwise than full depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from offramp.training.evaluate.predictions import ExitPredictions, Float32Array, Float64Array

MOST_COMBINATIONS = 1_500_000
MOST_LEVELS = 1_000
# Levels lie at the confidences that shares (1/n)^x .. 1^x of the pictures reach. Above 1: finer near confidence 1.
FINER_NEAR_ONE = 1.5
DIGITS = 6
NEVER_THRESHOLD = 1.0

Int32Array = npt.NDArray[np.int32]


def levels_for(num_exits: int) -> int:
    """Levels of each early exit, for at most MOST_COMBINATIONS."""
    return min(MOST_LEVELS, int(MOST_COMBINATIONS ** (1 / max(1, num_exits - 1)) + 1e-9))


def levels_of(confidence_N: Float32Array, count: int) -> Float64Array:
    """Up to `count` rising thresholds of one exit: the first is reached by all pictures, the last, 1, by no picture.

    Rounded down to DIGITS, so that they lie below confidences of 1.
    """
    shares = (np.arange(1, count) / (count - 1)) ** FINER_NEAR_ONE
    at = np.quantile(confidence_N.astype(np.float64), 1.0 - shares, method="lower")
    scale = 10**DIGITS
    levels = np.unique(np.minimum(np.floor(at * scale), scale - 1) / scale)
    return np.append(levels, NEVER_THRESHOLD)


@dataclass(frozen=True)
class Grid:
    """Counts of pictures for all combinations of the exits' levels, an axis for each early exit.

    levels: for each early exit, rising; the last is 1 (never). passed: for k = 1..K-1, pictures that leave at none of
    the exits 1..k; an array of k axes. disagreed: pictures answered otherwise than at full depth, K - 1 axes.
    """

    pictures: int
    levels: tuple[Float64Array, ...]
    passed: tuple[Int32Array, ...]
    disagreed: Int32Array

    def thresholds(self, flat_index: int) -> tuple[float, ...]:
        """The combination at an index of the flattened arrays."""
        places = np.unravel_index(flat_index, self.disagreed.shape)
        return tuple(float(levels[place]) for levels, place in zip(self.levels, places, strict=True))

    def mean_cost(self, sequential_K: Sequence[float]) -> Float64Array:
        """The mean cost of every combination; `sequential_K[k - 1]` is the cost of an answer at exit k.

        Every picture pays the first exit. A picture that passes exit k pays the step to the next exit too.
        """
        axes = self.disagreed.ndim
        steps = [after - before for before, after in pairwise(sequential_K)]
        cost = np.full(self.disagreed.shape, float(sequential_K[0]))
        for step, passed in zip(steps, self.passed, strict=True):
            cost += (step / self.pictures) * _spread(passed, axes)
        return cost


def search(predictions: ExitPredictions, most_levels: int | None = None) -> Grid:
    """Count every combination, O(pictures + combinations) for each exit; decisions are those of `exit_policy.leaves`.

    most_levels: levels of an exit; by default as many as `levels_for` allows.
    """
    count = levels_for(predictions.num_exits) if most_levels is None else most_levels
    early = range(predictions.num_exits - 1)
    levels = tuple(levels_of(predictions.confidence_NK[:, k], count) for k in early)
    # How many of its exit's levels a confidence reaches, compared as float32. If more than j, it leaves at level j.
    reached = [
        np.searchsorted(at[:-1].astype(np.float32), predictions.confidence_NK[:, k], side="right")
        for k, at in zip(early, levels, strict=True)
    ]
    passed: list[Int32Array] = []
    disagreed = np.zeros([len(at) for at in levels], dtype=np.int32)
    for k in early:
        shape = tuple(len(at) for at in levels[: k + 1])
        cell_N = np.ravel_multi_index(tuple(reached[: k + 1]), shape)
        passed.append(_cumulative(cell_N, shape))
        here = _cumulative(cell_N[predictions.differs_NK[:, k]], shape)
        disagreed += _spread(here[..., -1:] - here, len(levels))
    return Grid(len(predictions), levels, tuple(passed), disagreed)


def _cumulative(cell_N: npt.NDArray[np.intp], shape: tuple[int, ...]) -> Int32Array:
    counts = np.bincount(cell_N, minlength=int(np.prod(shape))).astype(np.int32).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(counts, axis=axis, out=counts)
    return counts


def _spread(counts: Int32Array, axes: int) -> Int32Array:
    return counts.reshape(counts.shape + (1,) * (axes - counts.ndim))


@dataclass(frozen=True)
class FrontPoint:
    """The cheapest combination with this number of disagreements on the pictures searched."""

    thresholds: tuple[float, ...]
    disagreed: int
    cost: float


def pareto_front(grid: Grid, sequential_K: Sequence[float]) -> tuple[FrontPoint, ...]:
    """Combinations that no other beats in both disagreement and mean cost; the cheapest is the last.

    The first has no disagreement: it is full depth unless leaving early without disagreement is cheaper.
    """
    cost = grid.mean_cost(sequential_K).ravel()
    order = np.argsort(grid.disagreed, axis=None, kind="stable")
    # Of equal costs the highest thresholds, which come last in the grid.
    disagreed, counts = np.unique(grid.disagreed, return_counts=True)
    points: list[FrontPoint] = []
    for count, cells in zip(disagreed.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True):
        cells = cells[::-1]
        best = int(cells[np.argmin(cost[cells])])
        if not points or cost[best] < points[-1].cost:
            points.append(FrontPoint(grid.thresholds(best), count, float(cost[best])))
    return tuple(points)
