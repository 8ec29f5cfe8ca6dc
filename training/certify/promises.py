"""The promises of a bundle: thresholds chosen on some pictures, and proven on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offramp.models.certificate import Certificate, CertifiedPoint, ThresholdBound
from offramp.training.certify.search import NEVER_THRESHOLD, FrontPoint
from offramp.training.certify.statistics import (
    count_certified,
    last_disagreement,
    mean_upper_bound,
    pictures_needed,
    upper_bound,
)
from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds

DELTA = 0.05
PROMISES = (0.005, 0.01, 0.02, 0.05, 0.1)
# The tests for a promise e follow the Pareto front from a disagreement of TEST_FROM * e to one of TEST_TO * e, as
# counted on the pictures searched. From test to test the disagreement rises by the factor STEP.
STEP, TEST_FROM, TEST_TO = 1.1, 0.25, 2.0
# Stricter thresholds tested before the first, for few certifying pictures: at 25 % and 50 % of its distance to 1.
STRICTER_FIRST = (0.25, 0.5)
# Levels of the bound of any single threshold: disagreement falls by this factor from level to level.
LEVEL_STEP = 1.3


@dataclass(frozen=True)
class Shortfall:
    """A promise that the certifying pictures do not prove.

    needed: certifying pictures that prove it if none disagrees. observed: disagreement at the strictest early
    thresholds tested, None when nothing was tested. needed_as_observed: certifying pictures that prove it at that
    disagreement, None when no number does.
    """

    promise: float
    pictures: int
    needed: int
    observed: float | None
    needed_as_observed: int | None


@dataclass(frozen=True)
class ProvingSet:
    """The certifying pictures.

    data: where they come from, in words. fingerprint: SHA-256 of pictures and labels. date: today's, ISO 8601.
    """

    predictions: ExitPredictions
    data: str
    fingerprint: str
    date: str


def order_of_tests(front: Sequence[FrontPoint], pictures: int, promise: float) -> list[tuple[float, ...]]:
    """The order in which thresholds are tested for a promise: from full depth to ever cheaper ones of the Pareto front.

    pictures: number of pictures searched. There are few tests, because the chance of error of
    `mean_upper_bound` is divided among them.
    """
    points = spaced(front, pictures, TEST_FROM * promise, TEST_TO * promise, STEP)
    # If all other points disagree too often, one is tested nevertheless, to report how often it disagrees.
    points += [front[1]] if points == [front[0]] and len(front) > 1 else []
    chosen = [point.thresholds for point in points]
    stricter = (
        [tuple(1.0 - part * (1.0 - threshold) for threshold in chosen[0]) for part in STRICTER_FIRST] if chosen else []
    )
    return list(dict.fromkeys([(NEVER_THRESHOLD,) * len(front[0].thresholds), *stricter, *chosen]))


def spaced(front: Sequence[FrontPoint], pictures: int, least: float, most: float, step: float) -> list[FrontPoint]:
    """Points of a Pareto front whose disagreement rises by the factor `step`, from `least` to `most`.

    pictures: number of pictures searched. Each step takes the last point below the next step, so that no step
    falls into a gap of the front.
    """
    points = []
    for at, point in enumerate(front):
        share = point.disagreed / pictures
        if share > most:
            break
        following = front[at + 1].disagreed / pictures if at + 1 < len(front) else 1.0
        if following > least:
            points.append(point)
            least = max(least, share, 1.0 / pictures) * step
    return points


def certified_point(
    steps: Sequence[tuple[float, ...]],
    promise: float,
    predictions: ExitPredictions,
    sequential_K: Sequence[float],
    delta: float,
) -> CertifiedPoint | None:
    """The last thresholds in the order of tests that are proven to keep the promise; None when only full depth is.

    The bound of the accuracy drop holds for all steps at once (Bonferroni), because the step is chosen here.
    """
    counts = count_at_thresholds(predictions, steps)
    pictures = len(predictions)
    num_proven = count_certified(np.array([count.disagreed for count in counts]), pictures, promise, delta)
    if num_proven < 2:
        return None
    last = counts[num_proven - 1]
    return CertifiedPoint(
        max_disagreement=promise,
        thresholds=steps[num_proven - 1],
        observed=last.disagreed / pictures,
        bound=float(upper_bound(last.disagreed, pictures, delta)),
        accuracy_drop=(last.lost - last.gained) / pictures,
        accuracy_drop_bound=mean_upper_bound(last.lost, last.gained, pictures, delta / (len(steps) - 1)),
        compute=last.mean_cost(sequential_K) / sequential_K[-1],
        exit_mix=last.exit_mix,
    )


def threshold_levels(searched: ExitPredictions) -> list[float]:
    """The levels of `any_threshold`, rising from 0; the last has no disagreement.

    From level to level, the disagreement falls by a constant factor.
    """
    last_N = np.sort(last_disagreement(searched))[::-1]
    last_N = last_N[last_N >= 0.0]
    counts, count = [], float(len(last_N))
    while count >= 1.0:
        counts.append(int(count))
        count /= LEVEL_STEP
    levels = [0.0, *(float(last_N[count - 1]) for count in counts)]
    if len(last_N):
        levels.append(float(np.nextafter(last_N[0], np.float32(2.0))))
    # Three digits of the distance to 1, for readers. Levels may be anything, if the
    # certifying pictures are not used to choose them.
    short = {round(1.0 - float(f"{1.0 - level:.3g}"), 9) for level in levels}
    return sorted(level for level in short if level < NEVER_THRESHOLD)


def any_threshold(levels: Sequence[float], predictions: ExitPredictions, delta: float) -> tuple[ThresholdBound, ...]:
    """Bounds of the disagreement of every single threshold at once.

    With threshold t or any larger one, only pictures with t <= `last_disagreement` can differ from full depth. Their
    share never grows with t. So the bound at a level holds for every threshold up to the next level. All bounds hold at
    once with chance 1 - delta (Bonferroni). At threshold 1 nothing leaves early.
    """
    last_N = last_disagreement(predictions)
    # As float32, because exits compare thresholds so: confidences that round to 1 count at every level below 1.
    counts_L = np.array([(last_N >= np.float32(level)).sum() for level in levels])
    bounds_L = upper_bound(counts_L, len(predictions), delta / len(levels))
    return tuple(ThresholdBound(level, float(bound)) for level, bound in zip(levels, bounds_L, strict=True))


def shortfall(promise: float, pictures: int, delta: float, observed: float | None = None) -> Shortfall:
    """How many certifying pictures a promise needs; `pictures` are there, `observed` as in `Shortfall`."""
    needed = pictures_needed(promise, delta)
    assert needed is not None
    more = None if observed is None else pictures_needed(promise, delta, observed)
    return Shortfall(promise, pictures, needed, observed, more)


def _first_disagreement(steps: Sequence[tuple[float, ...]], predictions: ExitPredictions) -> float:
    """Disagreement at the first thresholds tested at which pictures leave early."""
    leaving = [counts for counts in count_at_thresholds(predictions, steps) if counts.mix_K[-1] < counts.pictures]
    return leaving[0].disagreed / len(predictions) if leaving else 0.0


def certify(
    searched: ExitPredictions,
    front: Sequence[FrontPoint],
    proving: ProvingSet,
    sequential_K: Sequence[float],
    promises: Sequence[float] = PROMISES,
    delta: float = DELTA,
) -> tuple[Certificate, tuple[Shortfall, ...]]:
    """The certificate for traffic like the proving pictures, and the promises that are not proven.

    searched, front: the pictures of the search, and its result; they prove nothing. A promise is left out when no early
    exit is proven to keep it, or when a stricter promise costs no more.
    """
    points: list[CertifiedPoint] = []
    missed: list[Shortfall] = []
    predictions = proving.predictions
    for promise in sorted(promises):
        steps = order_of_tests(front, len(searched), promise)
        point = certified_point(steps, promise, predictions, sequential_K, delta)
        if point is None or point.compute >= 1.0:
            missed.append(shortfall(promise, len(predictions), delta, _first_disagreement(steps, predictions)))
        elif not points or point.compute < points[-1].compute:
            points.append(point)
    certificate = Certificate(
        delta=delta,
        pictures=len(predictions),
        data=proving.data,
        fingerprint=proving.fingerprint,
        date=proving.date,
        points=tuple(points),
        any_threshold=any_threshold(threshold_levels(searched), predictions, delta),
    )
    return certificate, tuple(missed)
