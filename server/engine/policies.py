"""Policies: which stage next, and how many. Pure: they see how many wait where, and know nothing of samples.

None waits while there is work: a step lasts milliseconds, and whoever comes meanwhile goes with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

# For types alone: the options import this module, and must stay light.
if TYPE_CHECKING:
    from offramp.server.engine.profile import CostProfile

# Full batches' worth of work, on their way from stage 1 to the end, at which only efficient steps will do: one to
# run, and one that fills up meanwhile.
ENOUGH = 2.0
# What is efficient: a tenth of the time may be lost, for the sake of those who are nearly through.
EFFICIENT = 0.9
# Of the time that others are spared by going on together, what it may cost those they catch up with.
CATCHING_UP = 0.4
# How much more a sample may cost in a larger batch than in the best one, the uncertainty of a measurement included.
TOLERANCE = 1.05


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a policy decides by.

    depths: samples in front of stage 1..K, not all 0. going_on: of the samples that went through stage 1..K lately,
    the share that did not leave there. max_batch_size: the most that may go at once.
    """

    depths: tuple[int, ...]
    going_on: tuple[float, ...]
    max_batch_size: int

    def most(self, stage: int) -> int:
        """As many samples of stage 1..K as can go at once."""
        return min(self.depths[stage - 1], self.max_batch_size)

    def stages(self) -> Iterator[int]:
        """The stages where somebody waits, the deepest first."""
        return (stage for stage in range(len(self.depths), 0, -1) if self.depths[stage - 1])


@dataclass(frozen=True, slots=True)
class Choice:
    """The next step: the first `size` samples, at least 1, of those in front of `stage` (1..K)."""

    stage: int
    size: int


class Policy(Protocol):
    """Chooses the next step. The same answer to the same question: what there is to remember, the scheduler does."""

    @property
    def patience(self) -> int:
        """How often in a row those in front of a deeper stage are passed over at most; the scheduler sees to it."""
        ...

    def choose(self, waiting: Waiting) -> Choice:
        """The step to run where somebody waits."""
        ...


@dataclass(frozen=True)
class RunToCompletion:
    """A batch goes on to the end, less those who leave, before another is begun: nobody meets anybody on the way.

    That is the deepest stage first, to the step: since stage 1 comes last, all behind it are of one batch, and a larger
    one than goes at once there is not.
    """

    patience: int = 0

    def choose(self, waiting: Waiting) -> Choice:
        """The deepest stage where somebody waits, whoever they are."""
        stage = next(waiting.stages())
        return Choice(stage, waiting.most(stage))


@dataclass(frozen=True)
class FullestFirst:
    """The largest batch there is, of equal ones the deepest: good where a step takes the same whatever its batch."""

    patience: int = 16

    def choose(self, waiting: Waiting) -> Choice:
        """The stage whose next batch is the largest."""
        stage = max(waiting.stages(), key=waiting.most)
        return Choice(stage, waiting.most(stage))


@dataclass(frozen=True)
class FullFirst:
    """The deepest stage with a full batch; where there is none, the deepest. Needs no profile.

    While full batches of shallower stages pass, survivors of different batches meet and go on as one.
    """

    patience: int = 3

    def choose(self, waiting: Waiting) -> Choice:
        """The deepest full batch, or else the deepest one."""
        full = (stage for stage in waiting.stages() if waiting.depths[stage - 1] >= waiting.max_batch_size)
        stage = next(full, next(waiting.stages()))
        return Choice(stage, waiting.most(stage))


class CostModel:
    """The deepest stage whose step is efficient enough, by the measured cost of every step.

    A step over n samples is as efficient as n · c(full)/full : c(n), where c(n) is what it takes and `full` the
    largest batch that pays. Where a step costs the same per sample whatever its batch, every step is efficient, and
    this is deepest first; where it costs the same whatever its batch, only full ones are. How efficient is enough
    follows the work that waits: while there is little, time is not short, and whoever is nearly through goes first;
    once there is ENOUGH to keep the device at its best, only an EFFICIENT step will do. Where none is efficient enough,
    the deepest goes.

    That step waits for the batch behind it where both going on as one is worth it: where those who catch up are
    spared more, each of them the time saved, than CATCHING_UP lets those who wait lose for it. Few clients who ask
    anew when they are answered would else travel in small batches that never meet.

    Found by simulation, against other rules that weigh the wait of each sample: see docs/performance.md.
    """

    def __init__(self, profile: CostProfile, patience: int = 6) -> None:
        self.profile = profile
        self._patience = patience
        rows = [profile.table(stage) for stage in range(1, profile.num_stages + 1)]
        self._tables = rows
        self._full = tuple(_largest_that_pays(row, {*profile.batch_sizes, profile.max_batch_size}) for row in rows)
        self._sample_s = tuple(row[full] / full for row, full in zip(rows, self._full, strict=True))
        self._efficiency = tuple(
            (0.0, *((row[full] * n) / (full * row[n]) for n in range(1, full + 1)))
            for row, full in zip(rows, self._full, strict=True)
        )

    @property
    def patience(self) -> int:
        """See Policy."""
        return self._patience

    def choose(self, waiting: Waiting) -> Choice:
        """The deepest step that is as efficient as the work that waits asks for, or else the deepest."""
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
        assert deepest is not None, "a policy is asked only where somebody waits"
        return chosen or deepest

    def _may_catch_up(self, behind: Choice, ahead: Choice, going_on: tuple[float, ...]) -> bool:
        """Whether those ahead had better wait, so that what is left of those behind goes on with them."""
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
        """The efficiency to ask for, from the seconds of work that wait, those behind the next stage included."""
        to_go_s = waiting_s = 0.0
        for at in range(len(waiting.depths) - 1, -1, -1):
            to_go_s = self._sample_s[at] + waiting.going_on[at] * to_go_s
            waiting_s += waiting.depths[at] * to_go_s
        return EFFICIENT * min(1.0, (waiting_s / (ENOUGH * waiting.max_batch_size * to_go_s)) ** 2)


def _between(table: tuple[float, ...], samples: float) -> float:
    """The seconds of so many samples, of an expected number too, which need not be whole."""
    whole = int(samples)
    below_s = table[whole]
    return below_s if whole == samples else below_s + (samples - whole) * (table[whole + 1] - below_s)


def _largest_that_pays(row: tuple[float, ...], sizes: Set[int]) -> int:
    """The largest batch whose samples cost little more than in the best one; from some size on, memory may be short.

    sizes: what was measured. Between two of these, costs do not lie on a line where a runner fills batches up to the
    next size it has a network for: 25 would pay as much as 32, at every stage.
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
