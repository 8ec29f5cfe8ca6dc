"""What a bundle may promise: thresholds chosen on some pictures, and proven on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from offramp.models.certificate import Certificate, CertifiedPoint, ThresholdBound
from offramp.training.certify.search import NEVER, FrontPoint
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
# A path towards a promise e has a step at every front point whose disagreement, where it was searched, is STEP times
# the last step's, from PATH_FROM * e up to PATH_TO * e.
STEP, PATH_FROM, PATH_TO = 1.1, 0.25, 2.0
# Before them thresholds nearer to 1 than the first: its distance times these, for where few pictures prove.
LEAD_IN = (0.25, 0.5)
# Levels of the bound of any single threshold: disagreement falls by so much from one to the next.
LEVEL_STEP = 1.3


@dataclass(frozen=True)
class Shortfall:
    """A promise that the certifying pictures could not prove.

    needed: certifying pictures that prove it if none disagrees. observed: disagreement at the most careful early
    thresholds that were tried, None when none were. needed_as_observed: certifying pictures that prove it at that
    disagreement, None when no number does.
    """

    promise: float
    pictures: int
    needed: int
    observed: float | None
    needed_as_observed: int | None


@dataclass(frozen=True)
class ProvingSet:
    """The pictures that prove.

    data: where they come from, in words. fingerprint: SHA-256 of the pictures and their labels. date: today's, in
    ISO 8601.
    """

    predictions: ExitPredictions
    data: str
    fingerprint: str
    date: str


def path(front: Sequence[FrontPoint], pictures: int, promise: float) -> list[tuple[float, ...]]:
    """The order in which thresholds are tested for a promise: full depth, then ever cheaper ones of the front.

    pictures: how many the front was found on. Few steps, as each takes its part of what `mean_upper_bound` may err.
    """
    points = spaced(front, pictures, PATH_FROM * promise, PATH_TO * promise, STEP)
    # Where all others disagree too often, one of them is tried nevertheless, so that it can be told how often.
    points += [front[1]] if points == [front[0]] and len(front) > 1 else []
    chosen = [point.thresholds for point in points]
    lead_in = [tuple(1.0 - part * (1.0 - threshold) for threshold in chosen[0]) for part in LEAD_IN] if chosen else []
    return list(dict.fromkeys([(NEVER,) * len(front[0].thresholds), *lead_in, *chosen]))


def spaced(front: Sequence[FrontPoint], pictures: int, least: float, most: float, step: float) -> list[FrontPoint]:
    """Points of a front found on so many pictures whose disagreement rises by the factor `step`, from `least` to
    `most`: of each step the last point below the next, so that none falls into a gap of the front."""
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
    """The last thresholds along the path that are proven to keep the promise; None where only full depth is.

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
    """Thresholds from 0 at which a single threshold's disagreement falls by a constant factor, and one with none."""
    last_N = np.sort(last_disagreement(searched))[::-1]
    last_N = last_N[last_N >= 0.0]
    counts, count = [], float(len(last_N))
    while count >= 1.0:
        counts.append(int(count))
        count /= LEVEL_STEP
    levels = [0.0, *(float(last_N[count - 1]) for count in counts)]
    if len(last_N):
        levels.append(float(np.nextafter(last_N[0], np.float32(2.0))))
    # Three digits of the distance to 1, for readers: any level will do that certifying pictures do not choose.
    short = {round(1.0 - float(f"{1.0 - level:.3g}"), 9) for level in levels}
    return sorted(level for level in short if level < NEVER)


def any_threshold(levels: Sequence[float], predictions: ExitPredictions, delta: float) -> tuple[ThresholdBound, ...]:
    """Bounds of the disagreement of every single threshold at once.

    With threshold t or any larger one, at most the pictures with t <= `last_disagreement` are answered otherwise than
    at full depth: a share that never grows with t. So bounds of it at a few levels, which hold all at once with chance
    1 - delta (Bonferroni), bound every threshold from each level up to the next. At threshold 1 nothing leaves early.
    """
    last_N = last_disagreement(predictions)
    # As float32, as thresholds are compared; so confidences that round to 1 count at every level below 1.
    counts_L = np.array([(last_N >= np.float32(level)).sum() for level in levels])
    bounds_L = upper_bound(counts_L, len(predictions), delta / len(levels))
    return tuple(ThresholdBound(level, float(bound)) for level, bound in zip(levels, bounds_L, strict=True))


def shortfall(
    steps: Sequence[tuple[float, ...]], promise: float, predictions: ExitPredictions, delta: float
) -> Shortfall:
    """What a proof of the promise takes, when no early exit on the path was proven to keep it."""
    leaving = [counts for counts in count_at_thresholds(predictions, steps) if counts.mix_K[-1] < counts.pictures]
    observed = leaving[0].disagreed / len(predictions) if leaving else 0.0
    untried = untried_shortfall(promise, len(predictions), delta)
    return replace(untried, observed=observed, needed_as_observed=pictures_needed(promise, delta, observed))


def untried_shortfall(promise: float, pictures: int, delta: float) -> Shortfall:
    """What a proof of the promise takes, when too few pictures were held out to certify any."""
    needed = pictures_needed(promise, delta)
    assert needed is not None
    return Shortfall(promise, pictures, needed, None, None)


def certify(
    searched: ExitPredictions,
    front: Sequence[FrontPoint],
    proving: ProvingSet,
    sequential_K: Sequence[float],
    promises: Sequence[float] = PROMISES,
    delta: float = DELTA,
) -> tuple[Certificate, tuple[Shortfall, ...]]:
    """What holds of the pictures that `proving` is a sample of, and the promises that could not be proven.

    searched, front: the pictures on which thresholds were searched, and what was found; none of them proves anything.
    A promise that no early exit is proven to keep, or that costs no less than a stricter one, is left out.
    """
    points: list[CertifiedPoint] = []
    missed: list[Shortfall] = []
    for promise in sorted(promises):
        steps = path(front, len(searched), promise)
        point = certified_point(steps, promise, proving.predictions, sequential_K, delta)
        if point is None or point.compute >= 1.0:
            missed.append(shortfall(steps, promise, proving.predictions, delta))
        elif not points or point.compute < points[-1].compute:
            points.append(point)
    certificate = Certificate(
        delta=delta,
        pictures=len(proving.predictions),
        data=proving.data,
        fingerprint=proving.fingerprint,
        date=proving.date,
        points=tuple(points),
        any_threshold=any_threshold(threshold_levels(searched), proving.predictions, delta),
    )
    return certificate, tuple(missed)
