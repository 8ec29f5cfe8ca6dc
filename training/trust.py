"""From a network's logits on held-out pictures to all that a bundle may claim: calibration, thresholds, certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.certificate import Certificate
from models.config import ModelConfig
from models.cost import NetworkCost
from models.exit_policy import Calibration
from training.answers import Answers, Int64Array, divide, outcomes
from training.calibrate import calibrate
from training.certify import pictures_needed
from training.contracts import DELTA, PROMISES, Certifying, Shortfall, certify, spaced, untried_shortfall
from training.evaluate import ExitLogits, OperatingPoint, calibrated
from training.exits import ExitChoice, best_choice, judge_exits, why_kept
from training.search import FrontPoint, pareto_front, search
from training.stage_costs import StageCosts

# Part of the held-out pictures that fits and searches; the others prove. Over 150 draws of 5,000 answers of the bundled
# model, parts of 0.2 to 0.6 came to within 1.5 points of compute of one another at every promise, 0.3 and 0.4 being the
# cheapest. Of 1,000, those above 0.4 leave too few (598) to prove 0.5 % at all; below, the search fits noise.
SEARCH_SHARE = 0.4
# Accuracy (0..1) that the default threshold may lose against full depth, on the pictures searched.
TOLERANCE = 0.005
# Points of a front that a bundle tells of: disagreement rises by this factor from one to the next.
READABLE_STEP = 1.25


@dataclass(frozen=True)
class Wishes:
    """What calibration shall find. promises: disagreements (0..1) to certify. keep_exits: also those that do not pay.
    date: of today, ISO 8601."""

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
    """Shares as an option gives them, with commas between; each once, rising. Raises ValueError for what is none."""
    try:
        return tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise ValueError(f"disagreements {text!r} are not numbers: give shares such as 0.01,0.05") from None


@dataclass(frozen=True)
class Division:
    """Indices of the held-out pictures that fit and search, and of those that prove; the latter may be none."""

    search_M: Int64Array
    prove_M: Int64Array


def division(labels_N: Int64Array, num_exits: int, promises: Sequence[float]) -> Division:
    """SEARCH_SHARE of the pictures search; all of them where the others were too few to prove the weakest promise."""
    search_M, prove_M = divide(labels_N, SEARCH_SHARE)
    needed = pictures_needed(max(promises), DELTA)
    if num_exits == 1 or needed is None or len(prove_M) < needed:
        return Division(*divide(labels_N, 1.0))
    return Division(search_M, prove_M)


@dataclass(frozen=True)
class ExitVerdict:
    """Which exits to keep, 1-based, of a network.

    choices: how each choice of exits did on the pictures that search, all exits first; empty where none was judged.
    why_kept: why exits that do not pay stay; empty where they would not.
    """

    exits: tuple[int, ...]
    choices: tuple[ExitChoice, ...]
    why_kept: str

    @property
    def num_dropped(self) -> int:
        """How many exits go."""
        return len(self.choices[0].exits) - len(self.exits) if self.choices else 0


def judge(outputs: ExitLogits, cost: NetworkCost, config: ModelConfig, parts: Division, wishes: Wishes) -> ExitVerdict:
    """Judge every choice of exits, where there are pictures enough and exits can be left out."""
    everything = tuple(range(1, outputs.num_exits + 1))
    reason = why_kept(config, outputs.num_exits)
    if not reason and not len(parts.prove_M):
        reason = "too few pictures were held out to tell"
    if reason:
        return ExitVerdict(everything, (), reason)
    choices = judge_exits(outputs.subset(parts.search_M), cost)
    if wishes.keep_exits:
        return ExitVerdict(everything, choices, "all were asked for")
    return ExitVerdict(best_choice(choices, wishes.tolerance).exits, choices, "")


@dataclass(frozen=True)
class Trust:
    """What calibration found. fronts: the cheapest thresholds, for readers. certificate: None without certifying
    pictures or early exits. missed: promises that could not be proven."""

    calibration: Calibration
    point: OperatingPoint
    fronts: dict[str, Any]
    certificate: Certificate | None
    missed: tuple[Shortfall, ...]


def establish(
    outputs: ExitLogits,
    cost: NetworkCost,
    parts: Division,
    wishes: Wishes,
    proving: Callable[[Answers], Certifying],
    costs: StageCosts | None,
) -> Trust:
    """Fit and search on the one part of the pictures, prove on the other. proving: where the latter come from."""
    calibration, point = calibrate(outputs.subset(parts.search_M), cost, wishes.tolerance)
    answers = Answers.of(calibrated(outputs, calibration), outputs.labels_N)
    if outputs.num_exits == 1:
        return Trust(calibration, point, {}, None, ())
    searched = answers.subset(parts.search_M)
    grid = search(searched)
    front = pareto_front(grid, cost.sequential_multiply_adds)
    judged = answers.subset(parts.prove_M) if len(parts.prove_M) else searched
    fronts = {
        "pictures": len(judged),
        "by_multiply_adds": front_facts(front, len(searched), judged, cost, costs),
        "by_ms": front_facts(pareto_front(grid, costs.sequential_ms), len(searched), judged, cost, costs)
        if costs
        else [],
        "costs": asdict(costs) | {"sequential_ms": costs.sequential_ms} if costs else None,
    }
    if not len(parts.prove_M):
        certifiable = len(divide(answers.labels_N, SEARCH_SHARE)[1])
        missed = tuple(untried_shortfall(promise, certifiable, DELTA) for promise in wishes.promises)
        return Trust(calibration, point, fronts, None, missed)
    certificate, missed = certify(searched, front, proving(judged), cost.sequential_multiply_adds, wishes.promises)
    return Trust(calibration, point, fronts, certificate, missed)


def front_facts(
    front: Sequence[FrontPoint], searched: int, judged: Answers, cost: NetworkCost, costs: StageCosts | None
) -> list[dict[str, Any]]:
    """A front for readers: thresholds as the search found them, figures of the pictures `judged`."""
    points = spaced(front, searched, 0.0, 1.0, READABLE_STEP)
    full_accuracy = float(judged.right_NK[:, -1].mean())
    return [
        {
            "thresholds": point.thresholds,
            "disagreement": found.disagreed / len(judged),
            "accuracy": full_accuracy + (found.gained - found.lost) / len(judged),
            "mean_multiply_adds": (mean := found.mean_cost(cost.sequential_multiply_adds)),
            "compute": mean / cost.sequential_multiply_adds[-1],
            "mean_ms": found.mean_cost(costs.sequential_ms) if costs else None,
            "exit_mix": found.exit_mix,
        }
        for point, found in zip(points, outcomes(judged, [point.thresholds for point in points]), strict=True)
    ]
