"""The wait of a new sample, predicted from the rate at which samples leave. Pure: the simulator uses it too."""

from __future__ import annotations

import math

# Weight of past steps after each new one: about a hundred steps count.
DECAY = 0.99


class WaitEstimate:
    """Seconds of work for each sample that leaves, as a ratio of two decaying sums.

    The time of all steps is divided by the number of samples that left. A sample that leaves without an answer counts
    too, because it makes room.
    max_s: upper limit for one sample. Samples that come one by one take longer each than a long queue in batches.
    """

    __slots__ = ("_departed", "_work_s", "max_s")

    def __init__(self) -> None:
        self._work_s = self._departed = 0.0
        self.max_s = math.inf

    def add_step(self, step_s: float) -> None:
        """A step has ended."""
        self._work_s = DECAY * self._work_s + step_s
        self._departed *= DECAY

    def add_departed(self, count: int) -> None:
        """So many samples have left, with or without an answer."""
        self._departed += count

    @property
    def sample_s(self) -> float:
        """Seconds of work for one sample; 0 before the first has left."""
        return min(self.max_s, self._work_s / self._departed) if self._departed else 0.0
