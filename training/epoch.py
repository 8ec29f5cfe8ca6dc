"""Reports of an epoch: while it runs, at a checkpoint, and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """The progress of an epoch, reported after every step."""

    epoch: int
    step: int
    steps: int
    pictures: int
    seconds: float


@dataclass(frozen=True)
class EpochSoFar:
    """An epoch so far: steps, pictures, the sum of their losses (on the device while it runs), seconds."""

    steps: int = 0
    pictures: int = 0
    loss: float | Tensor = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch (1-based): mean training loss, validation accuracy per exit (0..1), speed."""

    epoch: int
    epochs: int
    learning_rate: float
    loss: float
    accuracy: tuple[float, ...]
    seconds: float
    images_per_s: float
