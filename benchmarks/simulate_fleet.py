"""The discrete-event simulator: the server's own scheduler and policies, on engines whose steps take profiled time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
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
    """What is simulated: engines, each behind an event loop that takes its requests in and gives its answers out.

    policy: makes one for an engine. request_s: what a request costs its event loop, one after another, half of it
    before the engine and half after; 0: nothing. sharing: the speed of step and event loop while both compute: 1
    where neither disturbs the other, 0.5 where they take turns on one core. step_s: of each step beyond the profile,
    such as scheduling. contended_s: besides, of each step that is begun while the event loop computes: it waits for
    the interpreter, and its threads for a core. max_inflight, max_wait_s: what an engine holds at most, and predicts
    at most; it refuses more.
    """

    profile: CostProfile
    policy: Callable[[CostProfile], Policy]
    max_batch_size: int
    engines: int = 1
    dispatch: Dispatch = "two-choices"
    request_s: float = 0.0
    sharing: float = 1.0
    step_s: float = 0.0
    contended_s: float = 0.0
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
    """One engine: its scheduler, what it runs now, the pace by which it predicts waits, and its event loop's work.

    now_s: how far it was followed. step_s, job_s: what is left of the running step and of the loop's first job, at
    full speed. ticket: of the event that it is due at; earlier ones are void.
    """

    __slots__ = (
        *("fleet", "inflight", "job_s", "jobs", "now_s", "pace", "running", "scheduler", "started_s", "step_s"),
        "ticket",
    )

    def __init__(self, fleet: Fleet) -> None:
        profile = fleet.profile
        self.fleet = fleet
        self.scheduler: Scheduler[SimulatedSample] = Scheduler(
            profile.num_stages, fleet.max_batch_size, fleet.policy(profile)
        )
        self.running: Batch[SimulatedSample] | None = None
        self.jobs: deque[tuple[SimulatedSample, bool]] = deque()
        self.now_s = self.started_s = self.step_s = self.job_s = 0.0
        self.pace = Pace()
        self.inflight = self.ticket = 0

    @property
    def overloaded(self) -> bool:
        """Whether one more sample would be refused."""
        fleet = self.fleet
        return self.inflight >= fleet.max_inflight or self.pace.wait_s(self.inflight) > fleet.max_wait_s

    @property
    def due_s(self) -> float | None:
        """When its step or its event loop's job ends, the sooner of them; None where it has nothing to do."""
        left_s = [*([self.step_s] if self.running else ()), *([self.job_s] if self.jobs else ())]
        return self.now_s + min(left_s) / self._speed if left_s else None

    @property
    def _speed(self) -> float:
        return self.fleet.sharing if self.running and self.jobs else 1.0

    def follow(self, now_s: float) -> None:
        """Let the time go on that long."""
        passed_s = (now_s - self.now_s) * self._speed
        self.step_s, self.job_s, self.now_s = self.step_s - passed_s, self.job_s - passed_s, now_s

    def add_job(self, sample: SimulatedSample, answered: bool) -> None:
        """Work for the event loop, behind what it has to do: take the sample in, or give its answer out."""
        if not self.jobs:
            self.job_s = self.fleet.request_s / 2.0
        self.jobs.append((sample, answered))

    def end_job(self) -> tuple[SimulatedSample, bool]:
        """The event loop's first job is done."""
        self.job_s = self.fleet.request_s / 2.0
        return self.jobs.popleft()

    def begin(self) -> int:
        """Take the next step up where there is any work and none is running; how many samples are in it."""
        if self.running is None and (batch := self.scheduler.schedule(self.now_s)):
            self.running, self.started_s = batch, self.now_s
            self.step_s = self.fleet.profile.seconds(batch.stage, len(batch.samples)) + self.fleet.step_s
            if self.jobs:
                self.step_s += self.fleet.contended_s
            return len(batch.samples)
        return 0

    def end_step(self) -> list[SimulatedSample]:
        """End the running step: those who leave; the others wait for the next stage."""
        batch = self.running
        assert batch is not None
        self.running = None
        leaving = [sample for sample in batch.samples if sample.exit <= batch.stage]
        if len(leaving) < len(batch.samples):
            going_on = [sample for sample in batch.samples if sample.exit > batch.stage]
            self.scheduler.enqueue(batch.stage + 1, going_on)
        self.inflight -= len(leaving)
        self.pace.learn(self.now_s - self.started_s, len(leaving))
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
        self._request_s = fleet.request_s
        self._events: list[tuple[float, int, SimulatedEngine]] = []
        self._tickets = count(1)
        self._asking: Iterator[int] = iter(())
        self._arrived_s = [0.0] * len(exits)
        self._latency_s = [float("nan")] * len(exits)
        self._steps = self._stepped = 0

    def open_loop(self, arrivals_s: npt.NDArray[np.float64]) -> Outcome:
        """Requests that arrive at their times, whatever answers take."""
        for number, at_s in enumerate(arrivals_s.tolist()):
            while self._events and self._events[0][0] <= at_s:
                self._next_event()
            self._arrive([number], at_s)
        return self._to_the_end()

    def closed_loop(self, clients: int) -> Outcome:
        """Clients who ask anew as soon as they are answered, until every sample was asked for. Refusals end clients."""
        self._asking = iter(range(len(self._exits)))
        self._arrive([*islice(self._asking, clients)], 0.0)
        return self._to_the_end()

    def _to_the_end(self) -> Outcome:
        while self._events:
            self._next_event()
        return Outcome(np.array(self._arrived_s), np.array(self._latency_s), self._stepped / max(1, self._steps))

    def _dispatched(
        self, fleet: Fleet, samples: int, random: np.random.Generator
    ) -> list[tuple[SimulatedEngine, SimulatedEngine]]:
        """Whom each request may go to: the less busy of the two takes it."""
        if fleet.dispatch == "round-robin":
            firsts = seconds = (np.arange(samples) % fleet.engines).tolist()
        else:
            firsts, seconds = random.integers(fleet.engines, size=(2, samples)).tolist()
        return [(self._engines[a], self._engines[b]) for a, b in zip(firsts, seconds, strict=True)]

    def _arrive(self, numbers: Sequence[int], now_s: float) -> None:
        """Requests that come at one time: those of one engine go into one step, where it has none to run."""
        engines: dict[SimulatedEngine, None] = {}
        for number in numbers:
            one, other = self._choices[number]
            engine = one if one.inflight <= other.inflight else other
            self._arrived_s[number] = now_s
            engine.follow(now_s)
            if engine.overloaded:
                continue
            engine.inflight += 1
            sample = SimulatedSample(number, self._exits[number], now_s)
            if self._request_s:
                engine.add_job(sample, answered=False)
            else:
                engine.scheduler.enqueue(1, (sample,))
            engines[engine] = None
        for engine in engines:
            self._go_on(engine)

    def _go_on(self, engine: SimulatedEngine) -> None:
        """Begin a step where there is one to begin, and tell when the engine is to be looked at again."""
        if samples := engine.begin():
            self._steps += 1
            self._stepped += samples
        if (due_s := engine.due_s) is not None:
            engine.ticket = next(self._tickets)
            heapq.heappush(self._events, (due_s, engine.ticket, engine))

    def _next_event(self) -> None:
        now_s, ticket, engine = heapq.heappop(self._events)
        if ticket != engine.ticket:
            return
        engine.follow(now_s)
        answered: list[SimulatedSample] = []
        if engine.running and not (engine.jobs and engine.job_s < engine.step_s):
            leaving = engine.end_step()
            if self._request_s:
                for sample in leaving:
                    engine.add_job(sample, answered=True)
            else:
                answered = leaving
        else:
            sample, done = engine.end_job()
            if done:
                answered = [sample]
            else:
                engine.scheduler.enqueue(1, (sample,))
        # Before those who were answered can ask anew: the engine waits for nobody.
        self._go_on(engine)
        for sample in answered:
            self._latency_s[sample.number] = now_s - sample.arrived_s
        self._arrive([*islice(self._asking, len(answered))], now_s)
