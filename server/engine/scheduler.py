"""Scheduler: which samples go through which stage next. Pure: no torch, no clock, no locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from server.engine.policies import Choice, FullFirst, Policy, Waiting

# What each step of a stage leaves of the weight of those before it in the share that goes on: some twenty count.
SHARE_DECAY = 0.95
# Until a step tells better: half go on, with the weight of so many samples.
PRIOR_SAMPLES = 2.0


class Bounded(Protocol):
    """What has a deadline: seconds on the engine's clock, or None for never."""

    @property
    def deadline_s(self) -> float | None: ...


class Schedulable(Protocol):
    """What the scheduler must know of a sample: its deadline, and whether somebody still waits for it."""

    @property
    def contract(self) -> Bounded: ...

    @property
    def abandoned(self) -> bool: ...


AnySample = TypeVar("AnySample", bound=Schedulable)


@dataclass(frozen=True)
class Batch(Generic[AnySample]):
    """One step to run: `samples` through `stage`.

    dropped: samples found on the way that are abandoned, or whose deadline comes before this step would end. spare:
    nobody waits for these.
    """

    stage: int
    samples: list[AnySample]
    dropped: list[AnySample]
    spare: bool = False


class Scheduler(Generic[AnySample]):
    """One queue a stage, first come first served; a policy chooses the stage and how many.

    Nobody starves under any policy. Those in front of a stage are passed over for shallower ones `policy.patience`
    times in a row at most: then as many of them go as can. And they wait for deeper ones only while there are any,
    which is not for long: nobody joins those without going through a shallower stage. A deadline changes no
    order: samples keep the order they came in; one whose deadline comes before a step for it alone would end is not
    run, and a batch is cut where it would be too late for one of its own.

    Spare samples have queues of their own. They are run while nobody else waits, and otherwise in full batches alone,
    which then go first: so they cost others least, and there are never more than some batches of them.

    policy, step_s: replaceable at any time by the thread that schedules, such as when costs have been measured.
    step_s: seconds that a step of a stage over so many samples takes.
    """

    def __init__(self, num_stages: int, max_batch_size: int, policy: Policy | None = None) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size {max_batch_size} is out of range: a step needs at least 1 sample")
        self.max_batch_size = max_batch_size
        self.policy: Policy = policy or FullFirst()
        self.step_s: Callable[[int, int], float] = _unknown
        self._queues: tuple[deque[AnySample], ...] = tuple(deque() for _ in range(num_stages))
        self._spare: tuple[deque[AnySample], ...] = tuple(deque() for _ in range(num_stages))
        self._passed_over = [0] * num_stages
        # Decaying sums by stage: samples that were run, and those of them that came back for the next stage.
        self._ran = [PRIOR_SAMPLES] * num_stages
        self._went_on = [PRIOR_SAMPLES / 2] * num_stages

    def __repr__(self) -> str:
        return f"Scheduler({', '.join(f'stage {k}: {n}' for k, n in enumerate(self.depths, start=1))})"

    @property
    def depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage."""
        return tuple(map(len, self._queues))

    @property
    def num_spare(self) -> int:
        """Spare samples waiting."""
        return sum(map(len, self._spare))

    @property
    def going_on(self) -> tuple[float, ...]:
        """The share of the samples lately through stage 1..K that came back for the next; 0 for the last stage."""
        return (*(on / ran for on, ran in zip(self._went_on[:-1], self._ran, strict=False)), 0.0)

    def enqueue(self, stage: int, samples: Iterable[AnySample]) -> None:
        """Put samples in front of stage 1..K: new ones of stage 1, else survivors of the stage before."""
        queue = self._queues[stage - 1]
        before = len(queue)
        queue.extend(samples)
        if stage > 1:
            self._went_on[stage - 2] += len(queue) - before

    def enqueue_spare(self, stage: int, samples: Iterable[AnySample]) -> None:
        """Put samples that nobody waits for in front of stage 1..K."""
        self._spare[stage - 1].extend(samples)

    def schedule(self, now_s: float) -> Batch[AnySample] | None:
        """Take the next batch out of the queues; None when all are empty.

        Samples that are abandoned, or whose deadline comes too soon, are not run: they come back as `dropped`.
        A batch may consist of those alone.
        """
        if (stage := self._spare_stage()) is not None:
            queue = self._spare[stage - 1]
            size = min(len(queue), self.max_batch_size)
            return Batch(stage, [queue.popleft() for _ in range(size)], [], spare=True)
        choice = self._choose()
        if choice is None:
            return None
        queue, batch = self._queues[choice.stage - 1], Batch[AnySample](choice.stage, [], [])
        soonest_s = now_s + self.step_s(choice.stage, 1)
        while queue and len(batch.samples) < choice.size:
            sample = queue.popleft()
            (batch.dropped if _over(sample, soonest_s) else batch.samples).append(sample)
        in_time = self._in_time(choice.stage, batch.samples, now_s)
        queue.extendleft(reversed(batch.samples[in_time:]))
        del batch.samples[in_time:]
        self._remember(batch)
        return batch

    def _in_time(self, stage: int, samples: list[AnySample], now_s: float) -> int:
        """How many of the first may go together, so that whoever of them has a deadline is done by then."""
        size, tightest_s = len(samples), float("inf")
        for at, sample in enumerate(samples):
            deadline_s = sample.contract.deadline_s
            tightest_s = min(tightest_s, float("inf") if deadline_s is None else deadline_s)
            if tightest_s < float("inf") and now_s + self.step_s(stage, at + 1) >= tightest_s:
                return max(1, at)
        return size

    def _spare_stage(self) -> int | None:
        """The deepest stage at which spare samples are to be run now."""
        least = self.max_batch_size if any(self._queues) else 1
        stages = range(len(self._spare), 0, -1)
        return next((stage for stage in stages if len(self._spare[stage - 1]) >= least), None)

    def _choose(self) -> Choice | None:
        depths = self.depths
        if not any(depths):
            return None
        waiting = Waiting(depths, self.going_on, self.max_batch_size)
        choice = self.policy.choose(waiting)
        for stage in range(len(depths), choice.stage, -1):
            if depths[stage - 1] and self._passed_over[stage - 1] >= self.policy.patience:
                choice = Choice(stage, waiting.most(stage))
                break
        self._passed_over[choice.stage - 1] = 0
        for stage in range(choice.stage + 1, len(depths) + 1):
            if depths[stage - 1]:
                self._passed_over[stage - 1] += 1
        return choice

    def _remember(self, batch: Batch[AnySample]) -> None:
        at = batch.stage - 1
        self._ran[at] = SHARE_DECAY * self._ran[at] + len(batch.samples)
        self._went_on[at] *= SHARE_DECAY


def _over(sample: Schedulable, done_s: float) -> bool:
    deadline_s = sample.contract.deadline_s
    return sample.abandoned or (deadline_s is not None and deadline_s <= done_s)


def _unknown(stage: int, size: int) -> float:
    return 0.0
