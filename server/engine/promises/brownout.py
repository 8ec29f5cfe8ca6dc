"""Brownout: under load, lower the thresholds step by step before refusing. Pure: no clock, no locks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BrownoutLimits:
    """Predicted waits between which the level stays, and shortest times between two changes. All in seconds.

    high_s: above it, the level rises. low_s: below it, the level falls. lower_every_s: shortest time at a level before
    the next rise, so that one burst does not reach the highest level. raise_every_s: the same before a fall, so that
    its effect shows first. Raises ValueError if low_s is not below high_s, or a time is below 0.
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
    """The level: 0 is none, level n is the n-th looser plan of a contract. levels: the highest level."""

    def __init__(self, limits: BrownoutLimits, levels: int) -> None:
        self.level = 0
        self._limits, self._levels = limits, levels
        self._changed_s = float("-inf")

    def update(self, now_s: float, wait_s: float) -> int:
        """Returns the level at `now_s`. wait_s: predicted wait of a new sample. Time never goes back."""
        limits, unchanged_s = self._limits, now_s - self._changed_s
        if wait_s > limits.high_s and self.level < self._levels and unchanged_s >= limits.lower_every_s:
            self.level, self._changed_s = self.level + 1, now_s
        elif wait_s < limits.low_s and self.level and unchanged_s >= limits.raise_every_s:
            # As many levels as there was time for: no update may have come meanwhile.
            levels = int(min(self.level, unchanged_s / limits.raise_every_s)) if limits.raise_every_s else self.level
            self.level, self._changed_s = self.level - levels, now_s
        return self.level
