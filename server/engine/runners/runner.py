"""The protocol every runner keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class StepOutput:
    """What one step gives back.

    probabilities_BC: calibrated, float32, on the host. states: per sample, the input of the next stage; opaque to
    the engine, only materialised for the samples it asks for, and sharing no memory with their batch-mates'.
    """

    probabilities_BC: npt.NDArray[np.float32]
    states: Sequence[Any]


class Runner(Protocol):
    """Runs one stage over one batch on one device; used by the engine's thread alone."""

    @property
    def num_stages(self) -> int:
        """K."""
        ...

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Stage 1..K over a batch: uint8 (H, W, 3) pictures for stage 1, earlier `states` after that."""
        ...

    def warm_up(self, max_batch_size: int) -> None:
        """Run everything once, so that the first request is no slower than the next."""
        ...
