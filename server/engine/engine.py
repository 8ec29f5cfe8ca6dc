"""Engine: the event loop's side. It takes samples in, hands them to the worker's thread, and delivers the answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from offramp.models.exit_policy import ExitReason, ExitRule
from offramp.server.engine.admission import Admission, EngineLoad
from offramp.server.engine.decide import Decision
from offramp.server.engine.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    EngineStopped,
    InferenceFailed,
    Overloaded,
    WarmUpFailed,
)
from offramp.server.engine.policies import DEFAULT_POLICY, Policy
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.promises.promises import Audit, Promises
from offramp.server.engine.request import Answer, Contract, ExitPlan, Sample
from offramp.server.engine.runners.runner import Runner
from offramp.server.engine.stats import AuditReport, BrownoutLevel, CancelStats, Observer, SampleStats
from offramp.server.engine.step_watch import HUNG_AFTER_S, StepWatch
from offramp.server.engine.wait_estimate import WaitEstimate
from offramp.server.engine.worker import EXPLAINED, Delivery, WarmUp, Worker

logger = logging.getLogger(__name__)

# A loaded machine runs full batches at most this many times slower than measured at the start.
SLOWDOWN = 2.0


class Engine:
    """Runs samples through the stages; each leaves at the first exit that its own contract allows.

    All public members belong to the event loop's thread. max_samples: in flight at once. max_wait_s: longest
    predicted wait of a sample that is taken in. policy: a name in `POLICIES`. promises: audits and brownout; None for
    neither. clock: monotonic seconds; deadlines are on it. hung_after_s: longest duration of a step, or 20 times the
    slowest measured step if that is longer; the engine ends after it.
    """

    def __init__(
        self,
        runner: Runner,
        observer: Observer,
        *,
        max_batch_size: int = 32,
        max_samples: int = 1024,
        max_wait_s: float = 5.0,
        policy: str = DEFAULT_POLICY,
        promises: Promises | None = None,
        clock: Callable[[], float] = time.monotonic,
        hung_after_s: float = HUNG_AFTER_S,
    ) -> None:
        self.clock = clock
        self._num_stages = runner.num_stages
        self._full_depth = Contract(ExitPlan(ExitRule.uniform(1.0, runner.num_stages)))
        self._observer = observer
        self._admission = Admission(max_samples, max_wait_s)
        self._promises = promises or Promises(runner.num_stages)
        self._watch = StepWatch(hung_after_s)
        self._worker = Worker(
            runner,
            max_batch_size,
            policy,
            self._watch,
            clock,
            on_warm=lambda profile: self._call(self._on_warm, profile),
            on_delivery=lambda delivery: self._call(self._deliver, delivery),
            on_death=lambda cause: self._call(self._on_death, cause),
        )
        # With the timer of its deadline.
        self._inflight: dict[Sample, asyncio.TimerHandle | None] = {}
        self._by_client: Counter[str] = Counter()
        self._wait_estimate = WaitEstimate()
        self._draining = False
        self._dead = False
        self._empty = asyncio.Event()

    def start(self, loop: asyncio.AbstractEventLoop, warm_up: WarmUp | None = None) -> asyncio.Future[None]:
        """Start the thread; answers are delivered on `loop`. warm_up: see `Worker`.

        The future is done when the engine is warm. It delivers WarmUpFailed for any error.
        """
        self._loop, self._warm = loop, loop.create_future()
        self._worker.start(warm_up)
        self._next_look = loop.call_later(self._watch.look_s, self._look)
        return self._warm

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._worker.alive and not self._dead

    @property
    def inflight_samples(self) -> int:
        """Samples that were taken in and have not left the engine."""
        return len(self._inflight)

    @property
    def queue_depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage."""
        return self._worker.queue_depths

    @property
    def policy(self) -> Policy:
        """The policy that chooses the next step."""
        return self._worker.policy

    @property
    def load(self) -> EngineLoad:
        """What the engine has to do."""
        return EngineLoad(len(self._inflight), len(self._by_client), self._wait_estimate.sample_s)

    def overload(self, num_pictures: int, client: str = "") -> Overloaded | None:
        """The error with which `submit` would refuse so many pictures of a client now; None if it has room."""
        return self._admission.refusal(num_pictures, self._by_client.get(client, 0), self.load)

    def submit(
        self,
        pictures: Sequence[npt.NDArray[np.uint8]],
        contract: Contract,
        client: str = "",
        deadline_s: float | None = None,
    ) -> list[asyncio.Future[Answer]]:
        """Take in uint8 (H, W, 3) pictures under one contract, all or none; returns one future for each, in order.

        deadline_s: on the engine's clock; None for none. The futures deliver an Answer, DeadlineExceeded or
        InferenceFailed. A cancelled one drops its sample before the next stage. Raises Overloaded or EngineStopped, and
        ValueError for more pictures than max_samples or a rule for a network of another depth.
        """
        self._admission.check_size(len(pictures))
        contract.check_depth(self._num_stages)
        if self._draining or not self.alive:
            raise EngineStopped(draining=self._draining)
        self._observe_wait()
        if overload := self.overload(len(pictures), client):
            raise overload
        now_s, plan, new_future = self.clock(), self._promises.choose(contract), self._loop.create_future
        samples = [Sample(picture, contract, plan, new_future(), now_s, deadline_s, client) for picture in pictures]
        self._promises.draw(samples)
        for sample in samples:
            self._inflight[sample] = self._deadline_timer(sample, now_s)
        self._by_client[client] += len(samples)
        self._worker.put(samples)
        return [sample.future for sample in samples]

    async def drain(self) -> None:
        """Answer all samples in flight, take in no more, end the thread."""
        self._draining = True
        if self._inflight:
            self._empty.clear()
            await self._empty.wait()
        self._worker.stop()
        if self._worker.alive:
            self._next_look.cancel()
            # A step that hangs never ends.
            if not self._watch.hangs:
                await asyncio.to_thread(self._worker.join)

    def _look(self) -> None:
        """Once a while: end if a step hangs, and let the brownout recover."""
        if not self.alive:
            return
        if self._watch.look():
            logger.critical("the engine died: a step has not ended for %g s", self._watch.hung_after_s)
            self._worker.stop()
            self._on_death(DeviceLost("a step does not end"))
            return
        self._observe_wait()
        self._next_look = self._loop.call_later(self._watch.look_s, self._look)

    def _observe_wait(self) -> None:
        wait_s, promises = self.load.wait_s, self._promises
        if promises.observe_wait(self.clock(), wait_s):
            logger.info("brownout level %d at a predicted wait of %.2f s", promises.level, wait_s)
            self._observer(BrownoutLevel(promises.level))

    # ---- results -------------------------------------------------------------------------------

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop's thread, from the worker's. A closed loop ends the worker."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, delivery: Delivery) -> None:
        """Answer all samples first, report afterwards: an error of the observer keeps no client waiting."""
        decision = delivery.decision
        outcomes: list[tuple[Sample, Answer | EngineError | None]] = [*decision.answers, *decision.failures]
        outcomes += [(sample, None) for sample in delivery.dropped]
        events: list[SampleStats | CancelStats] = []
        for sample, outcome in outcomes:
            self._forget(sample)
            if sample.future.cancelled():
                events.append(CancelStats("running" if sample.trail else "queued"))
            elif not sample.future.done():
                events += self._resolve(sample, outcome or self._late(sample))
        for step in delivery.steps:
            self._wait_estimate.add_step(step.duration_s)
        self._wait_estimate.add_departed(sum(not sample.low_priority for sample, _ in outcomes))
        if not self._inflight:
            self._empty.set()
        for event in (*delivery.steps, *events):
            self._observer(event)
        self._observe_wait()
        for sample, outcome in outcomes:
            audit, reports = self._promises.finish(sample, outcome if isinstance(outcome, Answer) else None)
            self._report(reports)
            if audit is not None and self.alive:
                self._compare_with_full_depth(audit)

    def _resolve(self, sample: Sample, outcome: Answer | EngineError) -> list[SampleStats]:
        """Set the future; returns the event, none for a sample without answer or without client."""
        if isinstance(outcome, EngineError):
            sample.future.set_exception(outcome)
            return []
        sample.future.set_result(outcome)
        if sample.low_priority:
            return []
        return [SampleStats(outcome.exit, outcome.reason, outcome.confidence, outcome.queue_s, outcome.latency_s)]

    def _compare_with_full_depth(self, audit: Audit) -> None:
        """Run an audited picture to full depth as a sample of low priority."""
        contract, future = self._full_depth, self._loop.create_future()

        def compare(future: asyncio.Future[Answer]) -> None:
            failed = future.exception() is not None
            self._report(self._promises.compare(audit, None if failed else future.result().class_id))

        future.add_done_callback(compare)
        self._worker.put([Sample(audit.picture_HWC, contract, contract.asked, future, self.clock(), low_priority=True)])

    def _report(self, reports: Iterable[AuditReport]) -> None:
        for report in reports:
            self._observer(report)

    def _deadline_timer(self, sample: Sample, now_s: float) -> asyncio.TimerHandle | None:
        if sample.deadline_s is None:
            return None
        return self._loop.call_later(max(0.0, sample.deadline_s - now_s), self._on_deadline, sample)

    def _on_deadline(self, sample: Sample) -> None:
        # The sample stays in flight until the worker drops it.
        if not sample.future.done():
            for event in self._resolve(sample, self._late(sample)):
                self._observer(event)

    def _late(self, sample: Sample) -> Answer | DeadlineExceeded:
        """The outcome at the deadline: the answer of the deepest exit so far."""
        if not sample.trail:
            return DeadlineExceeded("the deadline passed before the first exit was computed")
        return sample.answer(ExitReason.DEADLINE, self.clock())

    def _forget(self, sample: Sample) -> None:
        if sample not in self._inflight:
            return
        timer = self._inflight.pop(sample)
        if timer is not None:
            timer.cancel()
        self._by_client[sample.client] -= 1
        if not self._by_client[sample.client]:
            del self._by_client[sample.client]

    def _on_warm(self, profile: CostProfile | None) -> None:
        if profile:
            self._observer(profile)
            stages = range(1, profile.num_stages + 1)
            full_s = [profile.seconds(stage, profile.max_batch_size) for stage in stages]
            self._watch.allow(max(full_s))
            self._wait_estimate.max_s = SLOWDOWN * sum(full_s) / profile.max_batch_size
        if not self._warm.done():
            self._warm.set_result(None)

    def _on_death(self, cause: BaseException) -> None:
        """The thread has ended: all samples in flight fail."""
        self._dead = True
        if not self._warm.done():
            # Not the cause itself: some exceptions would end the event loop.
            message = str(cause) if isinstance(cause, EXPLAINED) else f"{type(cause).__name__}: {cause}"
            self._warm.set_exception(WarmUpFailed(message))
        failures: list[tuple[Sample, EngineError]] = [
            (sample, InferenceFailed("the engine died; the server's log says why")) for sample in self._inflight
        ]
        self._deliver(Delivery(Decision(failures=failures)))
