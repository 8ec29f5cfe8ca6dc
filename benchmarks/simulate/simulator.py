"""The discrete-event simulator: the server's own scheduler on one engine, whose steps take the profile's time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from offramp.server.engine.policies import Policy
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.scheduler import Batch, Scheduler
from offramp.server.engine.wait_estimate import WaitEstimate


@dataclass(eq=False, slots=True)
class SimulatedSample:
    """A request with one picture. number: its index in the run. exit: where it leaves."""

    number: int
    exit: int
    arrived_s: float

    deadline_s = None
    abandoned = low_priority = False


@dataclass(frozen=True)
class SimulationResult:
    """One run, by request. latency_s: NaN where the request was refused. mean_batch: samples in a step."""

    arrived_s: npt.NDArray[np.float64]
    latency_s: npt.NDArray[np.float64]
    mean_batch: float


class Simulation:
    """One run of one engine.

    exits: the exit 1..K of each request. max_wait_s: longest predicted wait; the engine refuses a request beyond it.
    """

    def __init__(
        self, profile: CostProfile, policy: Policy, exits: Sequence[int], max_wait_s: float = math.inf
    ) -> None:
        self._profile, self._exits, self._max_wait_s = profile, exits, max_wait_s
        self._scheduler = Scheduler[SimulatedSample](profile.num_stages, profile.max_batch_size, policy)
        self._wait_estimate = WaitEstimate()
        self._inflight = 0
        self._running: Batch[SimulatedSample] | None = None
        self._step_s, self._end_s = 0.0, math.inf
        self._batch_sizes: list[int] = []
        self._unsent: Iterator[int] = iter(())
        self._arrived_s = np.zeros(len(exits))
        self._latency_s = np.full(len(exits), math.nan)

    def open_loop(self, arrivals_s: npt.NDArray[np.float64]) -> SimulationResult:
        """Requests arrive at these rising times, whatever the answers."""
        for number, at_s in enumerate(arrivals_s.tolist()):
            while self._end_s <= at_s:
                self._end_step()
            self._arrive([number], at_s)
        return self._finish()

    def closed_loop(self, clients: int) -> SimulationResult:
        """Each client sends its next request when it has its answer. A refused client sends no more."""
        self._unsent = iter(range(len(self._exits)))
        self._arrive([*islice(self._unsent, clients)], 0.0)
        return self._finish()

    def _finish(self) -> SimulationResult:
        while self._running:
            self._end_step()
        mean_batch = sum(self._batch_sizes) / max(1, len(self._batch_sizes))
        return SimulationResult(self._arrived_s, self._latency_s, mean_batch)

    def _arrive(self, numbers: Sequence[int], now_s: float) -> None:
        """Requests that arrive together at an idle engine run in one step."""
        for number in numbers:
            self._arrived_s[number] = now_s
            if self._wait_estimate.sample_s * self._inflight <= self._max_wait_s:
                self._inflight += 1
                self._scheduler.enqueue(1, (SimulatedSample(number, self._exits[number], now_s),))
        self._begin_step(now_s)

    def _begin_step(self, now_s: float) -> None:
        if self._running is None and (batch := self._scheduler.schedule(now_s)):
            self._running, self._step_s = batch, self._profile.seconds(batch.stage, len(batch.samples))
            self._end_s = now_s + self._step_s
            self._batch_sizes.append(len(batch.samples))

    def _end_step(self) -> None:
        batch, now_s = self._running, self._end_s
        assert batch is not None
        self._running, self._end_s = None, math.inf
        leaving = [sample for sample in batch.samples if sample.exit <= batch.stage]
        if len(leaving) < len(batch.samples):
            self._scheduler.enqueue(batch.stage + 1, [s for s in batch.samples if s.exit > batch.stage])
        self._inflight -= len(leaving)
        self._wait_estimate.add_step(self._step_s)
        self._wait_estimate.add_departed(len(leaving))
        # The engine does not wait for the next requests of the clients that it answers now.
        self._begin_step(now_s)
        for sample in leaving:
            self._latency_s[sample.number] = now_s - sample.arrived_s
        self._arrive([*islice(self._unsent, len(leaving))], now_s)
