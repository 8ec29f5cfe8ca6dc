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

# With this much waiting work, in full batches through all stages, only efficient steps run: one batch runs while the
# other fills up.
ENOUGH = 2.0
# Efficiency of an efficient step. Up to a tenth of the time is lost so that deep samples go first.
EFFICIENT = 0.9
# Largest share of the time saved by merging two batches that the waiting batch may lose.
CATCHING_UP = 0.4
# Largest cost of a sample in a batch, relative to the best batch size. Covers the error of the measurement.
TOLERANCE = 1.05


@dataclass(frozen=True, slots=True)
class Waiting:
    """The facts that a policy decides by.

    depths: samples in front of stage 1..K, not all 0. going_on: share of the recent samples of stage 1..K that went on
    to the next stage. max_batch_size: most samples in one step.
    """

    depths: tuple[int, ...]
    going_on: tuple[float, ...]
    max_batch_size: int

    def most(self, stage: int) -> int:
        """Most samples of stage 1..K that one step can take now."""
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
        """Most times in a row that a deeper stage is passed over; the scheduler enforces it."""
        ...

    def choose(self, waiting: Waiting) -> Choice:
        """The step to run. At least one sample waits."""
        ...


class RunToCompletion:
    """Runs one batch through all stages before the next batch begins. Batches never merge.

    This is deepest stage first: stage 1 runs only when no sample waits behind it.
    """

    patience = 0

    def choose(self, waiting: Waiting) -> Choice:
        """The deepest stage with waiting samples."""
        stage = next(waiting.stages())
        return Choice(stage, waiting.most(stage))


class FullestFirst:
    """The largest batch, the deepest of equal ones. Good if a step takes the same time for any batch size."""

    patience = 16

    def choose(self, waiting: Waiting) -> Choice:
        """The stage whose next batch is the largest."""
        stage = max(waiting.stages(), key=waiting.most)
        return Choice(stage, waiting.most(stage))


class FullFirst:
    """The deepest stage with a full batch, else the deepest stage. Needs no profile.

    While full batches of shallower stages run, survivors of several batches gather and go on as one batch.
    """

    patience = 3

    def choose(self, waiting: Waiting) -> Choice:
        """The deepest full batch, else the deepest batch."""
        full = (stage for stage in waiting.stages() if waiting.depths[stage - 1] >= waiting.max_batch_size)
        stage = next(full, next(waiting.stages()))
        return Choice(stage, waiting.most(stage))


class CostModel:
    """The deepest stage whose step is efficient enough, by the measured costs of the steps.

    A step over n samples takes c(n) seconds. Its efficiency is (n / c(n)) / (full / c(full)), where `full` is the
    largest batch size that pays. If a step costs the same per sample at any size, every step is efficient, and this
    is deepest first. If a step costs the same at any size, only full batches are efficient. The required efficiency
    grows with the waiting work: with little work, the deepest samples go first; with ENOUGH work, only an EFFICIENT
    step runs. If no step is efficient enough, the deepest one runs.

    The chosen step waits for the batch behind it if merging the two pays: the samples of the waiting batch lose less
    time than CATCHING_UP times what merging saves. Otherwise a few clients that ask again after each answer would stay
    in small batches that never merge.

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

    def choose(self, waiting: Waiting) -> Choice:
        """The deepest step with the required efficiency, else the deepest step."""
        enough = self._enough(waiting)
        chosen: Choice | None = None
        deepest: Choice | None = None
        for stage in waiting.stages():
            step = Choice(stage, min(waiting.most(stage), self._full[stage - 1]))
            deepest = deepest or step
            if chosen is None:
                chosen = step if self._efficiency[stage - 1][step.size] >= enough else None
            elif self._may_catch_up(step, chosen, waiting.going_on):
                chosen = step
            else:
                break
        assert deepest is not None, "a policy is asked only if a sample waits"
        return chosen or deepest

    def _may_catch_up(self, behind: Choice, ahead: Choice, going_on: tuple[float, ...]) -> bool:
        """Whether the step ahead should wait, so that the survivors of the step behind go on with it."""
        catching_up, until_s = float(behind.size), 0.0
        for at in range(behind.stage - 1, ahead.stage - 1):
            until_s += _between(self._tables[at], catching_up)
            catching_up *= going_on[at]
        if ahead.size + catching_up > self._full[ahead.stage - 1]:
            return False
        waited_for, ahead_s, apart_s, together_s = float(ahead.size), 0.0, 0.0, 0.0
        for at in range(ahead.stage - 1, len(self._tables)):
            alone_s = _between(self._tables[at], waited_for)
            ahead_s += alone_s
            apart_s += alone_s + _between(self._tables[at], catching_up)
            together_s += _between(self._tables[at], waited_for + catching_up)
            waited_for, catching_up = going_on[at] * waited_for, going_on[at] * catching_up
        lost_s = ahead.size * (until_s + together_s - ahead_s)
        return lost_s < CATCHING_UP * behind.size * (apart_s - together_s)

    def _enough(self, waiting: Waiting) -> float:
        """The required efficiency, from the seconds of waiting work through all later stages."""
        to_go_s = waiting_s = 0.0
        for at in range(len(waiting.depths) - 1, -1, -1):
            to_go_s = self._sample_s[at] + waiting.going_on[at] * to_go_s
            waiting_s += waiting.depths[at] * to_go_s
        return EFFICIENT * min(1.0, (waiting_s / (ENOUGH * waiting.max_batch_size * to_go_s)) ** 2)


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
    return max(size for size in sizes if row[size] / size <= TOLERANCE * best_s)


DEFAULT_POLICY = "cost-model"
POLICIES: dict[str, Callable[[CostProfile], Policy]] = {
    "cost-model": CostModel,
    "run-to-completion": lambda profile: RunToCompletion(),
    "fullest-first": lambda profile: FullestFirst(),
    "full-first": lambda profile: FullFirst(),
}
