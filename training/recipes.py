"""Recipes: how long, how fast and on which variations of the pictures a network is trained, as plain frozen values."""

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

    epochs, batch_size: length; batch_size pictures a step and process, in `accumulate` parts where that is above 1.
    learning_rate: the peak; momentum SGD with Nesterov where `nesterov`.
    optimizer: "sgd", or "muon": orthogonalised momentum (peak `muon_rate`, decay `muon_decay`) for the kernels
        of convolutions without groups, SGD for all else.
    schedule: "steps" divides by 10 at each milestone (fractions of the run); "cosine" warms up linearly over
        `warmup` (fraction of the run), then falls to 0 along a half cosine.
    decay_norms: whether weight decay also pulls on batch-norm parameters and biases.
    backbone_share: the share of the run, from its beginning, in which the deepest exit alone is trained.
    mixing, smoothing: mixup and CutMix of whole batches; the share of every label that is spread over all classes.
    ema: decay per step of the averaged weights that are evaluated and kept; 0 keeps the weights as trained.
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
        if self.epochs < 1:
            raise ValueError(f"epochs {self.epochs} is out of range: train for at least 1 epoch")
        if self.batch_size < 2:
            raise ValueError(f"batch_size {self.batch_size} is out of range: batch norm needs at least 2 pictures")
        if not 0.0 < self.learning_rate <= 10.0:
            raise ValueError(f"learning_rate {self.learning_rate} is out of range: give a number in (0, 10]")
        if not 1 <= self.accumulate <= self.batch_size // 2:
            raise ValueError(
                f"accumulate {self.accumulate} is out of range: give 1 to {self.batch_size // 2}, so that each part of "
                f"a batch of {self.batch_size} has at least 2 pictures"
            )
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing {self.smoothing} is out of range: give a share in [0, 1), such as 0.1")
        if self.optimizer not in ("sgd", "muon"):
            raise ValueError(f"optimizer {self.optimizer!r} is unknown: choose sgd or muon")
        if not 0.0 < self.muon_rate <= 1.0:
            raise ValueError(f"muon_rate {self.muon_rate} is out of range: give a number in (0, 1]")
        if not 0.0 <= self.backbone_share < 1.0:
            raise ValueError(f"backbone_share {self.backbone_share} is out of range: give a share of the run in [0, 1)")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema {self.ema} is out of range: give a decay in [0, 1), such as 0.999")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup {self.warmup} is out of range: give a share of the run in [0, 1)")
        if self.schedule not in ("steps", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} is unknown: choose 'steps' or 'cosine'")

    def rate_at(self, progress: float) -> float:
        """The learning rate when `progress` (0..1) of the run is done, as a share of the peak."""
        if self.schedule == "steps":
            return 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        if progress < self.warmup:
            return progress / self.warmup
        fallen = (progress - self.warmup) / (1.0 - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * fallen))


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


def fast(epochs: int = 30) -> Recipe:
    """As `short`, with Muon for the convolutions, which learns faster in short runs (docs/decisions.md)."""
    return replace(short(epochs), name="fast", optimizer="muon")


def imagenet(epochs: int = 90) -> Recipe:
    """Of photographs by the million: random resized crops, 5 % warm-up and cosine, label smoothing; 256 a step."""
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


RECIPES: dict[str, Callable[..., Recipe]] = {
    "journal": journal,
    "short": short,
    "fast": fast,
    "imagenet": imagenet,
}
