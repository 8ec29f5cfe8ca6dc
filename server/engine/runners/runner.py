"""The protocol of all runners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class StepOutput:
    """The result of one step.

    probabilities_BC: calibrated, float32, on the host. keep: called at most once, before the next step, with the rows
    that go on; returns for each row its state, the input of the next stage. The states of a step may share memory, of
    at most a few times as many rows.
    """

    probabilities_BC: npt.NDArray[np.float32]
    keep: Callable[[Sequence[int]], Sequence[Any]]


class Runner(Protocol):
    """Runs one stage over one batch on one device; only the engine's thread calls it."""

    @property
    def num_stages(self) -> int:
        """K."""
        ...

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Run stage 1..K over a batch: uint8 (H, W, 3) pictures for stage 1, else kept states of the stage before."""
        ...

    def warm_up(self, max_batch_size: int) -> None:
        """Run everything once, so that the first request is no slower than the next."""
        ...
