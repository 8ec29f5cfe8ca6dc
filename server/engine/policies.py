"""Policies: which stage runs next, over how many samples. Pure: they see the lengths of the queues, and no samples.

No policy waits while there is work: a step lasts milliseconds, and new samples go with the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

# Only for types: the options import this module, and must load fast.
if TYPE_CHECKING:
    from offramp.server.engine.profile import CostProfile

# From this much waiting work, in full batches through all stages, only efficient steps run: one batch runs while the
# other fills up.
BUSY_BATCHES = 2.0
# Efficiency of an efficient step. Up to a tenth of the time is lost so that deep samples go first.
MIN_EFFICIENCY_BUSY = 0.9
# Delay the deeper batch only if its loss is below this part of the time that merging saves.
MAX_MERGE_LOSS = 0.4
# Largest cost of a sample in a batch, relative to the best batch size. Covers the error of the measurement.
MAX_RELATIVE_COST = 1.05


@dataclass(frozen=True, slots=True)
class QueueState:
    """The facts that a policy decides by.

    depths: samples in front of stage 1..K, not all 0. going_on: share of the recent samples of stage 1..K that went on
    to the next stage. max_batch_size: maximum number of samples in one step.
    """

    depths: tuple[int, ...]
    going_on: tuple[float, ...]
    max_batch_size: int

    def most(self, stage: int) -> int:
        """Maximum number of samples of stage 1..K that one step can take now."""
        return min(self.depths[stage - 1], self.max_batch_size)

    def stages(self) -> Iterator[int]:
        """The stages with waiting samples, the deepest first."""
        return (stage for stage in range(len(self.depths), 0, -1) if self.depths[stage - 1])


@dataclass(frozen=True, slots=True)
class Choice:
    """The next step: the first `size` samples (at least 1) in front of `stage` (1..K)."""

    stage: int
    size: int


class Policy(Protocol):
    """Chooses the next step, from its argument alone: the scheduler holds all state."""

    @property
    def patience(self) -> int:
        """How many times in a row a deeper stage may be passed over; the scheduler enforces it."""
        ...

    def choose(self, waiting: QueueState) -> Choice:
        """The step to run. At least one sample waits."""
        ...


class RunToCompletion:
    """Runs one batch through all stages before the next batch begins. Batches never merge.

    This is deepest stage first: stage 1 runs only when no sample waits at a later stage.
    """

    patience = 0

    def choose(self, waiting: QueueState) -> Choice:
        """The deepest stage with waiting samples."""
        stage = next(waiting.stages())
        return Choice(stage, waiting.most(stage))


class FullestFirst:
    """The largest batch, the deepest of equal ones. Good if a step takes the same time for any batch size."""

    patience = 16

    def choose(self, waiting: QueueState) -> Choice:
        """The stage whose next batch is the largest."""
        stage = max(waiting.stages(), key=waiting.most)
        return Choice(stage, waiting.most(stage))


class FullFirst:
    """The deepest stage with a full batch, else the deepest stage. Needs no profile.

    While full batches of shallower stages run, survivors of several batches gather and go on as one batch.
    """

    patience = 3

    def choose(self, waiting: QueueState) -> Choice:
        """The deepest full batch, else the deepest batch."""
        full = (stage for stage in waiting.stages() if waiting.depths[stage - 1] >= waiting.max_batch_size)
        stage = next(full, next(waiting.stages()))
        return Choice(stage, waiting.most(stage))


class CostModel:
    """The deepest stage whose step is efficient enough, by the measured costs of the steps.

    A step over n samples takes c(n) seconds. Its efficiency is (n / c(n)) / (full / c(full)), where `full` is the
    largest batch size that pays. If a step costs the same per sample at any size, every step is efficient, and this
    is deepest first. If a step costs the same at any size, only full batches are efficient. The required efficiency
    grows with the waiting work: with little work, the deepest samples go first; from BUSY_BATCHES on, only a step of
    MIN_EFFICIENCY_BUSY runs. If no step is efficient enough, the deepest one runs.

    The chosen step waits for the next shallower batch if merging the two pays: the samples of the waiting batch lose
    less time than MAX_MERGE_LOSS times what merging saves. Otherwise a few clients that ask again after each answer
    would stay in small batches that never merge.

    Chosen by simulation, against rules that weigh the wait of each sample: see docs/performance.md.
    """

    patience = 6

    def __init__(self, profile: CostProfile) -> None:
        self.profile = profile
        rows = [profile.table(stage) for stage in range(1, profile.num_stages + 1)]
        self._tables = rows
        self._full = tuple(_largest_that_pays(row, {*profile.batch_sizes, profile.max_batch_size}) for row in rows)
        self._sample_s = tuple(row[full] / full for row, full in zip(rows, self._full, strict=True))
        self._efficiency = tuple(
            (0.0, *((row[full] * n) / (full * row[n]) for n in range(1, full + 1)))
            for row, full in zip(rows, self._full, strict=True)
        )

    def choose(self, waiting: QueueState) -> Choice:
        """The deepest step with the required efficiency, else the deepest step."""
        enough = self._enough(waiting)
        chosen: Choice | None = None
        deepest: Choice | None = None
        for stage in waiting.stages():
            step = Choice(stage, min(waiting.most(stage), self._full[stage - 1]))
            deepest = deepest or step
            if chosen is None:
                chosen = step if self._efficiency[stage - 1][step.size] >= enough else None
            elif self._may_merge(step, chosen, waiting.going_on):
                chosen = step
            else:
                break
        assert deepest is not None, "a policy is asked only if a sample waits"
        return chosen or deepest

    def _may_merge(self, shallow: Choice, deep: Choice, going_on: tuple[float, ...]) -> bool:
        """Whether the deep step should wait, so that the survivors of the shallow step go on with it."""
        # until_s: from now until the shallow batch has reached the stage of the deep one.
        arriving, until_s = float(shallow.size), 0.0
        for at in range(shallow.stage - 1, deep.stage - 1):
            until_s += _between(self._tables[at], arriving)
            arriving *= going_on[at]
        if deep.size + arriving > self._full[deep.stage - 1]:
            return False
        # Times from there through all later stages. deep_s: the deep batch alone; apart_s: both batches, one after the
        # other; together_s: both as one batch.
        waiting, deep_s, apart_s, together_s = float(deep.size), 0.0, 0.0, 0.0
        for at in range(deep.stage - 1, len(self._tables)):
            alone_s = _between(self._tables[at], waiting)
            deep_s += alone_s
            apart_s += alone_s + _between(self._tables[at], arriving)
            together_s += _between(self._tables[at], waiting + arriving)
            waiting, arriving = going_on[at] * waiting, going_on[at] * arriving
        # Added over the samples of the deep batch.
        lost_s = deep.size * (until_s + together_s - deep_s)
        return lost_s < MAX_MERGE_LOSS * shallow.size * (apart_s - together_s)

    def _enough(self, waiting: QueueState) -> float:
        """The required efficiency, from the seconds of waiting work through all later stages."""
        to_go_s = waiting_s = 0.0
        for at in range(len(waiting.depths) - 1, -1, -1):
            to_go_s = self._sample_s[at] + waiting.going_on[at] * to_go_s
            waiting_s += waiting.depths[at] * to_go_s
        return MIN_EFFICIENCY_BUSY * min(1.0, (waiting_s / (BUSY_BATCHES * waiting.max_batch_size * to_go_s)) ** 2)


def _between(table: tuple[float, ...], samples: float) -> float:
    """Seconds of a step over an expected number of samples, which need not be whole."""
    whole = int(samples)
    below_s = table[whole]
    return below_s if whole == samples else below_s + (samples - whole) * (table[whole + 1] - below_s)


def _largest_that_pays(row: tuple[float, ...], sizes: Set[int]) -> int:
    """The largest batch size whose samples cost little more than in the best batch: large batches may lack memory.

    sizes: the measured ones. Others are interpolated, and a runner that fills batches up to the next size makes them
    cost more: 25 samples cost as much as 32.
    """
    best_s = min(row[size] / size for size in sizes)
    return max(size for size in sizes if row[size] / size <= MAX_RELATIVE_COST * best_s)


DEFAULT_POLICY = "cost-model"
POLICIES: dict[str, Callable[[CostProfile], Policy]] = {
    "cost-model": CostModel,
    "run-to-completion": lambda profile: RunToCompletion(),
    "fullest-first": lambda profile: FullestFirst(),
    "full-first": lambda profile: FullFirst(),
}
