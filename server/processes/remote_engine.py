"""The engine process as a frontend sees it: one connection, and an `EngineClient` for each model behind it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from offramp.models.bundle import Bundle
from offramp.server.engine.admission import Admission, EngineLoad
from offramp.server.engine.errors import DeadlineExceeded, EngineError, EngineStopped, Overloaded
from offramp.server.engine.request import Answer, Contract
from offramp.server.processes import messages
from offramp.server.processes.messages import Cancellation, Failure, Hello, Refusal, State, Submission, Update
from offramp.server.processes.shared_pictures import Layout

logger = logging.getLogger(__name__)

# The supervisor keeps the engine's socket open while no engine runs, so only rare errors of the system need this pause.
RECONNECT_S = 0.1

# The engine process answers at the deadline. If it does not, the frontend answers this much later.
GRACE_S = 0.05

# Looks at the connection, one every LOOK_S, without a message from the engine process: after SILENT looks the frontend
# refuses new requests, after LOST looks it gives up those that wait. It counts looks, not seconds: a machine that was
# suspended has missed no message.
LOOK_S = 0.1
SILENT, LOST = 20, 50


class PendingAnswer(NamedTuple):
    """A sample in the engine process."""

    engine: RemoteEngine
    client: str
    future: asyncio.Future[Answer]


class EngineLink(asyncio.Protocol):
    """One frontend's connection to the engine process, shared by all its models. It connects again when it is lost.

    When it is lost, all waiting samples get EngineStopped at once. All members belong to the event loop's thread.
    address: path of the engine process's socket. frontend: number of this one. memory_fd: its segment. refused: the
    engine process serves other models.
    """

    def __init__(
        self, address: str, frontend: int, memory_fd: int, bundles: Sequence[Bundle], admission: Admission
    ) -> None:
        layout = Layout.of(bundles, admission.max_samples)
        pictures = layout.map(memory_fd)
        self.refused = False
        self.engines = [
            RemoteEngine(self, model, len(bundle.calibration.temperatures), pictures[model], admission)
            for model, bundle in enumerate(bundles)
        ]
        self._address = address
        self._hello = messages.encode(Hello(frontend, layout.digest))
        # The slot used last is the next to be used, so that few pages of the segment take memory.
        self._free_slots = list(range(layout.num_slots))
        self._waiting: dict[int, PendingAnswer] = {}
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = self._has_state = False
        self._looks = 0
        self._outbox: list[bytes] = []

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Connect, unless it was opened before."""
        if self._connecting is None:
            self._loop = loop
            self._connecting = loop.create_task(self._connect())

    def close(self) -> None:
        """Disconnect for good: waiting samples get EngineStopped, and no engine waits for its start any more."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """End every engine's wait for its start, now or later."""
        for engine in self.engines:
            engine.started.set()

    @property
    def silent(self) -> bool:
        """Whether the last SILENT looks found no message from the engine process."""
        return self._looks >= SILENT

    def look(self) -> None:
        """Notice an engine process that has stopped. To be called every LOOK_S."""
        if self._transport is None or not self._has_state:
            return
        self._looks += 1
        if self._looks == SILENT:
            logger.warning("the engine process has been silent for %g s: not ready", SILENT * LOOK_S)
        if self._looks == LOST:
            logger.error("the engine process has been silent for %g s: requests are given up", LOST * LOOK_S)
            self._transport.abort()

    # ---- for RemoteEngine ----------------------------------------------------------------------

    def take_slots(self, count: int) -> list[int]:
        """Slots to write pictures to. There are enough: admission bounds the samples of each model."""
        return [self._free_slots.pop() for _ in range(count)]

    def expect(self, slot: int, engine: RemoteEngine, client: str, deadline_s: float | None) -> asyncio.Future[Answer]:
        """The outcome of the sample in a slot; DeadlineExceeded soon after the deadline, whatever the engine does."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        timer = None
        if deadline_s is not None:
            timer = self._loop.call_later(max(0.0, deadline_s - time.monotonic()) + GRACE_S, _expire, future)
        self._waiting[slot] = PendingAnswer(engine, client, future)
        future.add_done_callback(partial(self._on_done, slot, timer))
        return future

    def send(self, message: messages.Message) -> None:
        """Send together with the other messages of this turn of the event loop."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(messages.encode(message))

    # ---- the connection ------------------------------------------------------------------------

    async def _connect(self) -> None:
        while True:
            try:
                await self._loop.create_unix_connection(lambda: self, self._address)
            except OSError as error:
                logger.debug("the engine process cannot be reached: %s", error)
                await asyncio.sleep(RECONNECT_S)
            else:
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce this frontend. The engines are used once their states have come."""
        # Not asserted: uvloop's transports are no subclass.
        self._transport, self._stream = cast(asyncio.Transport, transport), messages.Stream()
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        """Messages from the engine process."""
        if self.silent:
            logger.warning("the engine process is heard again")
        self._looks = 0
        for message in self._stream.feed(data):
            match message:
                case Update():
                    for slot, outcome in message.outcomes:
                        self._settle(slot, messages.decode_error(outcome) if isinstance(outcome, Failure) else outcome)
                    for engine, state in zip(self.engines, message.states, strict=True):
                        engine.update(state)
                    self._has_state = True
                case Refusal():
                    self.refused = True
                case _:
                    raise AssertionError(f"the engine process sends no {type(message).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine process is gone: end all waiting requests, and connect to the next one."""
        self._transport, self._has_state, self._looks = None, False, 0
        self._outbox.clear()
        for engine in self.engines:
            engine.update(None)
        for slot in list(self._waiting):
            self._settle(slot, EngineStopped(draining=False, restarts=True))
        if not self._closed:
            self._connecting = self._loop.create_task(self._connect())

    def _flush(self) -> None:
        data = b"".join(self._outbox)
        self._outbox.clear()
        if self._transport is not None:
            self._transport.write(data)

    def _settle(self, slot: int, outcome: Answer | EngineError | None) -> None:
        engine, client, future = self._waiting.pop(slot)
        self._free_slots.append(slot)
        engine.settle(client)
        if future.done():
            return
        if isinstance(outcome, EngineError):
            future.set_exception(outcome)
        else:
            assert outcome is not None, "only a cancelled sample has no outcome"
            future.set_result(outcome)

    def _on_done(self, slot: int, timer: asyncio.TimerHandle | None, future: asyncio.Future[Answer]) -> None:
        if timer is not None:
            timer.cancel()
        waiting = self._waiting.get(slot)
        # Cancelled here: the slot stays taken until the engine process sends the outcome.
        if waiting is not None and waiting.future is future:
            self.send(Cancellation(slot))


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the deadline passed before the engine process answered"))


class RemoteEngine:
    """One model's engine in the engine process; an `offramp.server.registry.EngineClient`.

    pictures_NHWC: the segment's slots as pictures of this model. admission: limits of the engine, over all frontends.
    started: set once the engine process is warm, or nothing shall wait for it.
    """

    def __init__(
        self, link: EngineLink, model: int, num_stages: int, pictures_NHWC: npt.NDArray[np.uint8], admission: Admission
    ) -> None:
        self.started = asyncio.Event()
        self._link = link
        self._model = model
        self._num_stages = num_stages
        self._pictures_NHWC = pictures_NHWC
        self._admission = admission
        self._unknown = self._state = State(False, 0, 0, 0.0, (0,) * num_stages)
        self._by_client: Counter[str] = Counter()
        self._own = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def alive(self) -> bool:
        """Whether the engine process is there and warm, and this engine runs."""
        return self._state.alive and not self._link.silent

    @property
    def inflight_samples(self) -> int:
        """Samples in the engine, those of other frontends included."""
        return self._state.inflight_others + self._own

    @property
    def queue_depths(self) -> tuple[int, ...]:
        """Samples in front of each stage, as of the last message."""
        return self._state.queue_depths

    def start(self, loop: asyncio.AbstractEventLoop, warm_up: Callable[[], object]) -> Awaitable[object]:
        """Connect to the engine process; done when it is warm. It has a `warm_up` of its own, so this one is unused."""
        self._link.open(loop)
        return self.started.wait()

    @property
    def load(self) -> EngineLoad:
        """What the engine has to do, as far as this frontend knows."""
        return EngineLoad(
            self.inflight_samples, max(self._state.num_clients, len(self._by_client)), self._state.sample_s
        )

    def overload(self, num_pictures: int, client: str = "") -> Overloaded | None:
        """As `Engine.overload`, as far as this frontend knows."""
        return self._admission.refusal(num_pictures, self._by_client.get(client, 0), self.load)

    def submit(
        self,
        pictures: Sequence[npt.NDArray[np.uint8]],
        contract: Contract,
        client: str = "",
        deadline_s: float | None = None,
    ) -> list[asyncio.Future[Answer]]:
        """As `Engine.submit`. The futures may deliver Overloaded too: the engine process decides."""
        self._admission.check_size(len(pictures))
        contract.check_depth(self._num_stages)
        assert all(picture.shape == self._pictures_NHWC.shape[1:] for picture in pictures), (
            "preprocessing gives one size"
        )
        if self._draining or not self.alive:
            raise EngineStopped(draining=self._draining, restarts=True)
        if overload := self.overload(len(pictures), client):
            raise overload
        slots = self._link.take_slots(len(pictures))
        for slot, picture in zip(slots, pictures, strict=True):
            self._pictures_NHWC[slot] = picture
        self._own += len(slots)
        self._by_client[client] += len(slots)
        self._empty.clear()
        encoded = messages.encode_contract(contract)
        self._link.send(Submission(self._model, encoded, slots, client, deadline_s))
        return [self._link.expect(slot, self, client, deadline_s) for slot in slots]

    @property
    def drained(self) -> bool:
        """Whether it takes in no samples any more and has none in flight."""
        return self._draining and not self._own

    async def drain(self) -> None:
        """Take in nothing new, and wait for all samples in flight. The last engine to be drained closes the link."""
        self._draining = True
        await self._empty.wait()
        if all(engine.drained for engine in self._link.engines):
            self._link.close()

    def update(self, state: State | None) -> None:
        """Use the state that the engine process has sent. None: the engine process is gone."""
        self._state = state or self._unknown
        if self._state.alive:
            self.started.set()

    def settle(self, client: str) -> None:
        """Count one sample of a client less."""
        self._own -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]
        if not self._own:
            self._empty.set()
