"""Engine: one thread that owns scheduler and runner; samples in from the event loop, answers back to it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.exit_policy import ExitReason
from server.engine.admission import Admission, Load
from server.engine.audit import AuditStats
from server.engine.decide import Decision, agrees, compare, decide
from server.engine.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    EngineStopped,
    InferenceFailed,
    Overloaded,
    WarmUpFailed,
)
from server.engine.fair_queue import FairQueue
from server.engine.keeper import Keeper
from server.engine.pace import Pace
from server.engine.policies import DEFAULT_POLICY, POLICIES, Policy
from server.engine.profile import CostProfile
from server.engine.request import Answer, Contract, Sample
from server.engine.runners.runner import Runner
from server.engine.scheduler import Batch, Scheduler
from server.engine.stats import CancelStats, Observer, SampleStats, StepStats
from server.engine.step_watch import ENGINE_THREAD, HUNG_AFTER_S, StepWatch

logger = logging.getLogger(__name__)

# Full batches of new samples that the scheduler sees; the others wait for their client's turn.
BATCHES_AHEAD = 2
# A loaded machine runs full batches so many times slower than was measured at the start, at most.
SLOWDOWN = 2.0

# Raised while warming up, they say all there is to know: what is wrong and what to do.
SENTENCES = (ValueError, EngineError)


@dataclass(frozen=True)
class Delivery:
    """All that one step hands to the event loop, in one go.

    stats: of the steps since the delivery before, this one included. compared: what an audit's step found.
    """

    decision: Decision
    dropped: list[Sample]
    stats: list[StepStats]
    compared: list[AuditStats] = field(default_factory=list)


class Engine:
    """Runs samples through the stages, each out at the first exit its own contract allows.

    All public members belong to the event loop's thread. max_samples: in flight at once. max_wait_s: longest
    predicted wait at which a sample is still taken in. policy: a name in `POLICIES`. keeper: audits and brownout;
    None for neither. clock: monotonic seconds; deadlines are on it. hung_after_s: longest that a step may take, or
    20 times the slowest measured where that is more; then the engine ends.
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
        keeper: Keeper | None = None,
        clock: Callable[[], float] = time.monotonic,
        hung_after_s: float = HUNG_AFTER_S,
    ) -> None:
        self.clock = clock
        self._admission = Admission(max_samples, max_wait_s)
        self._num_stages = runner.num_stages
        self._thread = threading.Thread(target=self._run_until_stopped, name=ENGINE_THREAD, daemon=True)
        self._make_policy = POLICIES[policy]
        # The engine thread's own.
        self._runner = runner
        self._scheduler: Scheduler[Sample] = Scheduler(runner.num_stages, max_batch_size)
        # In front of the scheduler, which gets as many as its first batches need.
        self._arrived: FairQueue[Sample] = FairQueue()
        self._unreported: list[StepStats] = []
        # Shared, without a lock: each number has one writer.
        self._watch = StepWatch(hung_after_s)
        # Shared, under `_wake`.
        self._wake = threading.Condition()
        self._inbox: deque[Sample] = deque()
        self._stopping = False
        # The event loop's own.
        self._observer = observer
        self._inflight: dict[Sample, asyncio.TimerHandle | None] = {}
        self._by_client: Counter[str] = Counter()
        self._draining = False
        self._dead = False
        self._emptied = asyncio.Event()
        self._pace = Pace()
        self._keeper = keeper or Keeper(runner.num_stages)

    # ---- the event loop's side -----------------------------------------------------------------

    def start(
        self, loop: asyncio.AbstractEventLoop, warm_up: Callable[[], CostProfile | None] | None = None
    ) -> asyncio.Future[None]:
        """Start the thread; answers are delivered on `loop`.

        warm_up: the thread's first work, since what a library builds up on first use may belong to the thread that
        uses it. It gives what steps cost, for the policies that decide by that. The future is done when the engine is
        warm, or delivers WarmUpFailed, whatever was raised.
        """
        self._loop, self._warm_up, self._warm = loop, warm_up, loop.create_future()
        self._thread.start()
        self._next_look = loop.call_later(self._watch.look_s, self._look)
        return self._warm

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._dead

    @property
    def inflight_samples(self) -> int:
        """Samples taken in that the engine has not let go of yet."""
        return len(self._inflight)

    @property
    def queue_depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage, those not yet seen by the engine thread included."""
        first, *deeper = self._scheduler.depths
        return (len(self._inbox) + len(self._arrived) + first, *deeper)

    @property
    def policy(self) -> Policy:
        """What decides which step is run next."""
        return self._scheduler.policy

    @property
    def predicted_wait_s(self) -> float:
        """What a new sample would wait for those before it, at the present pace."""
        return self._pace.wait_s(len(self._inflight))

    @property
    def load(self) -> Load:
        """What the engine has in hand."""
        return Load(len(self._inflight), len(self._by_client), self._pace.sample_s)

    def overload(self, num_pictures: int, client: str = "") -> Overloaded | None:
        """How `submit` would refuse so many pictures of a client now; None where it has room for them.

        For callers who have work to do before they can submit, and would rather refuse than do it in vain.
        """
        self._feel(self.predicted_wait_s)
        return self._admission.refusal(num_pictures, self._by_client.get(client, 0), self.load)

    def submit(
        self, pictures: Sequence[npt.NDArray[np.uint8]], contract: Contract, client: str = ""
    ) -> list[asyncio.Future[Answer]]:
        """Take in uint8 (H, W, 3) pictures under one contract, all or none; one future each, in order.

        The futures deliver an Answer, DeadlineExceeded or InferenceFailed. Cancelling one drops its sample at
        the next stage boundary. Raises Overloaded or EngineStopped at once, and ValueError for what could never
        be taken in: more pictures than max_samples, a rule for a network of another depth.
        """
        max_samples = self._admission.max_samples
        if len(pictures) > max_samples:
            raise ValueError(
                f"{len(pictures)} pictures at once are out of range: this engine holds at most {max_samples}; "
                "send fewer, or raise --max-queue"
            )
        contract.check_depth(self._num_stages)
        if self._draining or not self.alive:
            raise EngineStopped(draining=self._draining)
        if overload := self.overload(len(pictures), client):
            raise overload
        now_s = self.clock()
        rung, asked = self._keeper.in_force(contract), contract.rule
        if rung:
            rule, promise = contract.rung(rung)
            contract = replace(contract, rule=rule, promise=promise)
        samples = [
            Sample(picture, contract, self._loop.create_future(), now_s, client, rung=rung, asked=asked)
            for picture in pictures
        ]
        for sample in samples:
            # What a bound on depth cuts short is no answer that full depth could confirm.
            if contract.rule.max_exit == self._num_stages:
                sample.audited = self._keeper.pick()
            self._inflight[sample] = self._deadline_timer(sample, now_s)
        self._by_client[client] += len(samples)
        with self._wake:
            self._inbox.extend(samples)
            self._wake.notify()
        return [sample.future for sample in samples]

    async def drain(self) -> None:
        """Finish what is in flight, take in nothing new, end the thread."""
        self._draining = True
        if self._inflight:
            self._emptied.clear()
            await self._emptied.wait()
        self._stop()
        if self._thread.ident is not None:
            self._next_look.cancel()
            # One that hangs never ends.
            if not self._watch.hangs:
                await asyncio.to_thread(self._thread.join)

    def _stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _look(self) -> None:
        """End where a step hangs: nobody waits for an answer that does not come."""
        if not self.alive:
            return
        if self._watch.look():
            logger.critical("the engine died: a step has not ended for %g s", self._watch.hung_after_s)
            self._stop()
            self._fail_all(DeviceLost("a step does not end"))
        else:
            self._next_look = self._loop.call_later(self._watch.look_s, self._look)

    def _feel(self, wait_s: float) -> None:
        """Give way or recover. Felt by whoever asks for room: once thresholds are lower, there may be some."""
        if self._keeper.feel(self.clock(), wait_s):
            logger.info("brownout level %d at a predicted wait of %.2f s", self._keeper.level, wait_s)
            self._observer.brownout(self._keeper.level)

    def _deadline_timer(self, sample: Sample, now_s: float) -> asyncio.TimerHandle | None:
        deadline_s = sample.contract.deadline_s
        if deadline_s is None:
            return None
        return self._loop.call_later(max(0.0, deadline_s - now_s), self._on_deadline, sample)

    def _on_deadline(self, sample: Sample) -> None:
        # The sample stays in flight until the engine thread lets go of it.
        if not sample.future.done() and (stats := self._resolve(sample, self._late(sample))):
            self._observer.sample(stats)

    def _late(self, sample: Sample) -> Answer | DeadlineExceeded:
        """What a sample gets whose deadline has come: the deepest exit it reached."""
        if not sample.trail:
            return DeadlineExceeded("the deadline passed before the first exit was computed")
        return sample.answer(ExitReason.DEADLINE, self.clock())

    def _deliver(self, delivery: Delivery) -> None:
        """Answer everybody first, report afterwards: a fault in the observer leaves nobody waiting."""
        decision = delivery.decision
        outcomes: list[tuple[Sample, Answer | EngineError | None]] = [*decision.answers, *decision.failures]
        outcomes += [(sample, None) for sample in delivery.dropped]
        answered: list[SampleStats] = []
        cancelled: list[CancelStats] = []
        for sample, outcome in outcomes:
            self._forget(sample)
            if sample.future.cancelled():
                cancelled.append(CancelStats("running" if sample.trail else "queued"))
            elif not sample.future.done() and (stats := self._resolve(sample, outcome or self._late(sample))):
                answered.append(stats)
        durations_s = [stats.duration_s for stats in delivery.stats] or [0.0]
        for duration_s in durations_s[:-1]:
            self._pace.learn(duration_s, 0)
        self._pace.learn(durations_s[-1], len(outcomes))
        if not self._inflight:
            self._emptied.set()
        for step_stats in delivery.stats:
            self._observer.step(step_stats)
        for sample_stats in answered:
            self._observer.sample(sample_stats)
        for cancel_stats in cancelled:
            self._observer.cancelled(cancel_stats)
        # Who went to full depth is known to agree. Who came to nothing counts as agreeing, too: left out, those who
        # leave early would be too many among the audited, and alarms would ring for promises that are kept.
        going_on = set(decision.audited)
        agreeing = [
            agrees(self._num_stages, sample) for sample, _ in outcomes if sample.audited and sample not in going_on
        ]
        for audit_stats in (*delivery.compared, *agreeing):
            for report in self._keeper.learn(audit_stats):
                self._observer.audited(report)

    def _resolve(self, sample: Sample, outcome: Answer | EngineError) -> SampleStats | None:
        """Give the sample's future its outcome; returns what there is to report of an answer."""
        if isinstance(outcome, EngineError):
            sample.future.set_exception(outcome)
            return None
        sample.future.set_result(outcome)
        return SampleStats(outcome.exit, outcome.reason, outcome.confidence, outcome.queue_s, outcome.latency_s)

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
            self._observer.profile(profile)
            stages = range(1, profile.num_stages + 1)
            full_s = [profile.seconds(stage, profile.max_batch_size) for stage in stages]
            self._watch.allow(max(full_s))
            self._pace.most_s = SLOWDOWN * sum(full_s) / profile.max_batch_size
        if not self._warm.done():
            self._warm.set_result(None)

    def _fail_all(self, cause: BaseException) -> None:
        self._dead = True
        if not self._warm.done():
            # Not the cause itself: some exceptions would end the event loop instead of a wait.
            said = str(cause) if isinstance(cause, SENTENCES) else f"{type(cause).__name__}: {cause}"
            self._warm.set_exception(WarmUpFailed(said))
        failures: list[tuple[Sample, EngineError]] = [
            (sample, InferenceFailed("the engine died; the server's log says why")) for sample in self._inflight
        ]
        self._deliver(Delivery(Decision(failures=failures), [], []))

    # ---- the engine thread's side --------------------------------------------------------------

    def _run_until_stopped(self) -> None:
        warm = False
        try:
            profile = self._warm_up() if self._warm_up else None
            if profile:
                self._scheduler.policy = self._make_policy(profile)
                self._scheduler.step_s = profile.seconds
            self._loop.call_soon_threadsafe(self._on_warm, profile)
            warm = True
            while self._take_in():
                self.step()
        except BaseException as cause:
            # Not a bad sample: nobody may be left waiting for a thread that is gone.
            if isinstance(cause, DeviceLost):
                logger.critical("the engine died: %s", cause)
            elif warm or not isinstance(cause, SENTENCES):
                logger.critical("the engine died", exc_info=True)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._fail_all, cause)

    def _take_in(self) -> bool:
        """Move new samples into the first queue, waiting where there is nothing to do; False to end."""
        scheduler, arrived = self._scheduler, self._arrived
        with self._wake:
            while not (self._inbox or self._stopping or arrived or any(scheduler.depths) or scheduler.num_spare):
                self._wake.wait()
            for sample in self._inbox:
                arrived.append(sample.client, sample)
            self._inbox.clear()
            stopping = self._stopping
        room = BATCHES_AHEAD * scheduler.max_batch_size - scheduler.depths[0]
        scheduler.enqueue(1, [arrived.popleft() for _ in range(min(room, len(arrived)))])
        return not stopping

    def step(self) -> None:
        """Schedule, run, decide; deliver where anybody leaves.

        Waking the event loop costs both threads a turn with the interpreter's lock: what a step measured waits for
        the next delivery, which comes at the latest when the last of its samples leaves.
        """
        start_s = self.clock()
        batch = self._scheduler.schedule(start_s)
        if batch is None:
            return
        if batch.spare:
            self._audit(batch, start_s)
            return
        decision = Decision()
        if batch.samples:
            self._watch.begin()
            decision = self._run(batch)
            self._watch.end()
        end_s = self.clock()
        if decision.survivors:
            self._scheduler.enqueue(batch.stage + 1, decision.survivors)
        if decision.audited:
            self._scheduler.enqueue_spare(batch.stage + 1, decision.audited)
        if batch.samples:
            self._unreported.append(StepStats(batch.stage, len(batch.samples), end_s - start_s))
        if decision.answers or decision.failures or batch.dropped:
            delivery = Delivery(decision, batch.dropped, self._unreported)
            self._unreported = []
            self._loop.call_soon_threadsafe(self._deliver, delivery)

    def _audit(self, batch: Batch[Sample], start_s: float) -> None:
        """One step of samples that were answered long ago; where it fails, each alone, as for those who wait."""
        self._watch.begin()
        compared = self._compare(batch.stage, batch.samples)
        self._watch.end()
        self._unreported.append(StepStats(batch.stage, len(batch.samples), self.clock() - start_s))
        if compared:
            delivery = Delivery(Decision(), [], self._unreported, compared)
            self._unreported = []
            self._loop.call_soon_threadsafe(self._deliver, delivery)

    def _compare(self, stage: int, samples: list[Sample]) -> list[AuditStats]:
        try:
            output = self._runner.run(stage, [sample.state for sample in samples])
            compared = compare(stage, samples, output)
            self._watch.succeeded()
        except DeviceLost:
            raise
        except Exception:
            if self._watch.is_news(self.clock()):
                logger.exception("an audit's step of stage %d over %d samples failed", stage, len(samples))
            if len(samples) == 1:
                return [agrees(self._num_stages, samples[0])]
            return [stats for sample in samples for stats in self._compare(stage, [sample])]
        if stage < self._num_stages:
            self._scheduler.enqueue_spare(stage + 1, samples)
        return compared

    def _run(self, batch: Batch[Sample]) -> Decision:
        """One step; where it fails, each member alone, so that one bad sample harms no other."""
        try:
            return self._run_together(batch.stage, batch.samples)
        except DeviceLost:
            raise
        except Exception:
            if self._watch.is_news(self.clock()):
                logger.exception("a step of stage %d over %d samples failed", batch.stage, len(batch.samples))
        if len(batch.samples) == 1:
            failure = InferenceFailed(f"stage {batch.stage} failed for this picture")
            return Decision(failures=[(batch.samples[0], failure)])
        alone = (self._run(Batch(batch.stage, [sample], [])) for sample in batch.samples)
        return sum(alone, start=Decision())

    def _run_together(self, stage: int, samples: list[Sample]) -> Decision:
        start_s = self.clock()
        output = self._runner.run(stage, [sample.state for sample in samples])
        decision = decide(stage, samples, output, start_s, self.clock())
        self._watch.succeeded()
        return decision
