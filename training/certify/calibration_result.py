"""All claims of a bundle, from a network's logits on held-out pictures: calibration, thresholds, certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from offramp.models.certificate import Certificate
from offramp.models.config import ModelConfig
from offramp.models.cost import NetworkCost
from offramp.models.exit_policy import Calibration
from offramp.training.certify.calibrate import calibrate
from offramp.training.certify.exits import ExitChoice, best_choice, compare_exits, why_not_compared
from offramp.training.certify.promises import DELTA, PROMISES, ProvingSet, Shortfall, certify, shortfall, spaced
from offramp.training.certify.search import FrontPoint, pareto_front, search
from offramp.training.certify.stage_costs import StageCosts
from offramp.training.certify.statistics import pictures_needed
from offramp.training.evaluate.evaluation import ExitLogits, OperatingPoint, predictions_of
from offramp.training.evaluate.predictions import ExitPredictions, Int64Array, count_at_thresholds, divide

# Share of the held-out pictures that fit and search; the others certify. Over 150 draws of 5,000 predictions of the
# embedded model, shares of 0.2 to 0.6 gave compute within 1.5 points at every promise; 0.3 and 0.4 were the cheapest.
# With 1,000 pictures, a share above 0.4 leaves fewer than the 598 that 0.5 % needs, and a smaller share fits noise.
SEARCH_SHARE = 0.4
# Accuracy (0..1) that the default threshold may lose against full depth, on the pictures searched.
TOLERANCE = 0.005
# Spacing of the points of a Pareto front in a bundle: disagreement rises by this factor from point to point.
READABLE_STEP = 1.25


@dataclass(frozen=True)
class CalibrationOptions:
    """Aims of a calibration.

    date: today's, ISO 8601. tolerance: accuracy (0..1) that the default threshold may lose. promises: disagreements
    (0..1) to certify. keep_exits: keep exits that do not pay.
    Raises ValueError for a value out of range.
    """

    date: str
    tolerance: float = TOLERANCE
    promises: tuple[float, ...] = PROMISES
    keep_exits: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.tolerance <= 1.0:
            raise ValueError(f"tolerance {self.tolerance} is out of range: give a share of accuracy in [0, 1]")
        if not self.promises or not all(0.0 < promise < 1.0 for promise in self.promises):
            raise ValueError(
                f"disagreements {list(self.promises)} are out of range: give shares above 0 and below 1, such as 0.01"
            )


def shares(text: str) -> tuple[float, ...]:
    """Shares separated by commas, rising, without repetition. Raises ValueError for anything but numbers."""
    try:
        return tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise ValueError(f"disagreements {text!r} are not numbers: give shares such as 0.01,0.05") from None


@dataclass(frozen=True)
class Division:
    """Indices of the held-out pictures: M that fit and search, and the others, maybe none, that certify."""

    search_M: Int64Array
    prove_M: Int64Array


def division(labels_N: Int64Array, num_exits: int, promises: Sequence[float]) -> Division:
    """SEARCH_SHARE of the pictures search. All search when the others are too few to prove the weakest promise."""
    search_M, prove_M = divide(labels_N, SEARCH_SHARE)
    needed = pictures_needed(max(promises), DELTA)
    if num_exits == 1 or needed is None or len(prove_M) < needed:
        return Division(*divide(labels_N, 1.0))
    return Division(search_M, prove_M)


@dataclass(frozen=True)
class ExitSelection:
    """The exits that a network keeps, 1-based.

    choices: every choice of exits with its figures on the searched pictures, all exits first; empty without a
    comparison. why_kept: why exits that do not pay stay; empty when they do not stay.
    """

    exits: tuple[int, ...]
    choices: tuple[ExitChoice, ...]
    why_kept: str

    @property
    def num_dropped(self) -> int:
        """Number of exits that are left out."""
        return len(self.choices[0].exits) - len(self.exits) if self.choices else 0


def choose_exits(
    outputs: ExitLogits, cost: NetworkCost, config: ModelConfig, parts: Division, options: CalibrationOptions
) -> ExitSelection:
    """Compare every choice of exits and select the best one. All exits stay when a comparison is not possible."""
    all_exits = tuple(range(1, outputs.num_exits + 1))
    reason = why_not_compared(config, outputs.num_exits)
    if not reason and not len(parts.prove_M):
        reason = "too few pictures were held out to tell"
    if reason:
        return ExitSelection(all_exits, (), reason)
    choices = compare_exits(outputs.subset(parts.search_M), cost)
    if options.keep_exits:
        return ExitSelection(all_exits, choices, "all were asked for")
    return ExitSelection(best_choice(choices, options.tolerance).exits, choices, "")


@dataclass(frozen=True)
class CalibrationFacts:
    """The pictures of a calibration: data in words, their number, how many searched and certified; the tolerance."""

    data: str
    pictures: int
    searched: int
    certified: int
    tolerance: float


@dataclass(frozen=True)
class ReadablePoint:
    """A point of a front, for readers: thresholds of the search, and figures of pictures that did not search.

    Shares are 0..1. mean_ms is None without measured costs.
    """

    thresholds: tuple[float, ...]
    disagreement: float
    accuracy: float
    mean_multiply_adds: float
    compute: float
    mean_ms: float | None
    exit_mix: tuple[float, ...]


@dataclass(frozen=True)
class Fronts:
    """The cheapest thresholds for each disagreement, for readers, by multiply-adds and by milliseconds.

    pictures: number of pictures of the figures.
    """

    pictures: int
    by_multiply_adds: tuple[ReadablePoint, ...]
    by_ms: tuple[ReadablePoint, ...]
    costs: StageCosts | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for the bundle's description."""
        costs = asdict(self.costs) | {"sequential_ms": self.costs.sequential_ms} if self.costs else None
        return asdict(self) | {"costs": costs}


@dataclass(frozen=True)
class CalibrationResult:
    """The result of a calibration.

    fronts: None with one exit. certificate: None without certifying pictures or early exits. missed: promises that are
    not proven.
    """

    calibration: Calibration
    point: OperatingPoint
    facts: CalibrationFacts
    fronts: Fronts | None = None
    certificate: Certificate | None = None
    missed: tuple[Shortfall, ...] = ()


def calibrate_and_certify(
    outputs: ExitLogits,
    cost: NetworkCost,
    parts: Division,
    options: CalibrationOptions,
    costs: StageCosts | None,
    data: str,
    fingerprint: str,
) -> CalibrationResult:
    """Fit and search on one part of the pictures, certify on the other.

    data: where the pictures come from, in words. fingerprint: SHA-256 of the certifying pictures and their labels.
    """
    calibration, point = calibrate(outputs.subset(parts.search_M), cost, options.tolerance)
    predictions = predictions_of(outputs, calibration)
    facts = CalibrationFacts(data, len(predictions), len(parts.search_M), len(parts.prove_M), options.tolerance)
    if outputs.num_exits == 1:
        return CalibrationResult(calibration, point, facts)
    searched = predictions.subset(parts.search_M)
    grid = search(searched)
    front = pareto_front(grid, cost.sequential_multiply_adds)
    front_by_ms = pareto_front(grid, costs.sequential_ms) if costs else ()
    unsearched = predictions.subset(parts.prove_M) if len(parts.prove_M) else searched
    fronts = Fronts(
        pictures=len(unsearched),
        by_multiply_adds=_readable(front, len(searched), unsearched, cost, costs),
        by_ms=_readable(front_by_ms, len(searched), unsearched, cost, costs),
        costs=costs,
    )
    if not len(parts.prove_M):
        certifiable = len(divide(predictions.labels_N, SEARCH_SHARE)[1])
        missed = tuple(shortfall(promise, certifiable, DELTA) for promise in options.promises)
        return CalibrationResult(calibration, point, facts, fronts, missed=missed)
    proving = ProvingSet(unsearched, data, fingerprint, options.date)
    certificate, missed = certify(searched, front, proving, cost.sequential_multiply_adds, options.promises)
    return CalibrationResult(calibration, point, facts, fronts, certificate, missed)


def _readable(
    front: Sequence[FrontPoint], searched: int, unsearched: ExitPredictions, cost: NetworkCost, costs: StageCosts | None
) -> tuple[ReadablePoint, ...]:
    points = spaced(front, searched, 0.0, 1.0, READABLE_STEP)
    pictures = len(unsearched)
    readable = []
    for point, counts in zip(points, count_at_thresholds(unsearched, [p.thresholds for p in points]), strict=True):
        mean = counts.mean_cost(cost.sequential_multiply_adds)
        readable.append(
            ReadablePoint(
                thresholds=point.thresholds,
                disagreement=counts.disagreed / pictures,
                accuracy=unsearched.full_accuracy + (counts.gained - counts.lost) / pictures,
                mean_multiply_adds=mean,
                compute=mean / cost.sequential_multiply_adds[-1],
                mean_ms=counts.mean_cost(costs.sequential_ms) if costs else None,
                exit_mix=counts.exit_mix,
            )
        )
    return tuple(readable)
