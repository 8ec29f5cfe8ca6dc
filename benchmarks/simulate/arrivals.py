"""Input of a simulation: recorded exit mixes, and times of arrival. Pure, the same for the same seed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.errors import BenchmarkError

# Bursts: a fifth of the time three times the mean rate, in between half of it.
BURST_SHARE, BURST_RATE = 0.2, 3.0
CALM_RATE = (1.0 - BURST_SHARE * BURST_RATE) / (1.0 - BURST_SHARE)
BURST_ARRIVALS = 150.0
# Diurnal: amplitude of the rate as a share of its mean, and periods in a run.
SWING, SWINGS = 0.6, 4


@dataclass(frozen=True)
class Mix:
    """Shares of the samples that leave at exit 1..K. Raises ValueError where they do not add up to 1."""

    name: str
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares) < 0.0 or not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6):
            raise ValueError(f"shares {self.shares} of mix {self.name!r}: give one for each exit, adding up to 1")

    @property
    def reaching(self) -> tuple[float, ...]:
        """Shares that reach stage 1..K."""
        return tuple(sum(self.shares[stage:]) for stage in range(len(self.shares)))

    def draw(self, samples: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """An exit, 1..K, for each of so many samples."""
        shares = np.asarray(self.shares)
        return 1 + random.choice(len(shares), size=samples, p=shares / shares.sum())


def mix_of_exits(name: str, exits: Sequence[int], num_exits: int) -> Mix:
    """The mix of the exits taken. exits: 1..num_exits, one for each sample. Raises ValueError for other numbers."""
    if not exits or not 1 <= min(exits) <= max(exits) <= num_exits:
        raise ValueError(f"exits of mix {name!r} are out of range: give at least one, each from 1 to {num_exits}")
    counts = Counter(exits)
    return Mix(name, tuple(counts[exit] / len(exits) for exit in range(1, num_exits + 1)))


def read_mixes(path: Path, num_exits: int) -> tuple[Mix, ...]:
    """Mixes from a JSON file: a result of `offramp bench thresholds`, one a threshold, or an object of lists by name.

    A list of whole numbers has the exit of each sample; any other the share of each exit. Raises BenchmarkError for a
    file that is neither, and ValueError for wrong shares or exits.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        lists = (
            {f"{row['threshold']:g}": row["exit_mix"] for row in document["rows"]} if "rows" in document else document
        )
        mixes = tuple(_mix(name, values, num_exits) for name, values in lists.items())
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{path} holds no exit mixes: {type(error).__name__}: {error}") from error
    for mix in mixes:
        if len(mix.shares) != num_exits:
            raise ValueError(f"mix {mix.name!r} has {len(mix.shares)} exits, the profile {num_exits} stages")
    return mixes


def _mix(name: str, values: Sequence[Any], num_exits: int) -> Mix:
    if all(isinstance(value, int) for value in values):
        return mix_of_exits(name, values, num_exits)
    return Mix(name, tuple(float(value) for value in values))


def poisson(rate: float, samples: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Independent arrivals: rising times in seconds."""
    return np.cumsum(random.exponential(1.0 / rate, samples))


def bursts(rate: float, samples: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A Markov-modulated Poisson process of two states: bursts and calm, of random lengths about their means."""
    burst_s = BURST_ARRIVALS / (BURST_RATE * rate)
    calm_s = burst_s * (1.0 - BURST_SHARE) / BURST_SHARE
    periods = 2 * math.ceil(samples / (rate * (burst_s + calm_s))) + 16
    calm_S, burst_S = random.exponential(calm_s, periods), random.exponential(burst_s, periods)
    lengths_s = np.column_stack([calm_S, burst_S]).ravel()
    rates = np.tile([CALM_RATE * rate, BURST_RATE * rate], periods)
    return _stretch(lengths_s, rates, samples, random)


def diurnal(rate: float, samples: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A rate that follows a sine, as over a day. Every run covers SWINGS days."""
    day_s = samples / rate / SWINGS
    slices = 200
    one_day = rate * (1.0 + SWING * np.sin(2.0 * np.pi * (np.arange(slices) + 0.5) / slices))
    rates = np.tile(one_day, 2 * SWINGS)
    return _stretch(np.full(len(rates), day_s / slices), rates, samples, random)


def _stretch(
    lengths_s: npt.NDArray[np.float64], rates: npt.NDArray[np.float64], samples: int, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Arrivals of a rate that is constant within each length: arrivals of rate 1 on a stretched time axis."""
    ends_s = np.concatenate([[0.0], np.cumsum(lengths_s)])
    expected = np.concatenate([[0.0], np.cumsum(lengths_s * rates)])
    # Arrivals after the last length come at the mean rate.
    mean_rate = expected[-1] / ends_s[-1]
    far = expected[-1] + 10.0 * samples + 1000.0
    unit = np.cumsum(random.exponential(1.0, samples))
    return np.interp(unit, [*expected, far], [*ends_s, ends_s[-1] + (far - expected[-1]) / mean_rate])


Arrivals = Callable[[float, int, np.random.Generator], npt.NDArray[np.float64]]
ARRIVALS: dict[str, Arrivals] = {"poisson": poisson, "bursts": bursts, "diurnal": diurnal}
