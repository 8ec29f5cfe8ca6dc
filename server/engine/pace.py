"""The pace at which samples leave, and the wait that it predicts. Pure: the simulator goes by it too."""

from __future__ import annotations

import math

# What each step leaves of the weight of those before it: some hundred steps count.
DECAY = 0.99


class Pace:
    """Seconds of work for each sample that leaves, as a ratio of two decaying sums.

    The work on samples that went deeper is paid for when they leave; leaving without an answer makes room all the same.
    most_s: upper limit. Samples that come one by one take longer each than those of a long queue, which go in batches.
    """

    __slots__ = ("_gone", "_work_s", "most_s")

    def __init__(self) -> None:
        self._work_s = self._gone = 0.0
        self.most_s = math.inf

    def learn(self, step_s: float, gone: int) -> None:
        """One more step: what it took, and how many left with it."""
        self._work_s = DECAY * self._work_s + step_s
        self._gone = DECAY * self._gone + gone

    @property
    def sample_s(self) -> float:
        """Seconds of work for one sample; 0 until the first has left."""
        return min(self.most_s, self._work_s / self._gone) if self._gone else 0.0

    def wait_s(self, inflight: int) -> float:
        """What so many samples still take."""
        return inflight * self.sample_s
