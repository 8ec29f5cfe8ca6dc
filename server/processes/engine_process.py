"""The engine process: owns the engines and the device, and serves them to the frontends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import signal
import socket
from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import uvloop

from offramp.server.engine.errors import EngineError
from offramp.server.engine.request import Answer
from offramp.server.loading import load_registry
from offramp.server.memory import freeze_heap
from offramp.server.metrics import Metrics, share_counters
from offramp.server.processes import messages
from offramp.server.processes.messages import Cancellation, Hello, Outcomes, Refusal, State, Stream, Submission
from offramp.server.processes.shared_pictures import Layout, Segment
from offramp.server.processes.supervisor_channel import BEAT_S, Assignment, Lifeline, read_assignment
from offramp.server.registry import EngineClient, Registry
from offramp.server.serve import configure_logging, end_process, log_config

logger = logging.getLogger(__name__)

# How old a frontend's view of the engine can be where no answers come its way.
STATE_PERIOD_S = 0.1

# Every so many periods the states are sent though nothing has changed: frontends see that the process lives.
PERIODS_PER_SIGN = 5


class EngineHost:
    """The engines of one process, and the frontends connected to them.

    segments: file descriptors of the frontends' memory, by the frontend's number. max_samples: a model's, in flight.
    """

    def __init__(self, registry: Registry, segments: Sequence[int], max_samples: int) -> None:
        self.registry = registry
        self.engines: list[EngineClient] = [one.engine for one in registry.served]
        self.layout = Layout.of([one.bundle for one in registry.served], max_samples)
        self.connections: set[FrontendConnection] = set()
        self.left = asyncio.Event()
        self.left.set()
        self._sizes = [one.bundle.config.input_size for one in registry.served]
        self._segments = segments

    def pictures(self, frontend: int) -> list[npt.NDArray[np.uint8]]:
        """A frontend's slots, as the pictures of each model."""
        segment = Segment(self._segments[frontend], self.layout)
        return [segment.pictures(size) for size in self._sizes]

    def alive(self, model: int) -> bool:
        """Whether the model's engine takes samples."""
        return self.registry.why_not_ready() is None and self.engines[model].alive

    def join(self, connection: FrontendConnection) -> None:
        """A frontend has come; `left` is unset while there is one."""
        self.connections.add(connection)
        self.left.clear()

    def leave(self, connection: FrontendConnection) -> None:
        """A frontend is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self.left.set()

    def send_states(self, again: bool = False) -> None:
        """Send every frontend the states that have changed. again: all states."""
        for connection in self.connections:
            connection.send_states(again)


class FrontendConnection(asyncio.Protocol):
    """One frontend: samples in, outcomes back; all that one step decides in one message."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._stream = Stream()
        self._pictures: list[npt.NDArray[np.uint8]] = []
        self._inflight: dict[int, asyncio.Future[Answer]] = {}
        self._inflight_by_model = [0] * len(host.engines)
        self._sent: list[State | None] = [None] * len(host.engines)
        self._outcomes = Outcomes()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A frontend has come."""
        # Not asserted: uvloop's transports are no subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The frontend is gone, and so is everybody who waited for its samples."""
        self._host.leave(self)
        for future in list(self._inflight.values()):
            future.cancel()

    def data_received(self, data: bytes) -> None:
        """From the frontend."""
        for message in self._stream.feed(data):
            match message:
                case Submission():
                    self._submit(message)
                case Cancellation():
                    for slot in message.slots:
                        if slot in self._inflight:
                            self._inflight[slot].cancel()
                case Hello():
                    self._greet(message)
                case _:
                    raise AssertionError(f"a frontend sends no {type(message).__name__}")

    def send_states(self, again: bool = False) -> None:
        """Send the states that have changed. again: all states."""
        self._transport.writelines(self._changed_states(again))

    def _greet(self, hello: Hello) -> None:
        if hello.digest != self._host.layout.digest:
            self._transport.write(messages.encode(Refusal()))
            return
        self._pictures = self._host.pictures(hello.frontend)
        self._host.join(self)
        self.send_states()

    def _submit(self, submission: Submission) -> None:
        model, slots = submission.model, submission.slots
        pictures_NHWC = self._pictures[model]
        engine = self._host.engines[model]
        try:
            pictures = [pictures_NHWC[slot] for slot in slots]
            contract = messages.decode_contract(submission.contract)
            futures = engine.submit(pictures, contract, submission.client, submission.deadline_s)
        except EngineError as refusal:
            for slot in slots:
                self._record(slot, refusal)
            return
        self._inflight_by_model[model] += len(slots)
        for slot, future in zip(slots, futures, strict=True):
            self._inflight[slot] = future
            future.add_done_callback(partial(self._on_done, slot, model))

    def _on_done(self, slot: int, model: int, future: asyncio.Future[Answer]) -> None:
        del self._inflight[slot]
        self._inflight_by_model[model] -= 1
        if future.cancelled():
            self._record(slot, None)
            return
        error = future.exception()
        assert error is None or isinstance(error, EngineError)
        self._record(slot, future.result() if error is None else error)

    def _record(self, slot: int, outcome: Answer | EngineError | None) -> None:
        # The futures of a step are resolved in one turn of the event loop, so that all callbacks run before the flush.
        outcomes = self._outcomes
        if not (outcomes.answers or outcomes.failures or outcomes.released):
            self._loop.call_soon(self._flush)
        match outcome:
            case None:
                outcomes.released.append(slot)
            case Answer():
                outcomes.answers.append((slot, outcome))
            case _:
                outcomes.failures.append((slot, messages.failure(outcome)))

    def _flush(self) -> None:
        outcomes, self._outcomes = self._outcomes, Outcomes()
        if not self._transport.is_closing():
            self._transport.writelines([messages.encode(outcomes), *self._changed_states()])

    def _changed_states(self, again: bool = False) -> list[bytes]:
        changed = []
        for model, engine in enumerate(self._host.engines):
            load = engine.load
            state = State(
                model,
                self._host.alive(model),
                max(0, load.inflight - self._inflight_by_model[model]),
                load.num_clients,
                load.sample_s,
                engine.queue_depths,
            )
            if again or state != self._sent[model]:
                self._sent[model] = state
                changed.append(messages.encode(state))
        return changed


async def serve_engines(host: EngineHost, listener: socket.socket, lifeline: Lifeline, patience_s: float) -> str | None:
    """Warm up, tell the supervisor, and serve until a signal; why that came to nothing, None after an orderly end.

    patience_s: how long frontends that are still there may take to finish.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_unix_server(partial(FrontendConnection, host), sock=listener)
    states = asyncio.create_task(_keep_sending_states(host))
    await host.registry.start()
    if host.registry.failure is not None:
        return host.registry.failure
    # Not before: a process that warms up has nothing to finish.
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    lifeline.ready([])
    while not stopping.is_set():
        if (dead := host.registry.why_not_ready()) is not None:
            return dead
        if lifeline.cut:
            break
        lifeline.beat()
        await _wait(stopping, BEAT_S)
    # Where the supervisor is gone, or everybody was sent the signal, the frontends still finish what they have.
    await _wait(host.left, patience_s)
    states.cancel()
    server.close()
    await host.registry.drain()
    return None


async def _keep_sending_states(host: EngineHost) -> None:
    for period in itertools.count():
        host.send_states(again=period % PERIODS_PER_SIGN == 0)
        await asyncio.sleep(STATE_PERIOD_S)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return


def run_engine(assignment: Assignment) -> int:
    """The whole life of an engine process; its exit status."""
    settings, lifeline = assignment.settings, Lifeline(assignment.lifeline)
    configure_logging(log_config(settings.log_level))
    share_counters(assignment.folder, assignment.name)
    try:
        registry = load_registry(settings, Metrics(shared=assignment.folder))
    except ValueError as error:
        lifeline.failed(str(error))
        return 1
    host = EngineHost(registry, assignment.segments, settings.max_queue)
    listener = socket.socket(fileno=assignment.listener)
    freeze_heap()
    failure = uvloop.run(serve_engines(host, listener, lifeline, settings.drain_timeout_s))
    if lifeline.cut:
        # Nobody else is left to clear up.
        shutil.rmtree(assignment.folder, ignore_errors=True)
    if failure is not None:
        lifeline.failed(failure)
    return 0 if failure is None else 1


if __name__ == "__main__":
    end_process(run_engine(read_assignment()))
