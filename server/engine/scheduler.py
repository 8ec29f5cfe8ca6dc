"""Scheduler: which samples go through which stage next. Pure: no torch, no clock, no locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from server.engine.request import Sample

# Steps of shallower stages that waiting samples let go first, in the hope of more batch-mates.
PATIENCE = 3


@dataclass(frozen=True)
class Batch:
    """One step to run: `samples` through `stage`. dropped: abandoned or expired samples found on the way."""

    stage: int
    samples: list[Sample]
    dropped: list[Sample]


class Scheduler:
    """One queue a stage, first come first served; a full batch goes before a part-filled one, deeper before shallower.

    Where no stage has a full batch, the deepest goes: samples on their way are answered before new ones are begun.
    Where one has, part-filled deeper stages let it pass, PATIENCE times in a row at most: meanwhile survivors of
    different batches meet there and go on as one. So nobody starves: work behind stage 1 is finite, and new
    samples overtake it a bounded number of times.
    """

    def __init__(self, num_stages: int, max_batch_size: int) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size {max_batch_size} is out of range: a step needs at least 1 sample")
        self.max_batch_size = max_batch_size
        self._queues: tuple[deque[Sample], ...] = tuple(deque() for _ in range(num_stages))
        self._times_passed_over = [0] * num_stages

    def __repr__(self) -> str:
        return f"Scheduler({', '.join(f'stage {k}: {n}' for k, n in enumerate(self.depths, start=1))})"

    @property
    def depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage."""
        return tuple(map(len, self._queues))

    def enqueue(self, stage: int, samples: Iterable[Sample]) -> None:
        """Put samples in front of stage 1..K."""
        self._queues[stage - 1].extend(samples)

    def schedule(self, now_s: float) -> Batch | None:
        """Take the next batch out of the queues; None when all are empty.

        Samples that are abandoned, or whose deadline has passed, are not run: they come back as `dropped`.
        A batch may consist of those alone.
        """
        stage = self._next_stage()
        if stage is None:
            return None
        queue, batch = self._queues[stage - 1], Batch(stage, [], [])
        while queue and len(batch.samples) < self.max_batch_size:
            sample = queue.popleft()
            (batch.dropped if _over(sample, now_s) else batch.samples).append(sample)
        return batch

    def _next_stage(self) -> int | None:
        waiting = [stage for stage in range(len(self._queues), 0, -1) if self._queues[stage - 1]]
        out_of_patience = (stage for stage in waiting if self._times_passed_over[stage - 1] >= PATIENCE)
        full = (stage for stage in waiting if len(self._queues[stage - 1]) >= self.max_batch_size)
        chosen = next(chain(out_of_patience, full, waiting), None)
        for stage in waiting:
            if stage == chosen:
                self._times_passed_over[stage - 1] = 0
                break
            self._times_passed_over[stage - 1] += 1
        return chosen


def _over(sample: Sample, now_s: float) -> bool:
    deadline_s = sample.contract.deadline_s
    return sample.abandoned or (deadline_s is not None and deadline_s <= now_s)
