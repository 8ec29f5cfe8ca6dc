"""TrainingRecord: how a bundle was made, as its description tells it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from offramp.training.certify.held_out import HeldOut
from offramp.training.methods import Method
from offramp.training.recipes import Recipe


@dataclass(frozen=True)
class TrainingRecord:
    """How a bundle was made.

    data: the data set and its split, in words. train_pictures: number of pictures that trained the weights.
    held_out: the pictures held out of train. precision: number type of training. hours: time spent in training.
    command: the command that makes the bundle anew. teacher, start_from: other bundles that the run learnt from.
    processes: number of processes, None for one.
    """

    data: str
    train_pictures: int
    held_out: HeldOut
    method: Method
    recipe: Recipe
    seed: int
    precision: str
    hours: float
    hardware: str
    command: str
    teacher: str | None = None
    start_from: str | None = None
    processes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values for the bundle's description, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}
