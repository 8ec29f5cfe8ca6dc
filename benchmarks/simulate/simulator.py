"""The discrete-event simulator: the server's own scheduler and policies, on engines whose steps take profiled time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from offramp.server.engine.policies import Policy
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.scheduler import Batch, Scheduler
from offramp.server.engine.wait_estimate import WaitEstimate


@dataclass(frozen=True)
class Fleet:
    """Engines, and how requests are divided among them.

    policy: makes the policy of one engine. dispatch: "two-choices" (the less busy of two) or "round-robin".
    max_inflight, max_wait_s: samples that an engine holds at most, and the longest wait it predicts; it refuses others.
    """

    profile: CostProfile
    policy: Callable[[CostProfile], Policy]
    max_batch_size: int
    engines: int = 1
    dispatch: str = "two-choices"
    max_inflight: int = 1024
    max_wait_s: float = 5.0


class SimulatedSample:
    """A request: its number, the exit at which it leaves, and when it arrived."""

    __slots__ = ("arrived_s", "exit", "number")

    deadline_s = None
    abandoned = spare = False

    def __init__(self, number: int, exit: int, arrived_s: float) -> None:
        self.number, self.exit, self.arrived_s = number, exit, arrived_s


class SimulatedEngine:
    """One engine: its scheduler, the running step with its start and end, and its estimate of waits."""

    __slots__ = ("due_s", "fleet", "inflight", "running", "scheduler", "started_s", "wait_estimate")

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.scheduler: Scheduler[SimulatedSample] = Scheduler(
            fleet.profile.num_stages, fleet.max_batch_size, fleet.policy(fleet.profile)
        )
        self.running: Batch[SimulatedSample] | None = None
        self.started_s = self.due_s = 0.0
        self.wait_estimate = WaitEstimate()
        self.inflight = 0

    @property
    def overloaded(self) -> bool:
        """Whether one more sample would be refused."""
        fleet = self.fleet
        return self.inflight >= fleet.max_inflight or self.wait_estimate.sample_s * self.inflight > fleet.max_wait_s

    def begin_step(self, now_s: float) -> int:
        """Begin the next step, if none runs and there is work. Returns the number of samples in it."""
        if self.running is None and (batch := self.scheduler.schedule(now_s)):
            self.running, self.started_s = batch, now_s
            self.due_s = now_s + self.fleet.profile.seconds(batch.stage, len(batch.samples))
            return len(batch.samples)
        return 0

    def end_step(self) -> list[SimulatedSample]:
        """End the running step. Returns the samples that leave; the others wait for the next stage."""
        batch = self.running
        assert batch is not None
        self.running = None
        leaving = [sample for sample in batch.samples if sample.exit <= batch.stage]
        if len(leaving) < len(batch.samples):
            self.scheduler.enqueue(batch.stage + 1, [s for s in batch.samples if s.exit > batch.stage])
        self.inflight -= len(leaving)
        self.wait_estimate.add_step(self.due_s - self.started_s)
        self.wait_estimate.add_left(len(leaving))
        return leaving


@dataclass(frozen=True)
class SimulationResult:
    """One run, by request. arrived_s: at the engine. latency_s: NaN where it was refused."""

    arrived_s: npt.NDArray[np.float64]
    latency_s: npt.NDArray[np.float64]
    mean_batch: float


class Simulation:
    """One run of a fleet over samples that leave at the given exits: the ends of steps in the order of their time."""

    def __init__(self, fleet: Fleet, exits: npt.NDArray[np.int64], random: np.random.Generator) -> None:
        self._engines = [SimulatedEngine(fleet) for _ in range(fleet.engines)]
        self._exits: list[int] = exits.tolist()
        self._choices = self._dispatch(fleet, len(exits), random)
        self._ends: list[tuple[float, int, SimulatedEngine]] = []
        self._numbers = count(1)
        self._asking: Iterator[int] = iter(())
        self._arrived_s = [0.0] * len(exits)
        self._latency_s = [float("nan")] * len(exits)
        self._steps = self._step_samples = 0

    def open_loop(self, arrivals_s: npt.NDArray[np.float64]) -> SimulationResult:
        """Requests that arrive at their times, independently of the answers."""
        for number, at_s in enumerate(arrivals_s.tolist()):
            while self._ends and self._ends[0][0] <= at_s:
                self._end_next_step()
            self._arrive([number], at_s)
        return self._finish()

    def closed_loop(self, clients: int) -> SimulationResult:
        """Clients that send the next request when they are answered, until all are sent. A refusal ends a client."""
        self._asking = iter(range(len(self._exits)))
        self._arrive([*islice(self._asking, clients)], 0.0)
        return self._finish()

    def _finish(self) -> SimulationResult:
        while self._ends:
            self._end_next_step()
        mean_batch = self._step_samples / max(1, self._steps)
        return SimulationResult(np.array(self._arrived_s), np.array(self._latency_s), mean_batch)

    def _dispatch(
        self, fleet: Fleet, samples: int, random: np.random.Generator
    ) -> list[tuple[SimulatedEngine, SimulatedEngine]]:
        """Two engines for each request; the less busy of them takes it."""
        if fleet.dispatch == "round-robin":
            firsts = seconds = (np.arange(samples) % fleet.engines).tolist()
        else:
            firsts, seconds = random.integers(fleet.engines, size=(2, samples)).tolist()
        return [(self._engines[a], self._engines[b]) for a, b in zip(firsts, seconds, strict=True)]

    def _arrive(self, numbers: Sequence[int], now_s: float) -> None:
        """Requests that arrive at one time: those of one idle engine go into one step."""
        engines: dict[SimulatedEngine, None] = {}
        for number in numbers:
            first, second = self._choices[number]
            engine = first if first.inflight <= second.inflight else second
            self._arrived_s[number] = now_s
            if engine.overloaded:
                continue
            engine.inflight += 1
            engine.scheduler.enqueue(1, (SimulatedSample(number, self._exits[number], now_s),))
            engines[engine] = None
        for engine in engines:
            self._begin_step(engine, now_s)

    def _begin_step(self, engine: SimulatedEngine, now_s: float) -> None:
        if samples := engine.begin_step(now_s):
            self._steps += 1
            self._step_samples += samples
            heapq.heappush(self._ends, (engine.due_s, next(self._numbers), engine))

    def _end_next_step(self) -> None:
        now_s, _, engine = heapq.heappop(self._ends)
        leaving = engine.end_step()
        # Before the answered clients send their next requests: the engine does not wait for them.
        self._begin_step(engine, now_s)
        for sample in leaving:
            self._latency_s[sample.number] = now_s - sample.arrived_s
        self._arrive([*islice(self._asking, len(leaving))], now_s)
