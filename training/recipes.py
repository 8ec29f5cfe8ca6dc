"""Recipes: length, learning rate and augmentation of a training, as plain frozen values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from offramp.training.augment.augmentation import Augmentation
from offramp.training.augment.mixing import Mixing

NO_MIXING = Mixing()


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    epochs: length of the run. batch_size: pictures of a step and process, computed in `accumulate` parts.
    learning_rate: the peak, of momentum SGD, with Nesterov momentum if `nesterov`.
    optimizer: "sgd", or "muon": orthogonalised momentum (peak `muon_rate`, decay `muon_decay`) for the kernels
        of convolutions without groups, SGD for all other parameters.
    schedule: "steps" divides by 10 at each milestone (fractions of the run); "cosine" warms up linearly over
        `warmup` (fraction of the run), then falls to 0 along a half cosine.
    decay_norms: whether weight decay applies to batch-norm parameters and biases too.
    backbone_share: the first share of the run, in which the deepest exit alone is trained.
    mixing, smoothing: mixup and CutMix of whole batches; the share of every label that is spread over all classes.
    ema: decay per step of the averaged weights that the bundle gets; 0 keeps the weights as trained.
    """

    name: str
    epochs: int
    augmentation: Augmentation
    mixing: Mixing = NO_MIXING
    smoothing: float = 0.0
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["sgd", "muon"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    muon_rate: float = 0.02
    muon_decay: float = 5e-3
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = (83 / 250, 166 / 250, 240 / 250)
    warmup: float = 0.0
    backbone_share: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        parts = self.batch_size // 2
        reason = f"so that each part of a batch of {self.batch_size} has at least 2 pictures"
        checks = (
            ("epochs", self.epochs >= 1, "out of range: train for at least 1 epoch"),
            ("batch_size", self.batch_size >= 2, "out of range: batch norm needs at least 2 pictures"),
            ("learning_rate", 0.0 < self.learning_rate <= 10.0, "out of range: give a number in (0, 10]"),
            ("accumulate", 1 <= self.accumulate <= parts, f"out of range: give 1 to {parts}, {reason}"),
            ("smoothing", 0.0 <= self.smoothing < 1.0, "out of range: give a share in [0, 1), such as 0.1"),
            ("optimizer", self.optimizer in ("sgd", "muon"), "unknown: choose sgd or muon"),
            ("muon_rate", 0.0 < self.muon_rate <= 1.0, "out of range: give a number in (0, 1]"),
            ("backbone_share", 0.0 <= self.backbone_share < 1.0, "out of range: give a share of the run in [0, 1)"),
            ("ema", 0.0 <= self.ema < 1.0, "out of range: give a decay in [0, 1), such as 0.999"),
            ("warmup", 0.0 <= self.warmup < 1.0, "out of range: give a share of the run in [0, 1)"),
            ("schedule", self.schedule in ("steps", "cosine"), "unknown: choose 'steps' or 'cosine'"),
        )
        for name, valid, fault in checks:
            if not valid:
                raise ValueError(f"{name} {getattr(self, name)!r} is {fault}")

    def rate_at(self, progress: float) -> float:
        """The learning rate after a share `progress` (0..1) of the run, as a share of the peak."""
        if self.schedule == "steps":
            return 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        if progress < self.warmup:
            return progress / self.warmup
        share = (progress - self.warmup) / (1.0 - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * share))


def journal(epochs: int = 250) -> Recipe:
    """The journal paper's recipe: 250 epochs, rate / 10 at 83, 166 and 240; crop, flip, AutoAugment, Cutout 16."""
    return Recipe("journal", epochs, Augmentation(policy="auto", cutout=16))


def short(epochs: int = 45) -> Recipe:
    """The best recipe for CPU hours: warm-up and cosine, Nesterov, and augmentation for small networks."""
    augmentation = Augmentation(cutout=8)
    return Recipe("short", epochs, augmentation, nesterov=True, decay_norms=False, schedule="cosine", warmup=0.1)


def fast(epochs: int = 30) -> Recipe:
    """The recipe `short` with Muon for convolutions, which learns faster in short runs (docs/decisions.md)."""
    return replace(short(epochs), name="fast", optimizer="muon")


def imagenet(epochs: int = 90) -> Recipe:
    """For millions of photographs: random resized crops, 5 % warm-up and cosine, label smoothing; 256 a step."""
    return Recipe(
        "imagenet",
        epochs,
        Augmentation(crop_padding=0, resized_crop=(0.25, 1.0)),
        smoothing=0.1,
        batch_size=256,
        nesterov=True,
        weight_decay=1e-4,
        decay_norms=False,
        schedule="cosine",
        warmup=0.05,
    )


RECIPES: dict[str, Callable[..., Recipe]] = {"journal": journal, "short": short, "fast": fast, "imagenet": imagenet}
