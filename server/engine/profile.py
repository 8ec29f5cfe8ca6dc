"""Cost profile: seconds of a step by stage and batch size, measured on this machine with this network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from offramp.server.engine.runners.all_stages import black_pictures, stage_seconds
from offramp.server.engine.runners.runner import Runner

MEASURED_ROUNDS = 5
# The start waits for the measurement. Larger batch sizes are extrapolated after this time.
BUDGET_S = 0.5


@dataclass(frozen=True)
class CostProfile:
    """Seconds of every stage at some batch sizes, with linear interpolation between them.

    batch_sizes: rising, from 1. measured_s: one row a stage, one time a batch size. max_batch_size: beyond the largest
    measured size, a sample costs what it costs there. Raises ValueError for any other table.
    """

    max_batch_size: int
    batch_sizes: tuple[int, ...]
    measured_s: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if not sizes or sizes[0] != 1 or any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"batch_sizes {sizes} are out of range: give rising whole numbers that begin with 1")
        if self.max_batch_size < sizes[-1]:
            raise ValueError(
                f"max_batch_size {self.max_batch_size} is out of range: at least {sizes[-1]}, the largest measured"
            )
        if not self.measured_s:
            raise ValueError("measured_s () are out of range: give one row for each stage, at least one")
        for stage, row in enumerate(self.measured_s, start=1):
            if len(row) != len(sizes) or not all(0.0 < time_s < float("inf") for time_s in row):
                raise ValueError(
                    f"measured_s {row} of stage {stage} are out of range: give {len(sizes)} finite times above 0, "
                    "one for each batch size"
                )

    @cached_property
    def _tables(self) -> tuple[tuple[float, ...], ...]:
        return tuple(_every_size(self.batch_sizes, row, self.max_batch_size) for row in self.measured_s)

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.measured_s)

    def table(self, stage: int) -> tuple[float, ...]:
        """Seconds of stage 1..K at batch sizes 0, 1, …, max_batch_size; never falling from one to the next."""
        return self._tables[stage - 1]

    def seconds(self, stage: int, batch_size: int) -> float:
        """Seconds of stage 1..K over 0..max_batch_size samples."""
        return self._tables[stage - 1][batch_size]

    def best_sample_s(self, stage: int) -> float:
        """Seconds a sample of stage 1..K in its most efficient batch."""
        row = self._tables[stage - 1]
        return min(time_s / size for size, time_s in enumerate(row) if size)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the measured values only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostProfile:
        """Back from `to_dict`; other entries are ignored. Raises ValueError if a value is missing or invalid."""
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"a cost profile needs max_batch_size, batch_sizes and measured_s: {error}") from None


def _every_size(sizes: Sequence[int], row: Sequence[float], max_batch_size: int) -> tuple[float, ...]:
    # Interruptions only lengthen a measured time, so a smaller batch takes at most the time of a larger one.
    least = np.minimum.accumulate(np.asarray(row)[::-1])[::-1]
    wanted = np.arange(max_batch_size + 1)
    table = np.interp(wanted, (0, *sizes), (0.0, *least))
    beyond = wanted > sizes[-1]
    table[beyond] = wanted[beyond] * (least[-1] / sizes[-1])
    return tuple(table.tolist())


def grid(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes to measure: 1, 2, 4, 8, …, and max_batch_size."""
    sizes = [1]
    while 2 * sizes[-1] < max_batch_size:
        sizes.append(2 * sizes[-1])
    return tuple(sizes) if max_batch_size == 1 else (*sizes, max_batch_size)


def measure_profile(
    runner: Runner,
    picture_size: int,
    max_batch_size: int,
    clock: Callable[[], float],
    *,
    rounds: int = MEASURED_ROUNDS,
    budget_s: float = BUDGET_S,
) -> CostProfile:
    """Time every stage at every size of the grid: medians over `rounds`, each over all sizes and stages.

    runner: warm; called on its own thread. picture_size: side of its input in pixels. clock: monotonic seconds. A time
    includes keeping the states of the whole batch. budget_s: after it no round begins, and the first round stops.
    """
    start_s = clock()
    times_s: dict[int, list[list[float]]] = {}
    for size in grid(max_batch_size):
        times_s[size] = [stage_seconds(runner, black_pictures(picture_size, size), clock)]
        if clock() - start_s >= budget_s:
            break
    for _ in range(rounds - 1):
        if clock() - start_s >= budget_s:
            break
        for size, rows in times_s.items():
            rows.append(stage_seconds(runner, black_pictures(picture_size, size), clock))
    medians = [[statistics.median(times) for times in zip(*rows, strict=True)] for rows in times_s.values()]
    return CostProfile(max_batch_size, tuple(times_s), tuple(zip(*medians, strict=True)))
