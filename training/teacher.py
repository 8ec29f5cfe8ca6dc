"""An external teacher: a trained bundle whose answers teach another network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from offramp.models.bundle import Bundle
from offramp.models.preprocess import normalize


@dataclass(frozen=True)
class ExternalTeacher:
    """A bundle that teaches with the calibrated logits of its deepest exit, the ensemble of all its exits.

    weight: its share (0..1) of the loss. temperature: of both softmaxes.
    """

    bundle: Bundle
    weight: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"the teacher's weight {self.weight} is out of range: give a share in [0, 1]")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"the teacher's temperature {self.temperature} is out of range: give one above 0")

    @torch.no_grad()
    def logits(self, images_BHWC: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> (B, classes) float32, its log-probabilities up to a constant in each row."""
        calibration, x_BCHW = self.bundle.calibration, normalize(images_BHWC, self.bundle.preprocessing)
        accumulated: Tensor | None = None
        for exit, logits_BC in enumerate(self.bundle.net(x_BCHW).logits, start=1):
            accumulated = calibration.accumulate(exit, accumulated, logits_BC)
        assert accumulated is not None
        return accumulated / calibration.temperatures[-1]


def external_teacher(
    bundle: Bundle,
    path: Path,
    input_size: int,
    labels: tuple[str, ...],
    device: torch.device,
    weight: float,
    temperature: float,
) -> ExternalTeacher:
    """The bundle, loaded from `path`, as a teacher. Raises ValueError when its input size or its classes differ."""
    if bundle.config.input_size != input_size:
        raise ValueError(
            f"the teacher {path} takes pictures of {bundle.config.input_size} pixels, the student {input_size}: "
            f"give --input-size {bundle.config.input_size}, or another teacher"
        )
    if bundle.labels != labels:
        raise ValueError(f"the teacher {path} knows other classes than the data set: train one on the same data set")
    bundle.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ExternalTeacher(bundle, weight, temperature)
