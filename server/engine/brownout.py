"""Brownout: how far a loaded server goes down the certified front before it refuses. Pure: no clock, no locks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BrownoutLimits:
    """When to give way, and when to recover; seconds.

    high_s: predicted wait above which thresholds are lowered. low_s: below which they are raised again. lower_every_s,
    raise_every_s: how long a level is kept at least before the next in either direction, so that one burst does
    not go through all of them, and recovery shows before more of it is tried. Raises ValueError where low_s is not
    below high_s, or a time is below 0.
    """

    high_s: float
    low_s: float
    lower_every_s: float = 0.1
    raise_every_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low_s < self.high_s:
            raise ValueError(f"low_s {self.low_s} and high_s {self.high_s} are out of range: 0 <= low_s < high_s")
        if min(self.lower_every_s, self.raise_every_s) < 0.0:
            raise ValueError(f"{self} is out of range: give times of 0 or more")


class Brownout:
    """The level of giving way: 0 is none, level n the n-th step down what a contract allows.

    levels: the highest there is. Between the limits the level stays as it is.
    """

    def __init__(self, limits: BrownoutLimits, levels: int) -> None:
        self.level = 0
        self._limits, self._levels = limits, levels
        self._changed_s = float("-inf")

    def update(self, now_s: float, wait_s: float) -> int:
        """The level at `now_s`, when a new sample would wait for `wait_s`; time never goes back."""
        limits, kept_s = self._limits, now_s - self._changed_s
        if wait_s > limits.high_s and self.level < self._levels and kept_s >= limits.lower_every_s:
            self.level, self._changed_s = self.level + 1, now_s
        elif wait_s < limits.low_s and self.level and kept_s >= limits.raise_every_s:
            # As many as there was time for: nobody may have come to see them.
            recovered = int(min(self.level, kept_s / limits.raise_every_s)) if limits.raise_every_s else self.level
            self.level, self._changed_s = self.level - recovered, now_s
        return self.level
