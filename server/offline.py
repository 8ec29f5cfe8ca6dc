"""One picture, one answer, without a server: the reference runner, and the server's exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.models.bundle import Bundle
from offramp.models.exit_policy import ExitReason, ExitRule, may_leave, ranking
from offramp.server.engine.errors import InferenceFailed
from offramp.server.engine.runners.runner import Runner

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class OfflinePrediction:
    """Where the picture left, why, and its classes by falling probability: (class id, probability)."""

    exit: int
    reason: ExitReason
    ranking: list[tuple[int, float]]


def certified_thresholds(bundle: Bundle, max_disagreement: float) -> tuple[float, ...]:
    """Thresholds of the cheapest point that keeps this promise. Raises ValueError if the bundle certifies none."""
    point = bundle.certificate.point_for(max_disagreement) if bundle.certificate else None
    if point is None:
        certified = bundle.certificate.promises if bundle.certificate else ()
        raise ValueError(
            f"max_disagreement {max_disagreement} cannot be certified: {bundle.name} certifies "
            f"{', '.join(map(str, certified)) or 'nothing; run `offramp calibrate`, or give a threshold'}"
        )
    return point.thresholds


def predict(runner: Runner, picture_HWC: Picture, rule: ExitRule) -> OfflinePrediction:
    """What the server answers. Raises InferenceFailed as `first_exit` does."""
    exit, probabilities_C = first_exit(runner, picture_HWC, rule)
    reason = rule.reason(exit, float(probabilities_C.max()))
    return OfflinePrediction(exit, reason, ranking(probabilities_C, len(probabilities_C)))


def first_exit(runner: Runner, picture_HWC: Picture, rule: ExitRule) -> tuple[int, npt.NDArray[np.float32]]:
    """Run stages until the picture's confidence passes its limit; later stages are not run.

    The exit and its probabilities. Raises InferenceFailed, as the engine delivers it, when a stage gives no finite
    probabilities.
    """
    states: Sequence[object] = [picture_HWC]
    for exit in range(1, runner.num_stages + 1):
        output = runner.run(exit, states)
        probabilities_C = output.probabilities_BC[0]
        confidence = probabilities_C.max()
        if not np.isfinite(confidence):
            raise InferenceFailed(f"stage {exit} gave no finite probabilities for this picture")
        if may_leave(confidence, rule.limits[exit - 1]):
            break
        states = output.keep([0])
    return exit, probabilities_C


def answer_line(facts: Mapping[str, Any], top: Sequence[tuple[str, float]]) -> str:
    """An answer as a line of text. top: labels and probabilities of the likeliest classes."""
    classes = ", ".join(f"{label} {probability:.1%}" for label, probability in top)
    return (
        f"{facts['image']}: {classes}; exit {facts['exit']} of {facts['exits']} ({facts['exit_reason']}), "
        f"{facts['compute']:.0%} of the full network's cost"
    )
