"""Fakes for the engine's tests: a runner that follows a script, a clock that is set, and an event loop on it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp.models.exit_policy import ExitRule
from offramp.server.engine.engine import Engine
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.request import Contract, ExitPlan
from offramp.server.engine.runners.runner import StepOutput
from offramp.server.engine.stats import AuditReport, BrownoutLevel, CancelStats, Event, SampleStats, StepStats

NUM_STAGES = 4
NUM_CLASSES = 10
NEVER_SURE = (0.3, 0.4, 0.5, 0.6)


def picture(name: int) -> np.ndarray:
    """A picture whose only pixel says which it is."""
    return np.full((1, 1, 3), name, np.uint8)


def contract(threshold: float = 0.9, **bounds: int) -> Contract:
    return Contract(ExitPlan(ExitRule.uniform(threshold, NUM_STAGES, **bounds)))


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers are due by the given clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.now_s


def on_clock(clock: Clock, story: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=lambda: ClockLoop(clock)) as runner:
        return runner.run(story)


@dataclass(eq=False)
class Carried:
    """What a sample carries behind a stage."""

    name: int
    stage: int


@dataclass
class ScriptedRunner:
    """Gives picture n the class n and, at each exit, the confidence its script says.

    gated: every step waits until `let` allows it. faults: called with (stage, names) inside each step; raises what
    it likes. step_s: how far a step moves the clock. full_depth: the class at the last exit, where it is another.
    """

    script: Mapping[int, Sequence[float]] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    gated: bool = False
    faults: Callable[[int, list[int]], object] = lambda stage, names: None
    step_s: float = 0.25
    num_stages: int = NUM_STAGES
    full_depth: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps: list[tuple[int, list[int]]] = []
        self.materialised: list[tuple[int, int]] = []
        self._entered: queue.SimpleQueue[tuple[int, list[int]]] = queue.SimpleQueue()
        self._gate = threading.Semaphore(0)

    async def entered(self) -> tuple[int, list[int]]:
        """The next step that the engine has begun: its stage and pictures."""
        return await asyncio.to_thread(self._entered.get, timeout=60)

    def let(self, steps: int = 1) -> None:
        self._gate.release(steps)

    def let_all(self) -> None:
        self.gated = False
        self._gate.release(1000)

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        if stage == 1:
            names = [int(state[0, 0, 0]) for state in states]
        else:
            assert all(state.stage == stage - 1 for state in states), "a sample came with another stage's state"
            names = [state.name for state in states]
        self.steps.append((stage, names))
        self._entered.put((stage, names))
        if self.gated:
            self._gate.acquire()
        self.clock.now_s += self.step_s
        self.faults(stage, names)
        probabilities_BC = np.zeros((len(names), NUM_CLASSES), np.float32)
        for row, name in enumerate(names):
            confidence = self.script.get(name, NEVER_SURE)[stage - 1]
            probabilities_BC[row] = (1 - confidence) / (NUM_CLASSES - 1)
            class_id = self.full_depth.get(name, name) if stage == self.num_stages else name
            probabilities_BC[row, class_id % NUM_CLASSES] = confidence

        def keep(rows: Sequence[int]) -> list[Carried]:
            self.materialised += [(stage, names[row]) for row in rows]
            return [Carried(names[row], stage) for row in rows]

        return StepOutput(probabilities_BC, keep)

    def warm_up(self, max_batch_size: int) -> None:
        pass


@dataclass
class Recorder:
    """An observer that records every event."""

    events: list[Event] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.called.set()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def profiles(self) -> list[CostProfile]:
        return self.of(CostProfile)

    @property
    def steps(self) -> list[StepStats]:
        return self.of(StepStats)

    @property
    def samples(self) -> list[SampleStats]:
        return self.of(SampleStats)

    @property
    def cancels(self) -> list[CancelStats]:
        return self.of(CancelStats)

    @property
    def audits(self) -> list[AuditReport]:
        return self.of(AuditReport)

    @property
    def levels(self) -> list[int]:
        return [event.level for event in self.of(BrownoutLevel)]

    async def until_audited(self, number: int) -> None:
        while len(self.audits) < number:
            self.called.clear()
            await self.called.wait()

    async def until_cancelled(self, number: int) -> None:
        while len(self.cancels) < number:
            self.called.clear()
            await self.called.wait()


@asynccontextmanager
async def started(
    runner: ScriptedRunner, observer: Recorder, warm_up: Callable[[], CostProfile] | None = None, **options: Any
) -> AsyncIterator[Engine]:
    """An engine that runs, drained at the end."""
    engine = Engine(runner, observer, clock=runner.clock, **options)
    engine.start(asyncio.get_running_loop(), warm_up)
    try:
        yield engine
    finally:
        runner.let_all()
        await engine.drain()
