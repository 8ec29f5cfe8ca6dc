"""What a bundle may promise: paths of thresholds chosen on some pictures, and proven on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.certificate import Certificate, CertifiedPoint, ThresholdBound
from training.answers import Answers, outcomes
from training.certify import certified, last_disagreement, mean_upper_bound, pictures_needed, upper_bound
from training.search import NEVER, FrontPoint

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
    """A promise that so few pictures could not prove.

    needed: certifying pictures that do if none disagrees. observed: disagreement at the most careful early thresholds
    tried, None where none were; needed_as_observed: what proving takes there, None where no number would do.
    """

    promise: float
    pictures: int
    needed: int
    observed: float | None
    needed_as_observed: int | None


@dataclass(frozen=True)
class Certifying:
    """The pictures that prove. fingerprint: SHA-256 of them and their labels; data: where they come from, in words;
    date: of today, ISO 8601."""

    answers: Answers
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
    steps: Sequence[tuple[float, ...]], promise: float, answers: Answers, sequential_K: Sequence[float], delta: float
) -> CertifiedPoint | None:
    """The last thresholds along the path that are proven to keep the promise; None where only full depth is.

    The bound of the accuracy drop holds for all steps at once (Bonferroni), as the one it is told of is chosen here.
    """
    found = outcomes(answers, steps)
    pictures = len(answers)
    kept = certified(np.array([one.disagreed for one in found]), pictures, promise, delta)
    if kept < 2:
        return None
    last = found[kept - 1]
    return CertifiedPoint(
        max_disagreement=promise,
        thresholds=steps[kept - 1],
        observed=last.disagreed / pictures,
        bound=float(upper_bound(last.disagreed, pictures, delta)),
        accuracy_drop=(last.lost - last.gained) / pictures,
        accuracy_drop_bound=mean_upper_bound(last.lost, last.gained, pictures, delta / (len(steps) - 1)),
        compute=last.mean_cost(sequential_K) / sequential_K[-1],
        exit_mix=last.exit_mix,
    )


def threshold_levels(searched: Answers) -> list[float]:
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


def any_threshold(levels: Sequence[float], answers: Answers, delta: float) -> tuple[ThresholdBound, ...]:
    """Bounds of the disagreement of every single threshold at once.

    With threshold t or any larger one, at most the pictures with t <= `last_disagreement` are answered otherwise than
    at full depth: a share that never grows with t. So bounds of it at a few levels, which hold all at once with chance
    1 - delta (Bonferroni), bound every threshold from each level up to the next. At threshold 1 nothing leaves early.
    """
    last_N = last_disagreement(answers)
    # As float32, as thresholds are compared; so confidences that round to 1 count at every level below 1.
    counts_L = np.array([(last_N >= np.float32(level)).sum() for level in levels])
    bounds_L = upper_bound(counts_L, len(answers), delta / len(levels))
    return tuple(ThresholdBound(level, float(bound)) for level, bound in zip(levels, bounds_L, strict=True))


def shortfall(steps: Sequence[tuple[float, ...]], promise: float, answers: Answers, delta: float) -> Shortfall:
    """What proving a promise would take, where no early exit on the path was proven to keep it."""
    leaving = [found for found in outcomes(answers, steps) if found.mix_K[-1] < found.pictures]
    observed = leaving[0].disagreed / len(answers) if leaving else 0.0
    untried = untried_shortfall(promise, len(answers), delta)
    return replace(untried, observed=observed, needed_as_observed=pictures_needed(promise, delta, observed))


def untried_shortfall(promise: float, pictures: int, delta: float) -> Shortfall:
    """What proving a promise would take, where so few pictures could certify that none did."""
    needed = pictures_needed(promise, delta)
    assert needed is not None
    return Shortfall(promise, pictures, needed, None, None)


def certify(
    searched: Answers,
    front: Sequence[FrontPoint],
    proving: Certifying,
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
        point = certified_point(steps, promise, proving.answers, sequential_K, delta)
        if point is None or point.compute >= 1.0:
            missed.append(shortfall(steps, promise, proving.answers, delta))
        elif not points or point.compute < points[-1].compute:
            points.append(point)
    certificate = Certificate(
        delta=delta,
        pictures=len(proving.answers),
        data=proving.data,
        fingerprint=proving.fingerprint,
        date=proving.date,
        points=tuple(points),
        any_threshold=any_threshold(threshold_levels(searched), proving.answers, delta),
    )
    return certificate, tuple(missed)
