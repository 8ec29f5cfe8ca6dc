"""The engine process: owns the engines and the device, and serves them to the frontends."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
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
from offramp.server.processes.messages import Cancellation, Failure, Hello, Refusal, State, Submission, Update
from offramp.server.processes.shared_pictures import Layout
from offramp.server.processes.supervisor_channel import BEAT_S, SupervisorChannel
from offramp.server.registry import EngineClient, Registry
from offramp.server.serve import configure_logging, end_process, log_config

logger = logging.getLogger(__name__)

# How often each frontend gets the engines' states, beside the updates with outcomes. They also show that the process
# lives.
STATE_PERIOD_S = 0.1


class EngineHost:
    """The engines of one process, and the frontends connected to them.

    segments: file descriptors of the frontends' memory, by number of the frontend. max_samples: of each model, in
    flight. empty: set while no frontend is connected.
    """

    def __init__(self, registry: Registry, segments: Sequence[int], max_samples: int) -> None:
        self.registry = registry
        self.engines: list[EngineClient] = [served.engine for served in registry.served]
        self.layout = Layout.of([served.bundle for served in registry.served], max_samples)
        self.segments = segments
        self.connections: set[FrontendConnection] = set()
        self.empty = asyncio.Event()
        self.empty.set()

    def send_states(self) -> None:
        """Send every frontend the states of all engines."""
        for connection in self.connections:
            connection.send_update()


class FrontendConnection(asyncio.Protocol):
    """One frontend: samples come in, outcomes go out."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._stream = messages.Stream()
        self._pictures: list[npt.NDArray[np.uint8]] = []
        self._inflight: dict[int, asyncio.Future[Answer]] = {}
        self._inflight_by_model = [0] * len(host.engines)
        self._outcomes: list[tuple[int, Answer | Failure | None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The frontend says hello before it counts as connected."""
        # Not asserted: uvloop's transports are no subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The frontend is gone: drop its samples."""
        self._host.connections.discard(self)
        if not self._host.connections:
            self._host.empty.set()
        for future in list(self._inflight.values()):
            future.cancel()

    def data_received(self, data: bytes) -> None:
        """Messages from the frontend."""
        for message in self._stream.feed(data):
            match message:
                case Submission():
                    self._submit(message)
                case Cancellation():
                    if message.slot in self._inflight:
                        self._inflight[message.slot].cancel()
                case Hello():
                    self._greet(message)
                case _:
                    raise AssertionError(f"a frontend sends no {type(message).__name__}")

    def send_update(self) -> None:
        """Send the outcomes that wait to be sent, and the states of all engines."""
        host, outcomes, self._outcomes = self._host, self._outcomes, []
        ready = host.registry.why_not_ready() is None
        states = []
        for engine, own in zip(host.engines, self._inflight_by_model, strict=True):
            load = engine.load
            inflight_others = max(0, load.inflight - own)
            alive = ready and engine.alive
            states.append(State(alive, inflight_others, load.num_clients, load.sample_s, engine.queue_depths))
        if not self._transport.is_closing():
            self._transport.write(messages.encode(Update(outcomes, states)))

    def _greet(self, hello: Hello) -> None:
        host = self._host
        if hello.digest != host.layout.digest:
            self._transport.write(messages.encode(Refusal()))
            return
        self._pictures = host.layout.map(host.segments[hello.frontend])
        host.connections.add(self)
        host.empty.clear()
        self.send_update()

    def _submit(self, submission: Submission) -> None:
        model, slots = submission.model, submission.slots
        pictures = [self._pictures[model][slot] for slot in slots]
        contract = messages.decode_contract(submission.contract)
        try:
            futures = self._host.engines[model].submit(pictures, contract, submission.client, submission.deadline_s)
        except EngineError as refusal:
            for slot in slots:
                self._send_later(slot, messages.encode_error(refusal))
            return
        self._inflight_by_model[model] += len(slots)
        for slot, future in zip(slots, futures, strict=True):
            self._inflight[slot] = future
            future.add_done_callback(partial(self._on_done, slot, model))

    def _on_done(self, slot: int, model: int, future: asyncio.Future[Answer]) -> None:
        del self._inflight[slot]
        self._inflight_by_model[model] -= 1
        if future.cancelled():
            self._send_later(slot, None)
        elif (error := future.exception()) is None:
            self._send_later(slot, future.result())
        else:
            assert isinstance(error, EngineError)
            self._send_later(slot, messages.encode_error(error))

    def _send_later(self, slot: int, outcome: Answer | Failure | None) -> None:
        # The futures of a step are resolved in one turn of the event loop, so the update has the outcomes of all.
        if not self._outcomes:
            self._loop.call_soon(self.send_update)
        self._outcomes.append((slot, outcome))


async def serve_engines(
    host: EngineHost, listener: socket.socket, channel: SupervisorChannel, drain_timeout_s: float
) -> str | None:
    """Warm up and serve until a signal, or until the supervisor is gone; returns why it failed.

    drain_timeout_s: how long connected frontends may take to finish.
    """
    loop, registry, stopping = asyncio.get_running_loop(), host.registry, asyncio.Event()
    server = await loop.create_unix_server(partial(FrontendConnection, host), sock=listener)
    sending = asyncio.create_task(_keep_sending_states(host))
    await registry.start()
    if registry.failure is not None:
        return registry.failure
    # Not before: a process that warms up has nothing to finish.
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    channel.send(announcement=[])
    while not (stopping.is_set() or channel.closed):
        if (failure := registry.why_not_ready()) is not None:
            return failure
        channel.send()
        await _wait(stopping, BEAT_S)
    # The frontends may still have requests: the supervisor is gone, or somebody sent the signal to every process.
    await _wait(host.empty, drain_timeout_s)
    sending.cancel()
    server.close()
    await registry.drain()
    return None


async def _keep_sending_states(host: EngineHost) -> None:
    while True:
        host.send_states()
        await asyncio.sleep(STATE_PERIOD_S)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def run_engine(channel: SupervisorChannel) -> int:
    """Run an engine process from its start to its end; returns its exit status."""
    assignment, settings = channel.assignment, channel.assignment.settings
    configure_logging(log_config(settings.log_level))
    share_counters(assignment.folder, assignment.name)
    try:
        registry = load_registry(settings, Metrics(shared=assignment.folder))
    except ValueError as error:
        channel.send(failure=str(error))
        return 1
    host = EngineHost(registry, assignment.segments, settings.max_queue)
    freeze_heap()
    listener = socket.socket(fileno=assignment.listener)
    failure = uvloop.run(serve_engines(host, listener, channel, settings.drain_timeout_s))
    if channel.closed:
        # Nobody else removes it.
        shutil.rmtree(assignment.folder, ignore_errors=True)
    if failure is None:
        return 0
    channel.send(failure=failure)
    return 1


if __name__ == "__main__":
    end_process(run_engine(SupervisorChannel()))
