"""Recipes: everything that decides a training run but the network and the data, as plain frozen values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from training.augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    epochs, batch_size: length; batch_size pictures a step.
    learning_rate: the peak; momentum SGD with Nesterov where `nesterov`.
    schedule: "steps" divides by 10 at each milestone (fractions of the run); "cosine" warms up linearly over
        `warmup` (fraction of the run), then falls to 0 along a half cosine.
    decay_norms: whether weight decay also pulls on batch-norm parameters and biases.
    temperature, alpha, beta: of `self_distillation_loss`; alpha = beta = 0 is deep supervision.
    feature_exits: the exits whose embedding is pulled to the deepest one's.
    """

    name: str
    epochs: int
    augmentation: Augmentation
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = (83 / 250, 166 / 250, 240 / 250)
    warmup: float = 0.0
    temperature: float = 3.0
    alpha: float = 0.3
    beta: float = 0.03
    feature_exits: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs {self.epochs} is out of range: train for at least 1 epoch")
        if self.batch_size < 2:
            raise ValueError(f"batch_size {self.batch_size} is out of range: batch norm needs at least 2 pictures")
        if not 0.0 < self.learning_rate <= 10.0:
            raise ValueError(f"learning_rate {self.learning_rate} is out of range: give a number in (0, 10]")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha {self.alpha} is out of range: give a number in [0, 1]")
        if not 0.0 <= self.beta < math.inf:
            raise ValueError(f"beta {self.beta} is out of range: give a finite number of 0 or more")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is out of range: give a finite number above 0")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup {self.warmup} is out of range: give a share of the run in [0, 1)")
        if self.schedule not in ("steps", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} is unknown: choose 'steps' or 'cosine'")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when `progress` (0..1) of the run is done."""
        if self.schedule == "steps":
            return self.learning_rate * 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        fallen = (progress - self.warmup) / (1.0 - self.warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * fallen))


def journal(epochs: int = 250) -> Recipe:
    """The journal paper's: 250 epochs, divided by 10 at 83, 166 and 240; crop, flip, AutoAugment, Cutout 16."""
    return Recipe("journal", epochs, Augmentation(policy="auto", cutout=16))


def short(epochs: int = 45) -> Recipe:
    """The best that CPU hours buy: one warm-up and cosine, Nesterov, and augmentation a small network can follow."""
    return Recipe(
        "short",
        epochs,
        Augmentation(cutout=8),
        nesterov=True,
        decay_norms=False,
        schedule="cosine",
        warmup=0.1,
    )


RECIPES: dict[str, Callable[..., Recipe]] = {"journal": journal, "short": short}
