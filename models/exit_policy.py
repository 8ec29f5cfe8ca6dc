"""Which picture leaves at which exit: calibration, ensemble and thresholds, for evaluation and engine alike.

    a_k = w_k * a_{k-1} + z_k            accumulated logits; w_k: ensemble weight, w_1 = 0
    p_k = softmax(a_k / temperature_k)   calibrated probabilities; confidence is their maximum

A picture answers at the first exit whose confidence reaches that exit's limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NEVER_LIMIT = math.inf
ALWAYS_LIMIT = -math.inf


@dataclass(frozen=True)
class Calibration:
    """Numbers that turn each exit's logits into probabilities; fitted on held-out pictures, stored in the bundle.

    temperatures: one per exit, above 0. ensemble_weights: one per exit, the weight (>= 0) of the earlier exits' logits
    in the sum with this exit's: an ensemble of the visited exits at no cost. The first is 0; 0 is no ensemble. Bundles
    name them "carries".
    """

    temperatures: tuple[float, ...]
    ensemble_weights: tuple[float, ...]

    def __post_init__(self) -> None:
        weights = self.ensemble_weights
        if len(self.temperatures) != len(weights) or not self.temperatures:
            raise ValueError(
                f"{len(self.temperatures)} temperatures and {len(weights)} carries: give one of each per exit"
            )
        if not all(0.0 < temperature < math.inf for temperature in self.temperatures):
            raise ValueError(f"temperatures {self.temperatures} are out of range: give finite numbers above 0")
        if not all(0.0 <= weight < math.inf for weight in weights) or weights[0] != 0.0:
            raise ValueError(f"carries {weights} are out of range: give 0 first, then finite numbers of 0 or more")

    @classmethod
    def neutral(cls, num_exits: int) -> Calibration:
        """Plain softmax at every exit, no ensemble."""
        return cls((1.0,) * num_exits, (0.0,) * num_exits)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the bundle's description."""
        return {"temperatures": self.temperatures, "carries": self.ensemble_weights}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The calibration of `as_json`'s values. Raises TypeError, KeyError or ValueError for any others."""
        others = {name: value for name, value in values.items() if name != "carries"}
        return cls(**others, ensemble_weights=values["carries"])

    def accumulate(self, exit: int, accumulated_BC: Tensor | None, logits_BC: Tensor) -> Tensor:
        """a_k of exit 1..K from a_{k-1} (None at exit 1) and this exit's logits; float32."""
        logits_BC = logits_BC.float()
        weight = self.ensemble_weights[exit - 1]
        return logits_BC if accumulated_BC is None or not weight else weight * accumulated_BC + logits_BC

    def probabilities(self, exit: int, accumulated_BC: Tensor) -> Tensor:
        """Calibrated class probabilities (B, classes) of exit 1..K; float32."""
        return torch.softmax(accumulated_BC / self.temperatures[exit - 1], dim=1)


class ExitReason(StrEnum):
    """Why a picture left at its exit."""

    CONFIDENT = "confident"
    FINAL = "final"
    MAX_EXIT = "max_exit"
    DEADLINE = "deadline"
    BROWNOUT = "brownout"


@dataclass(frozen=True)
class ExitRule:
    """When the pictures of a request leave: thresholds, and bounds on depth.

    thresholds: one per early exit, K - 1 numbers in [0, 1]; at 0 all leave, at 1 none.
    min_exit, max_exit: bounds on depth, 1 <= min_exit <= max_exit <= K. max_exit 0 stands for K.
    """

    thresholds: tuple[float, ...]
    min_exit: int = 1
    max_exit: int = 0

    def __post_init__(self) -> None:
        num_exits = len(self.thresholds) + 1
        if not self.max_exit:
            object.__setattr__(self, "max_exit", num_exits)
        if not all(0.0 <= threshold <= 1.0 for threshold in self.thresholds):
            raise ValueError(f"thresholds {list(self.thresholds)} are out of range: give numbers in [0, 1]")
        if not 1 <= self.min_exit <= self.max_exit <= num_exits:
            raise ValueError(
                f"min_exit {self.min_exit} and max_exit {self.max_exit} are out of range: "
                f"1 <= min_exit <= max_exit <= {num_exits} must hold"
            )

    @cached_property
    def limits(self) -> npt.NDArray[np.float32]:
        """One limit per exit: a picture leaves where confidence >= limit."""
        limits = [
            ALWAYS_LIMIT
            if exit >= self.max_exit
            else NEVER_LIMIT
            if exit < self.min_exit or threshold >= 1.0
            else threshold
            for exit, threshold in enumerate((*self.thresholds, 0.0), start=1)
        ]
        return np.asarray(limits, dtype=np.float32)

    @classmethod
    def uniform(cls, threshold: float, num_exits: int, min_exit: int = 1, max_exit: int = 0) -> ExitRule:
        """The same threshold at every early exit."""
        return cls((threshold,) * (num_exits - 1), min_exit, max_exit)

    def reason(self, exit: int, confidence: float) -> ExitReason:
        """Why a picture of this confidence left at this exit."""
        if exit == len(self.limits):
            return ExitReason.FINAL
        threshold = self.thresholds[exit - 1]
        # In float32, as in `may_leave`: a threshold such as 0.7 is a little less there.
        reached = threshold < 1.0 and np.float32(confidence) >= np.float32(threshold)
        return ExitReason.CONFIDENT if exit < self.max_exit or reached else ExitReason.MAX_EXIT


def may_leave(confidence: npt.NDArray[np.float32], limits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The exit decision for each element: confidence >= limit. NaN leaves only at `max_exit`."""
    decision: npt.NDArray[np.bool_] = (confidence >= limits) | (limits == ALWAYS_LIMIT)
    return decision


def exits_taken(confidence_NK: npt.NDArray[np.float32], rule: ExitRule) -> npt.NDArray[np.int64]:
    """The exit (1..K) at which each of N pictures leaves, from its confidence at every exit."""
    first_N: npt.NDArray[np.int64] = may_leave(confidence_NK, rule.limits).argmax(axis=1) + 1
    return first_N


def ranking(probabilities_C: npt.NDArray[np.float32], top_k: int) -> list[tuple[int, float]]:
    """The `top_k` most probable classes as (class id, probability), the best first, equals by rising id."""
    order = np.argsort(-probabilities_C, kind="stable")[:top_k]
    return [(int(class_id), float(probabilities_C[class_id])) for class_id in order]
