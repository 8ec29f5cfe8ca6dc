"""Scheduler: which samples go through which stage next. Pure: no torch, no clock, no locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from offramp.server.engine.policies import Choice, FullFirst, Policy, QueueState

# Weight of past samples in the share that goes on, after each step of their stage: about twenty steps count.
SHARE_DECAY = 0.95
# Before the first step: half of the samples go on, with the weight of this many samples.
PRIOR_SAMPLES = 2.0


class Schedulable(Protocol):
    """What the scheduler must know of a sample.

    deadline_s: on the engine's clock; None for none. abandoned: nothing waits for it. low_priority: it can wait.
    """

    @property
    def deadline_s(self) -> float | None: ...

    @property
    def abandoned(self) -> bool: ...

    @property
    def low_priority(self) -> bool: ...


AnySample = TypeVar("AnySample", bound=Schedulable)


@dataclass
class Batch(Generic[AnySample]):
    """One step: `samples` go through `stage`. dropped: samples that are abandoned, or too late for this step."""

    stage: int
    samples: list[AnySample] = field(default_factory=list)
    dropped: list[AnySample] = field(default_factory=list)


class Scheduler(Generic[AnySample]):
    """One queue a stage, first come first served. A policy chooses the stage and the size of the batch.

    No sample starves under any policy. Samples in front of a stage are passed over for shallower stages at most
    `policy.patience` times in a row. Then as many of them run as fit. They wait for deeper stages only while those have
    samples, which is not for long: every sample of a deeper stage came through a shallower one. Deadlines do not change
    the order. A sample does not run if its deadline comes before a step of it alone would end, and a batch is cut where
    it would end after the deadline of one of its samples.

    Samples of low priority have queues of their own. They run while no other sample waits, and otherwise only in
    full batches, which then go first. So they cost the others least, and their number stays below a few batches.

    policy, step_s: the thread that schedules may replace them at any time. step_s: seconds of a step, by stage and size
    of the batch.
    """

    def __init__(self, num_stages: int, max_batch_size: int, policy: Policy | None = None) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size {max_batch_size} is out of range: a step needs at least 1 sample")
        self.max_batch_size = max_batch_size
        self.policy: Policy = policy or FullFirst()
        self.step_s: Callable[[int, int], float] = _no_cost
        self._queues: tuple[deque[AnySample], ...] = tuple(deque() for _ in range(num_stages))
        self._low_priority: tuple[deque[AnySample], ...] = tuple(deque() for _ in range(num_stages))
        self._passed_over = [0] * num_stages
        # Decaying sums by stage: samples that ran, and those of them that went on to the next stage.
        self._ran = [PRIOR_SAMPLES] * num_stages
        self._went_on = [PRIOR_SAMPLES / 2] * num_stages

    def __repr__(self) -> str:
        return f"Scheduler({', '.join(f'stage {k}: {n}' for k, n in enumerate(self.depths, start=1))})"

    @property
    def depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage, without those of low priority."""
        return tuple(map(len, self._queues))

    @property
    def empty(self) -> bool:
        """Whether no sample waits, of low priority neither."""
        return not any(self._queues) and not any(self._low_priority)

    @property
    def going_on(self) -> tuple[float, ...]:
        """Share of the recent samples of stage 1..K that went on to the next stage; 0 for the last stage."""
        return (*(on / ran for on, ran in zip(self._went_on[:-1], self._ran, strict=False)), 0.0)

    def enqueue(self, stage: int, samples: Iterable[AnySample]) -> None:
        """Put samples in front of stage 1..K: new ones of stage 1, else survivors of the stage before."""
        for sample in samples:
            if sample.low_priority:
                self._low_priority[stage - 1].append(sample)
                continue
            self._queues[stage - 1].append(sample)
            if stage > 1:
                self._went_on[stage - 2] += 1

    def schedule(self, now_s: float) -> Batch[AnySample] | None:
        """Take the next batch out of the queues; None if all are empty.

        Samples that are abandoned, or whose deadline comes too soon, come back as `dropped`. A batch may have only such
        samples.
        """
        if (stage := self._low_priority_stage()) is not None:
            queue = self._low_priority[stage - 1]
            return Batch(stage, [queue.popleft() for _ in range(min(len(queue), self.max_batch_size))])
        choice = self._choose()
        if choice is None:
            return None
        queue, batch = self._queues[choice.stage - 1], Batch[AnySample](choice.stage)
        soonest_s = now_s + self.step_s(choice.stage, 1)
        while queue and len(batch.samples) < choice.size:
            sample = queue.popleft()
            (batch.dropped if _too_late(sample, soonest_s) else batch.samples).append(sample)
        in_time = self._in_time(choice.stage, batch.samples, now_s)
        queue.extendleft(reversed(batch.samples[in_time:]))
        del batch.samples[in_time:]
        self._remember(batch)
        return batch

    def _in_time(self, stage: int, samples: list[AnySample], now_s: float) -> int:
        """How many of the first samples fit into one step that ends before each of their deadlines."""
        size, tightest_s = len(samples), float("inf")
        for at, sample in enumerate(samples):
            deadline_s = sample.deadline_s
            tightest_s = min(tightest_s, float("inf") if deadline_s is None else deadline_s)
            if tightest_s < float("inf") and now_s + self.step_s(stage, at + 1) >= tightest_s:
                return max(1, at)
        return size

    def _low_priority_stage(self) -> int | None:
        """The deepest stage whose samples of low priority may run now."""
        least = self.max_batch_size if any(self._queues) else 1
        stages = range(len(self._low_priority), 0, -1)
        return next((stage for stage in stages if len(self._low_priority[stage - 1]) >= least), None)

    def _choose(self) -> Choice | None:
        depths = self.depths
        if not any(depths):
            return None
        waiting = QueueState(depths, self.going_on, self.max_batch_size)
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


def _too_late(sample: Schedulable, done_s: float) -> bool:
    deadline_s = sample.deadline_s
    return sample.abandoned or (deadline_s is not None and deadline_s <= done_s)


def _no_cost(stage: int, size: int) -> float:
    return 0.0
