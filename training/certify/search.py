"""Every combination of thresholds at once: disagreement, cost and exit mix on cached confidences, exactly.

A confidence matters only by how many of its exit's levels it reaches. So pictures are counted in histograms over these
numbers, of one axis an exit; a cumulative sum along each axis then says for all combinations at once how many pictures
pass the first k exits, and how many of those exit k would answer otherwise than full depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from offramp.training.evaluate.predictions import ExitPredictions, Float32Array

MOST_COMBINATIONS = 1_500_000
MOST_LEVELS = 1_000
# Levels lie at the confidences that (1/n)^x .. 1^x of the pictures reach: above 1, finer near confidence 1.
FINER_NEAR_ONE = 1.5
DIGITS = 6
NEVER = 1.0

Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]


def levels_for(num_exits: int) -> int:
    """Levels an early exit, so that there are at most MOST_COMBINATIONS."""
    return min(MOST_LEVELS, int(MOST_COMBINATIONS ** (1 / max(1, num_exits - 1)) + 1e-9))


def levels_of(confidence_N: Float32Array, count: int) -> Float64Array:
    """Up to `count` rising thresholds of one exit, from one that all pictures reach to 1, which none does.

    Rounded down to DIGITS, so also below confidences of 1.
    """
    shares = (np.arange(1, count) / (count - 1)) ** FINER_NEAR_ONE
    at = np.quantile(confidence_N.astype(np.float64), 1.0 - shares, method="lower")
    scale = 10**DIGITS
    levels = np.unique(np.minimum(np.floor(at * scale), scale - 1) / scale)
    return np.append(levels, NEVER)


@dataclass(frozen=True)
class Grid:
    """All combinations of the exits' levels, an axis each early exit; counts of pictures.

    levels: per early exit, rising, the last is 1 (never). passed: of exits 1..k, for k = 1..K-1, how many pictures
    leave at none of them; an array of k axes. disagreed: answered otherwise than full depth, K - 1 axes.
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
        """Of every combination, where answering at exit k costs `sequential_K[k - 1]`.

        All pay the first; who passes exit k pays the step to the next as well.
        """
        axes = self.disagreed.ndim
        steps = [after - before for before, after in pairwise(sequential_K)]
        cost = np.full(self.disagreed.shape, float(sequential_K[0]))
        for step, passed in zip(steps, self.passed, strict=True):
            cost += (step / self.pictures) * _spread(passed, axes)
        return cost


def search(answers: ExitPredictions, most_levels: int | None = None) -> Grid:
    """Count every combination, O(pictures + combinations) an exit; decisions are those of `exit_policy.leaves`.

    most_levels: an exit; by default as many as `levels_for` allows.
    """
    count = levels_for(answers.num_exits) if most_levels is None else most_levels
    early = range(answers.num_exits - 1)
    levels = tuple(levels_of(answers.confidence_NK[:, k], count) for k in early)
    # How many of its exit's levels a confidence reaches, compared as float32; a picture leaves at level j if more.
    reached = [
        np.searchsorted(at[:-1].astype(np.float32), answers.confidence_NK[:, k], side="right")
        for k, at in zip(early, levels, strict=True)
    ]
    passed: list[Int32Array] = []
    disagreed = np.zeros([len(at) for at in levels], dtype=np.int32)
    for k in early:
        shape = tuple(len(at) for at in levels[: k + 1])
        cell_N = np.ravel_multi_index(tuple(reached[: k + 1]), shape)
        passed.append(_cumulative(cell_N, shape))
        here = _cumulative(cell_N[answers.differs_NK[:, k]], shape)
        disagreed += _spread(here[..., -1:] - here, len(levels))
    return Grid(len(answers), levels, tuple(passed), disagreed)


def _cumulative(cell_N: npt.NDArray[np.intp], shape: tuple[int, ...]) -> Int32Array:
    counts = np.bincount(cell_N, minlength=int(np.prod(shape))).astype(np.int32).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(counts, axis=axis, out=counts)
    return counts


def _spread(counts: Int32Array, axes: int) -> Int32Array:
    return counts.reshape(counts.shape + (1,) * (axes - counts.ndim))


@dataclass(frozen=True)
class FrontPoint:
    """The cheapest combination of those that disagree so often, on the pictures searched."""

    thresholds: tuple[float, ...]
    disagreed: int
    cost: float


def pareto_front(grid: Grid, sequential_K: Sequence[float]) -> tuple[FrontPoint, ...]:
    """Combinations that none beats in both disagreement and mean cost; from full depth to the cheapest of all.

    The first is full depth itself where leaving early without any disagreement gains nothing, else that.
    """
    cost = grid.mean_cost(sequential_K).ravel()
    order = np.argsort(grid.disagreed, axis=None, kind="stable")
    # Among equals the highest thresholds, which come last in the grid.
    disagreed, counts = np.unique(grid.disagreed, return_counts=True)
    points: list[FrontPoint] = []
    for count, cells in zip(disagreed.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True):
        cells = cells[::-1]
        best = int(cells[np.argmin(cost[cells])])
        if not points or cost[best] < points[-1].cost:
            points.append(FrontPoint(grid.thresholds(best), count, float(cost[best])))
    return tuple(points)
