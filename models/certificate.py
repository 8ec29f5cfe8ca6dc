"""Certificate: proven promises about a bundle's early answers, and the thresholds that keep them.

A promise bounds disagreement: the share of pictures whose early answer names another class than full depth. The proof
uses pictures that neither weights nor calibration nor the search for thresholds have seen, and holds for traffic like
them: see `training/certify/statistics.py`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

from offramp.models.exit_policy import ExitRule


@dataclass(frozen=True)
class CertifiedPoint:
    """Thresholds and the promise that they keep. Shares are 0..1.

    max_disagreement: the promise. thresholds: K - 1, one per early exit; at 1 no picture leaves.
    observed: disagreement on the certifying pictures.
    bound: the upper confidence bound of disagreement for these thresholds alone, at most the promise. It is informative
    only: these thresholds were picked on the same pictures.
    accuracy_drop, accuracy_drop_bound: accuracy of full depth minus accuracy of the early answers, as observed and its
    upper confidence bound; negative where early answers are better.
    compute: mean multiply-adds relative to full depth. exit_mix: the share of certifying pictures at each exit.
    """

    max_disagreement: float
    thresholds: tuple[float, ...]
    observed: float
    bound: float
    accuracy_drop: float
    accuracy_drop_bound: float
    compute: float
    exit_mix: tuple[float, ...]

    def __post_init__(self) -> None:
        ExitRule(self.thresholds)
        if len(self.exit_mix) != len(self.thresholds) + 1:
            raise ValueError(
                f"exit_mix has {len(self.exit_mix)} exits, thresholds have {len(self.thresholds) + 1}: "
                "give one more share than thresholds"
            )
        if not 0.0 <= self.observed <= self.bound <= self.max_disagreement <= 1.0:
            raise ValueError(
                f"observed {self.observed}, bound {self.bound} and max_disagreement {self.max_disagreement} are out of "
                "range: 0 <= observed <= bound <= max_disagreement <= 1 must hold"
            )


@dataclass(frozen=True)
class ThresholdBound:
    """The upper confidence bound of disagreement for this threshold, or any larger one, at every early exit."""

    threshold: float
    bound: float


@dataclass(frozen=True)
class Certificate:
    """What calibration proved about a bundle.

    delta: the chance that a proof is wrong, because its pictures are a random sample. It is for each of
    `points` alone, and for all bounds of `any_threshold` together.
    pictures: the number of certifying pictures. data: their source in words. fingerprint: SHA-256 of these pictures and
    their labels. date: the day of the calibration, ISO 8601.
    points: in rising order of promise; each is cheaper than the one before. any_threshold: rising thresholds from 0,
    with falling bounds.
    """

    delta: float
    pictures: int
    data: str
    fingerprint: str
    date: str
    points: tuple[CertifiedPoint, ...]
    any_threshold: tuple[ThresholdBound, ...]

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < 1.0 or self.pictures < 1:
            raise ValueError(
                f"delta {self.delta} or pictures {self.pictures} out of range: 0 < delta < 1, 1 <= pictures"
            )
        if any(a.max_disagreement >= b.max_disagreement for a, b in pairwise(self.points)):
            raise ValueError("points of a certificate rise in max_disagreement: each once, the strictest first")
        if len({len(point.thresholds) for point in self.points}) > 1:
            raise ValueError("points of a certificate are of one network: as many thresholds in each")
        if not all(0.0 <= entry.threshold < 1.0 and 0.0 <= entry.bound <= 1.0 for entry in self.any_threshold):
            raise ValueError("any_threshold is out of range: thresholds in [0, 1), bounds in [0, 1]")
        if any(a.threshold >= b.threshold or a.bound < b.bound for a, b in pairwise(self.any_threshold)):
            raise ValueError("any_threshold rises in threshold and falls in bound")

    @cached_property
    def calibration_id(self) -> str:
        """The id of this calibration in answers: its date, and the first digits of a hash of the certificate."""
        content = json.dumps(self.as_json(), sort_keys=True).encode()
        return f"{self.date}-{hashlib.sha256(content).hexdigest()[:8]}"

    @property
    def promises(self) -> tuple[float, ...]:
        """The certified disagreements, the strictest first."""
        return tuple(point.max_disagreement for point in self.points)

    def point_for(self, max_disagreement: float) -> CertifiedPoint | None:
        """The cheapest point whose promise is at most `max_disagreement`; None if every promise is above it."""
        at = bisect_right(self.promises, max_disagreement)
        return self.points[at - 1] if at else None

    def bound_at(self, threshold: float) -> float:
        """The bound of disagreement for one threshold (0..1) at every early exit; 1 without a proof."""
        if threshold >= 1.0:
            return 0.0
        at = bisect_right([entry.threshold for entry in self.any_threshold], threshold)
        return self.any_threshold[at - 1].bound if at else 1.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the bundle's description."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The certificate of `as_json`'s values. Raises TypeError, KeyError or ValueError for any others."""
        points = tuple(
            CertifiedPoint(**{**point, "thresholds": tuple(point["thresholds"]), "exit_mix": tuple(point["exit_mix"])})
            for point in values["points"]
        )
        bounds = tuple(ThresholdBound(**entry) for entry in values["any_threshold"])
        plain = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**plain, "points": points, "any_threshold": bounds})
