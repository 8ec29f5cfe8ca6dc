"""Worker: the engine's thread. It owns the scheduler and the runner, and runs one step after another."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from offramp.server.engine.decide import Decision, decide
from offramp.server.engine.errors import DeviceLost, EngineError, InferenceFailed
from offramp.server.engine.fair_queue import FairQueue
from offramp.server.engine.policies import POLICIES, Policy
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.request import Sample
from offramp.server.engine.runners.runner import Runner
from offramp.server.engine.scheduler import Batch, Scheduler
from offramp.server.engine.stats import StepStats
from offramp.server.engine.step_watch import ENGINE_THREAD, StepWatch

logger = logging.getLogger(__name__)

# Full batches of new samples in the scheduler. Others wait for the turn of their client.
BATCHES_AHEAD = 2

# Errors of the warm-up whose message says what is wrong and what to do.
EXPLAINED = (ValueError, EngineError)

WarmUp = Callable[[], CostProfile | None]


@dataclass
class Delivery:
    """Results for the event loop. decision: of the last step. dropped: samples that did not run.

    steps: all steps since the delivery before.
    """

    decision: Decision
    dropped: list[Sample] = field(default_factory=list)
    steps: list[StepStats] = field(default_factory=list)


class Worker:
    """Runs samples on a thread of its own.

    warm_up: the first work of the thread, since a library may bind what it builds to the thread that uses it. It
    returns the measured costs of the steps. on_warm, on_delivery, on_death: called on the thread, with the costs, with
    the results of a step, and with the error that ended the thread.
    """

    def __init__(
        self,
        runner: Runner,
        max_batch_size: int,
        policy: str,
        watch: StepWatch,
        clock: Callable[[], float],
        *,
        on_warm: Callable[[CostProfile | None], None],
        on_delivery: Callable[[Delivery], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._runner, self._watch, self._clock = runner, watch, clock
        self._on_warm, self._on_delivery, self._on_death = on_warm, on_delivery, on_death
        self._thread = threading.Thread(target=self._run_until_stopped, name=ENGINE_THREAD, daemon=True)
        self._make_policy = POLICIES[policy]
        self._scheduler: Scheduler[Sample] = Scheduler(runner.num_stages, max_batch_size)
        # New samples in front of the scheduler, which gets as many as its next batches need.
        self._arrived: FairQueue[Sample] = FairQueue()
        self._steps: list[StepStats] = []
        # Shared with the event loop's thread, under `_wake`.
        self._wake = threading.Condition()
        self._inbox: deque[Sample] = deque()
        self._stopping = False

    # ---- for the event loop's thread -----------------------------------------------------------

    def start(self, warm_up: WarmUp | None) -> None:
        """Start the thread."""
        self._warm_up = warm_up
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def policy(self) -> Policy:
        """The policy that chooses the next step."""
        return self._scheduler.policy

    @property
    def queue_depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage, those in the inbox included."""
        first, *deeper = self._scheduler.depths
        return (len(self._inbox) + len(self._arrived) + first, *deeper)

    def put(self, samples: Sequence[Sample]) -> None:
        """Hand over new samples."""
        with self._wake:
            self._inbox.extend(samples)
            self._wake.notify()

    def stop(self) -> None:
        """End after the running step."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self.alive:
            self._thread.join()

    # ---- the thread ----------------------------------------------------------------------------

    def _run_until_stopped(self) -> None:
        warm = False
        try:
            profile = self._warm_up() if self._warm_up else None
            if profile:
                self._scheduler.policy = self._make_policy(profile)
                self._scheduler.step_s = profile.seconds
            self._on_warm(profile)
            warm = True
            while self._take_in():
                self.step()
        except BaseException as cause:
            if isinstance(cause, DeviceLost):
                logger.critical("the engine died: %s", cause)
            elif warm or not isinstance(cause, EXPLAINED):
                logger.critical("the engine died", exc_info=True)
            with contextlib.suppress(RuntimeError):  # The event loop is closed.
                self._on_death(cause)

    def _take_in(self) -> bool:
        """Move new samples into the first queue. Waits if there is nothing to do. Returns False to end."""
        scheduler, arrived = self._scheduler, self._arrived
        with self._wake:
            while not (self._inbox or self._stopping or arrived) and scheduler.empty:
                self._wake.wait()
            inbox, self._inbox = self._inbox, deque()
            stopping = self._stopping
        for sample in inbox:
            if sample.low_priority:
                scheduler.enqueue(1, [sample])
            else:
                arrived.append(sample.client, sample)
        room = BATCHES_AHEAD * scheduler.max_batch_size - scheduler.depths[0]
        scheduler.enqueue(1, [arrived.popleft() for _ in range(min(room, len(arrived)))])
        return not stopping

    def step(self) -> None:
        """Schedule, run, decide, deliver.

        A step without answers is delivered with a later one: to wake the event loop costs both threads a turn with the
        interpreter's lock.
        """
        batch = self._scheduler.schedule(self._clock())
        if batch is None:
            return
        decision = self._run(batch) if batch.samples else Decision()
        self._scheduler.enqueue(batch.stage + 1, decision.survivors)
        if decision.answers or decision.failures or batch.dropped:
            steps, self._steps = self._steps, []
            self._on_delivery(Delivery(decision, batch.dropped, steps))

    def _run(self, batch: Batch[Sample]) -> Decision:
        start_s = self._clock()
        self._watch.begin()
        decision = self._run_apart(batch.stage, batch.samples)
        self._watch.end()
        self._steps.append(StepStats(batch.stage, len(batch.samples), self._clock() - start_s))
        return decision

    def _run_apart(self, stage: int, samples: list[Sample]) -> Decision:
        """One step. If it fails, each sample runs alone, so that a bad sample harms no other."""
        try:
            return self._run_together(stage, samples)
        except DeviceLost:
            raise
        except Exception:
            if self._watch.may_log(self._clock()):
                logger.exception("a step of stage %d over %d samples failed", stage, len(samples))
        if len(samples) == 1:
            return Decision(failures=[(samples[0], InferenceFailed(f"stage {stage} failed for this picture"))])
        return sum((self._run_apart(stage, [sample]) for sample in samples), start=Decision())

    def _run_together(self, stage: int, samples: list[Sample]) -> Decision:
        start_s = self._clock()
        output = self._runner.run(stage, [sample.state for sample in samples])
        decision = decide(stage, samples, output, start_s, self._clock())
        self._watch.succeed()
        return decision
