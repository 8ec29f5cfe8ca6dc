"""Recorded exit mixes: the share of the samples that leave at each exit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness.errors import BenchmarkError


@dataclass(frozen=True)
class Mix:
    """shares: of the samples, for exit 1..K. Raises ValueError where they do not add up to 1."""

    name: str
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares) < 0.0 or not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6):
            raise ValueError(f"shares {self.shares} of mix {self.name!r}: give one for each exit, adding up to 1")

    @property
    def reaching(self) -> tuple[float, ...]:
        """Shares that reach stage 1..K."""
        return tuple(sum(self.shares[stage:]) for stage in range(len(self.shares)))

    def draw(self, samples: int, random: np.random.Generator) -> list[int]:
        """An exit 1..K for each sample."""
        shares = np.asarray(self.shares)
        exits: list[int] = (1 + random.choice(len(shares), size=samples, p=shares / shares.sum())).tolist()
        return exits


def read_mixes(path: Path, num_exits: int) -> tuple[Mix, ...]:
    """The mixes in a result of `offramp bench thresholds`, one for each threshold, or in a JSON object by name.

    Raises BenchmarkError for another file, and ValueError for wrong shares.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "rows" in document:
            document = {f"{row['threshold']:g}": row["exit_mix"] for row in document["rows"]}
        shares = {name: tuple(map(float, values)) for name, values in document.items()}
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{path} holds no exit mixes: {type(error).__name__}: {error}") from error
    for name, values in shares.items():
        if values and len(values) != num_exits:
            raise ValueError(f"mix {name!r} has {len(values)} exits, the profile {num_exits} stages")
    return tuple(Mix(name, values) for name, values in shares.items())
