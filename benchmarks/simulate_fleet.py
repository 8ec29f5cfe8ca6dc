"""The discrete-event simulator: the server's own scheduler and policies, on engines whose steps take profiled time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from server.engine.pace import Pace
from server.engine.policies import Policy
from server.engine.profile import CostProfile
from server.engine.scheduler import Batch, Scheduler

Dispatch = Literal["two-choices", "round-robin"]


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    policy: makes one for an engine. request_s: what a request costs in HTTP. shared_cores: whether on the cores
    of the engine, which then computes the later, or on others. step_s: of each step beyond the profile, such as
    scheduling and handing over. max_inflight, max_wait_s: what an engine holds at most, and predicts at most; it
    refuses more.
    """

    profile: CostProfile
    policy: Callable[[CostProfile], Policy]
    max_batch_size: int
    engines: int = 1
    dispatch: Dispatch = "two-choices"
    request_s: float = 0.0
    shared_cores: bool = False
    step_s: float = 0.0
    max_inflight: int = 1024
    max_wait_s: float = 5.0


@dataclass(frozen=True)
class NoDeadline:
    """The contract of every simulated sample."""

    deadline_s: float | None = None


NO_DEADLINE = NoDeadline()


class SimulatedSample:
    """A request: its number, the exit it will leave at, and when it arrived."""

    __slots__ = ("arrived_s", "exit", "number")

    contract = NO_DEADLINE
    abandoned = False

    def __init__(self, number: int, exit: int, arrived_s: float) -> None:
        self.number, self.exit, self.arrived_s = number, exit, arrived_s


class SimulatedEngine:
    """One engine: its scheduler, what it runs now, and the pace by which it predicts waits, as the server's does."""

    __slots__ = ("fleet", "inflight", "owed_s", "pace", "running", "scheduler", "started_s")

    def __init__(self, fleet: Fleet) -> None:
        profile = fleet.profile
        self.fleet = fleet
        self.scheduler: Scheduler[SimulatedSample] = Scheduler(
            profile.num_stages, fleet.max_batch_size, fleet.policy(profile)
        )
        self.running: Batch[SimulatedSample] | None = None
        self.started_s = self.owed_s = 0.0
        self.pace = Pace()
        self.inflight = 0

    @property
    def overloaded(self) -> bool:
        """Whether one more sample would be refused."""
        fleet = self.fleet
        return self.inflight >= fleet.max_inflight or self.pace.wait_s(self.inflight) > fleet.max_wait_s

    def admit(self, sample: SimulatedSample) -> None:
        """Take a sample in. On shared cores, its HTTP work holds up the next step."""
        self.inflight += 1
        if self.fleet.shared_cores:
            self.owed_s += self.fleet.request_s
        self.scheduler.enqueue(1, (sample,))

    def begin(self, now_s: float) -> float:
        """Begin the next step where there is one: seconds that it takes, or 0."""
        self.running = batch = self.scheduler.schedule(now_s)
        if batch is None:
            return 0.0
        self.started_s = now_s
        duration_s = self.fleet.profile.seconds(batch.stage, len(batch.samples)) + self.fleet.step_s + self.owed_s
        self.owed_s = 0.0
        return duration_s

    def finish(self, now_s: float) -> list[SimulatedSample]:
        """End the running step: those who leave; the others wait for the next stage."""
        batch = self.running
        assert batch is not None
        stage = batch.stage
        leaving = [sample for sample in batch.samples if sample.exit <= stage]
        if len(leaving) < len(batch.samples):
            self.scheduler.enqueue(stage + 1, [sample for sample in batch.samples if sample.exit > stage])
        self.inflight -= len(leaving)
        self.pace.learn(now_s - self.started_s, len(leaving))
        return leaving


@dataclass(frozen=True)
class Outcome:
    """One simulated run, by request. arrived_s: at the engine. latency_s: NaN where it was refused."""

    arrived_s: npt.NDArray[np.float64]
    latency_s: npt.NDArray[np.float64]
    mean_batch: float


class Simulation:
    """One run of a fleet over samples that leave at the given exits: events in the order of their time."""

    def __init__(self, fleet: Fleet, exits: npt.NDArray[np.int64], random: np.random.Generator) -> None:
        self._engines = [SimulatedEngine(fleet) for _ in range(fleet.engines)]
        self._exits: list[int] = exits.tolist()
        self._choices = self._dispatched(fleet, len(exits), random)
        # Beside the engine's cores, HTTP only delays answers.
        self._delay_s = 0.0 if fleet.shared_cores else fleet.request_s
        self._ends: list[tuple[float, int, SimulatedEngine]] = []
        self._arrived_s = [0.0] * len(exits)
        self._latency_s = [float("nan")] * len(exits)
        self._steps = self._stepped = 0

    def open_loop(self, arrivals_s: npt.NDArray[np.float64]) -> Outcome:
        """Requests that arrive at their times, whatever answers take."""
        for number, at_s in enumerate(arrivals_s.tolist()):
            while self._ends and self._ends[0][0] <= at_s:
                self._end_step()
            self._arrive(number, at_s)
        while self._ends:
            self._end_step()
        return self._outcome()

    def closed_loop(self, clients: int) -> Outcome:
        """Clients who ask anew as soon as they are answered, until every sample was asked for. Refusals end clients."""
        numbers = iter(range(len(self._exits)))
        due = deque((0.0, number) for number in islice(numbers, clients))
        while due or self._ends:
            if due and not (self._ends and self._ends[0][0] <= due[0][0]):
                at_s, number = due.popleft()
                self._arrive(number, at_s)
                continue
            end_s, answered = self._end_step()
            # Every answer takes the same way back, so that `due` stays in order.
            due.extend((end_s + self._delay_s, number) for number in islice(numbers, answered))
        return self._outcome()

    def _dispatched(
        self, fleet: Fleet, samples: int, random: np.random.Generator
    ) -> list[tuple[SimulatedEngine, SimulatedEngine]]:
        """Whom each request may go to: the less busy of the two takes it."""
        if fleet.dispatch == "round-robin":
            firsts = seconds = (np.arange(samples) % fleet.engines).tolist()
        else:
            firsts, seconds = random.integers(fleet.engines, size=(2, samples)).tolist()
        return [(self._engines[a], self._engines[b]) for a, b in zip(firsts, seconds, strict=True)]

    def _arrive(self, number: int, now_s: float) -> None:
        one, other = self._choices[number]
        engine = one if one.inflight <= other.inflight else other
        self._arrived_s[number] = now_s
        if engine.overloaded:
            return
        engine.admit(SimulatedSample(number, self._exits[number], now_s))
        if engine.running is None:
            self._begin(engine, now_s)

    def _begin(self, engine: SimulatedEngine, now_s: float) -> None:
        if duration_s := engine.begin(now_s):
            assert engine.running is not None
            self._steps += 1
            self._stepped += len(engine.running.samples)
            heapq.heappush(self._ends, (now_s + duration_s, self._steps, engine))

    def _end_step(self) -> tuple[float, int]:
        """The next step to end: when, and how many it answered."""
        now_s, _, engine = heapq.heappop(self._ends)
        leaving = engine.finish(now_s)
        for sample in leaving:
            self._latency_s[sample.number] = now_s - sample.arrived_s + self._delay_s
        self._begin(engine, now_s)
        return now_s, len(leaving)

    def _outcome(self) -> Outcome:
        return Outcome(np.array(self._arrived_s), np.array(self._latency_s), self._stepped / max(1, self._steps))
