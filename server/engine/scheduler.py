"""Scheduler: which samples go through which stage next. Pure: no torch, no clock, no locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.request import Sample


@dataclass(frozen=True)
class Batch:
    """One step to run: `samples` through `stage`. dropped: abandoned or expired samples found on the way."""

    stage: int
    samples: list[Sample]
    dropped: list[Sample]


class Scheduler:
    """One queue a stage, first come first served; the deepest waiting stage goes first.

    Deepest-first answers samples that are already on their way before it takes in new ones, so that no sample
    starves, and merges survivors of different batches whenever more than one batch left some behind.
    """

    def __init__(self, num_stages: int, max_batch_size: int) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size {max_batch_size} is out of range: a step needs at least 1 sample")
        self.max_batch_size = max_batch_size
        self._queues: tuple[deque[Sample], ...] = tuple(deque() for _ in range(num_stages))

    def __repr__(self) -> str:
        return f"Scheduler({', '.join(f'stage {k}: {n}' for k, n in enumerate(self.depths, start=1))})"

    @property
    def depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage."""
        return tuple(map(len, self._queues))

    def enqueue(self, stage: int, samples: Iterable[Sample], now_s: float) -> None:
        """Put samples in front of stage 1..K."""
        for sample in samples:
            sample.enqueued_s = now_s
            self._queues[stage - 1].append(sample)

    def schedule(self, now_s: float) -> Batch | None:
        """Take the next batch out of the queues; None when all are empty.

        Samples that are abandoned, or whose deadline has passed, are not run: they come back as `dropped`.
        A batch may consist of those alone.
        """
        for stage in range(len(self._queues), 0, -1):
            if queue := self._queues[stage - 1]:
                batch = Batch(stage, [], [])
                while queue and len(batch.samples) < self.max_batch_size:
                    sample = queue.popleft()
                    (batch.dropped if _over(sample, now_s) else batch.samples).append(sample)
                return batch
        return None


def _over(sample: Sample, now_s: float) -> bool:
    deadline_s = sample.contract.deadline_s
    return sample.abandoned or (deadline_s is not None and deadline_s <= now_s)
