"""The statistics of a certificate: exact bounds on shares and means, and tests in a fixed order.

Pictures are drawn independently from the traffic that a promise is for. Thresholds are chosen without these pictures.
`delta` is the chance, over that draw, that a statement is wrong. A draw with fixed class sizes, as of a hold-out, only
makes counts steadier (W. Hoeffding, "On the distribution of the number of successes in independent trials", Annals of
Mathematical Statistics, 1956).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv

from offramp.training.evaluate.predictions import ExitPredictions, Float32Array, Float64Array, Int64Array

# Stakes of the bettors, as shares of the highest stake that cannot ruin; rising by a constant factor.
STAKES = np.geomspace(0.01, 0.99, 16)
MOST_PICTURES = 2**40


def upper_bound(count: int | Int64Array, pictures: int, delta: float) -> Float64Array:
    """Upper confidence bound of a share, when `count` of `pictures` were observed: exact, one-sided.

    It is the share p with P(Binomial(pictures, p) <= count) = delta. So it is at most eps exactly when the binomial
    test rejects "the share is above eps" at level delta. Source: C. Clopper, E. Pearson, "The use of confidence or
    fiducial limits illustrated in the case of the binomial" (Biometrika, 1934).
    """
    counts = np.asarray(count, dtype=np.float64)
    is_all = counts >= pictures
    bound = betaincinv(counts + 1.0, np.where(is_all, 1.0, pictures - counts), 1.0 - delta)
    return np.where(is_all, 1.0, bound)


def count_certified(count_P: Int64Array, pictures: int, limit: float, delta: float) -> int:
    """Number of rejected hypotheses "the share is above `limit`", tested in the given order up to the first failure.

    With chance 1 - delta all rejected hypotheses are false, however many there are. No correction is needed: an error
    happens only when the first true hypothesis in the order is rejected. Sources: fixed-sequence testing in
    A. Angelopoulos et al., "Learn then Test" (2021), section 3; for early exits: M. Jazbec et al., "Fast yet Safe"
    (NeurIPS 2024).
    """
    fails_P = upper_bound(count_P, pictures, delta) > limit
    return int(fails_P.argmax()) if fails_P.any() else len(count_P)


def mean_upper_bound(lost: int, gained: int, pictures: int, delta: float) -> float:
    """Upper confidence bound of a mean of values 1 (`lost` times), -1 (`gained` times) and 0 (else), by betting.

    Bettors bet that the mean is below m. Each stakes a constant share s of its fortune, and a value x multiplies the
    fortune by 1 + s (m - x) / (1 - m) >= 0. If the mean is m or more, the expected mean fortune never grows, and it
    reaches 1 / delta with a chance of at most delta (Markov). The bound is the least m for which it reaches 1 / delta.
    Stakes are constant, so the order of the pictures does not matter. Source: I. Waudby-Smith, A. Ramdas, "Estimating
    means of bounded random variables by betting" (JRSS B, 2024): the capital process and its mixture over bets.
    """
    zeros = pictures - lost - gained

    def surplus(mean: float) -> float:
        # Rises with the mean, because (m - x) / (1 - m) does for each x.
        odds = STAKES / (1.0 - mean)
        logs = lost * np.log1p(-STAKES) + zeros * np.log1p(odds * mean) + gained * np.log1p(odds * (mean + 1.0))
        return float(np.logaddexp.reduce(logs) - math.log(len(STAKES)) + math.log(delta))

    highest = 1.0 - 1e-9
    observed = (lost - gained) / pictures
    if observed >= highest or surplus(highest) <= 0.0:
        return 1.0
    # At the observed mean no bettor has won: the bound is above it.
    return float(brentq(surplus, observed, highest, xtol=1e-9)) + 1e-9


def last_disagreement(predictions: ExitPredictions) -> Float32Array:
    """For each picture, the largest single threshold (the same at every early exit) with another answer than full
    depth's; -1 when no threshold has another answer.

    With threshold t a picture leaves at exit k when t is above all earlier confidences and at most exit k's.
    """
    early_NK = predictions.confidence_NK[:, :-1]
    before_NK = np.maximum.accumulate(early_NK, axis=1)[:, :-1]
    reachable_NK = np.ones(early_NK.shape, dtype=bool)
    reachable_NK[:, 1:] = early_NK[:, 1:] > before_NK
    wrong_NK = reachable_NK & predictions.differs_NK[:, :-1]
    last_N: Float32Array = np.where(wrong_NK, early_NK, np.float32(-1.0)).max(axis=1, initial=-1.0)
    return last_N


def pictures_needed(limit: float, delta: float, rate: float = 0.0) -> int | None:
    """Number of certifying pictures that prove a share of at most `limit` when `rate` is observed.

    None when no number does.
    """
    if rate >= limit:
        return None

    def enough(pictures: int) -> bool:
        return bool(upper_bound(math.ceil(rate * pictures), pictures, delta) <= limit)

    few, many = 0, 1
    while not enough(many):
        few, many = many, 2 * many
        if many > MOST_PICTURES:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many
