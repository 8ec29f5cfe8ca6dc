"""The engine process as a frontend sees it: one connection, and behind it an `EngineClient` for each model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt

from offramp.models.bundle import Bundle
from offramp.server.engine.admission import Admission, Load
from offramp.server.engine.errors import DeadlineExceeded, EngineError, EngineStopped, Overloaded
from offramp.server.engine.request import Answer, Contract
from offramp.server.processes import messages
from offramp.server.processes.messages import Cancellation, Hello, Message, Outcomes, Refusal, State, Stream, Submission
from offramp.server.processes.shared_pictures import FreeSlots, Layout, Segment

logger = logging.getLogger(__name__)

# The supervisor keeps the engine's socket open while there is no engine, so this is for rare errors of the system.
RECONNECT_S = 0.1

# What a refusal says where the engine has told nothing better.
RETRY_AFTER_S = 1.0

# The engine process keeps deadlines. Where it does not, a frontend answers this long after the deadline.
GRACE_S = 0.05

# Calls of `EngineLink.look` without a message from the engine process: after SILENT calls new requests are refused,
# after LOST calls waiting requests are given up. Calls are counted, not seconds: a machine that was suspended has
# missed no message.
LOOK_S = 0.1
SILENT, LOST = 20, 50

Picture = npt.NDArray[np.uint8]


class EngineLink:
    """One frontend's connection to the engine process: kept up, and shared by all its models.

    When it is lost, everybody who waits gets EngineStopped at once. All members belong to the event loop's thread.
    address: path of the engine process's socket. memory_fd: this frontend's segment.
    """

    def __init__(
        self, address: str, frontend: int, memory_fd: int, bundles: Sequence[Bundle], admission: Admission
    ) -> None:
        layout = Layout.of(bundles, admission.max_samples)
        segment = Segment(memory_fd, layout)
        self.refused = False
        self.engines = [
            RemoteEngine(
                self,
                number,
                num_stages=len(one.calibration.temperatures),
                pictures_NHWC=segment.pictures(one.config.input_size),
                admission=admission,
            )
            for number, one in enumerate(bundles)
        ]
        self._address = address
        self._hello = messages.encode(Hello(frontend, layout.digest))
        self._free = FreeSlots(layout.num_slots)
        self._waiting: dict[int, tuple[RemoteEngine, asyncio.Future[Answer], str]] = {}
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._looks = 0
        self._stream = Stream()
        self._outbox: list[bytes] = []

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Connect, and again whenever the connection is lost; the first call counts."""
        if self._connecting is None:
            self._loop = loop
            self._connecting = loop.create_task(self._connect())

    def close(self) -> None:
        """Nothing more is wanted: whoever still waits gets EngineStopped, and whoever starts is let go."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        for engine in self.engines:
            engine.let_go()

    @property
    def silent(self) -> bool:
        """Whether the engine process has said nothing for SILENT looks."""
        return self._looks >= SILENT

    def look(self) -> None:
        """Notice an engine process that has stopped. To be called every LOOK_S."""
        if self._transport is None or not any(engine.known for engine in self.engines):
            return
        self._looks += 1
        if self._looks == SILENT:
            logger.warning("the engine process has been silent for %g s: not ready", SILENT * LOOK_S)
        if self._looks == LOST:
            logger.error("the engine process has been silent for %g s: requests are given up", LOST * LOOK_S)
            self._transport.abort()

    # ---- for RemoteEngine ----------------------------------------------------------------------

    def take(
        self, engine: RemoteEngine, count: int, client: str
    ) -> tuple[list[int], list[asyncio.Future[Answer]]] | None:
        """So many slots, and a future for each; None where there are not enough."""
        slots = self._free.take(count)
        if slots is None:
            return None
        futures: list[asyncio.Future[Answer]] = [self._loop.create_future() for _ in slots]
        for slot, future in zip(slots, futures, strict=True):
            self._waiting[slot] = engine, future, client
            future.add_done_callback(partial(self._on_done, slot))
        return slots, futures

    def expire(self, futures: Sequence[asyncio.Future[Answer]], deadline_s: float) -> None:
        """Give up what is not answered soon after the deadline, whatever the engine process does."""
        delay_s = max(0.0, deadline_s - time.monotonic()) + GRACE_S
        for future in futures:
            timer = self._loop.call_later(delay_s, _expire, future)
            future.add_done_callback(partial(_cancel, timer))

    def send(self, message: Message) -> None:
        """Send together with the other messages of this turn of the event loop."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(messages.encode(message))

    # ---- the connection ------------------------------------------------------------------------

    async def _connect(self) -> None:
        while True:
            try:
                await self._loop.create_unix_connection(partial(_Connection, self), self._address)
            except OSError as error:
                logger.debug("the engine process cannot be reached: %s", error)
                await asyncio.sleep(RECONNECT_S)
            else:
                return

    def connected(self, transport: asyncio.Transport) -> None:
        """Introduce this frontend; the engine is used once its first state has come."""
        self._transport, self._stream = transport, Stream()
        transport.write(self._hello)

    def received(self, data: bytes) -> None:
        """From the engine process."""
        if self.silent:
            logger.warning("the engine process is heard again")
        self._looks = 0
        for message in self._stream.feed(data):
            match message:
                case Outcomes():
                    for slot, answer in message.answers:
                        self._settle(slot, answer)
                    for slot, failure in message.failures:
                        self._settle(slot, messages.error(failure))
                    for slot in message.released:
                        self._settle(slot, None)
                case State():
                    self.engines[message.model].update(message)
                case Refusal():
                    self.refused = True
                case _:
                    raise AssertionError(f"the engine process sends no {type(message).__name__}")

    def lost(self) -> None:
        """The engine process is gone: end all waiting requests, and connect to its successor."""
        self._transport = None
        self._looks = 0
        self._outbox.clear()
        for engine in self.engines:
            engine.forget()
        for slot in list(self._waiting):
            self._settle(slot, EngineStopped(draining=False, restarts=True))
        if not self._closed:
            self._connecting = self._loop.create_task(self._connect())

    def _flush(self) -> None:
        frames = b"".join(self._outbox)
        self._outbox.clear()
        if self._transport is not None:
            self._transport.write(frames)

    def _settle(self, slot: int, outcome: Answer | EngineError | None) -> None:
        engine, future, client = self._waiting.pop(slot)
        self._free.give_back(slot)
        engine.settled(client)
        if future.done():
            return
        if isinstance(outcome, Answer):
            future.set_result(outcome)
        elif isinstance(outcome, EngineError):
            future.set_exception(outcome)
        else:
            raise AssertionError("only what was cancelled is released")

    def _on_done(self, slot: int, future: asyncio.Future[Answer]) -> None:
        waiting = self._waiting.get(slot)
        # The slot stays taken until the engine process says that it has let go.
        if waiting is not None and waiting[1] is future:
            self.send(Cancellation([slot]))


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the deadline passed before the engine process answered"))


def _cancel(timer: asyncio.TimerHandle, future: asyncio.Future[Answer]) -> None:
    timer.cancel()


class _Connection(asyncio.Protocol):
    """Hands what happens on the socket to its link."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: uvloop's transports are no subclass.
        self._link.connected(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._link.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.lost()


class RemoteEngine:
    """One model's engine in the engine process; what `offramp.server.registry.EngineClient` asks for.

    pictures_NHWC: the segment's slots as pictures of this model. admission: the engine's, of all frontends.
    """

    def __init__(
        self, link: EngineLink, model: int, num_stages: int, pictures_NHWC: npt.NDArray[np.uint8], admission: Admission
    ) -> None:
        self._link = link
        self._num_stages = num_stages
        self._pictures_NHWC = pictures_NHWC
        self._admission = admission
        self._by_client: Counter[str] = Counter()
        self._unknown = State(model, False, 0, 0, 0.0, (0,) * num_stages)
        self._state = self._unknown
        self._own = 0
        self._draining = False
        self._emptied = asyncio.Event()
        self._warm: asyncio.Future[None] | None = None
        self._waits = True

    @property
    def alive(self) -> bool:
        """Whether the engine process is there, warm, and its engine runs."""
        return self._state.alive and not self._link.silent

    @property
    def known(self) -> bool:
        """Whether the engine process has said how this engine stands."""
        return self._state is not self._unknown

    @property
    def inflight_samples(self) -> int:
        """Samples in the engine, those of other frontends included."""
        return self._state.inflight_others + self._own

    @property
    def queue_depths(self) -> tuple[int, ...]:
        """Samples waiting in front of each stage, as last told."""
        return self._state.queue_depths

    def start(self, loop: asyncio.AbstractEventLoop, warm_up: Callable[[], object]) -> asyncio.Future[None]:
        """Look for the engine process; done when it is warm. `warm_up` is its own affair, and not called here."""
        self._warm = loop.create_future()
        self._link.open(loop)
        # Models are started one after the other, and the first's link may have told of all.
        if self.alive or not self._waits:
            self._warm.set_result(None)
        return self._warm

    @property
    def load(self) -> Load:
        """What the engine has in hand, as far as this frontend knows."""
        return Load(self.inflight_samples, max(self._state.num_clients, len(self._by_client)), self._state.sample_s)

    def overload(self, num_pictures: int, client: str = "") -> Overloaded | None:
        """How `submit` would refuse so many pictures of a client, as far as this frontend knows."""
        return self._admission.refusal(num_pictures, self._by_client.get(client, 0), self.load)

    def submit(
        self, pictures: Sequence[Picture], contract: Contract, client: str = "", deadline_s: float | None = None
    ) -> list[asyncio.Future[Answer]]:
        """As `Engine.submit`; Overloaded may also come through the futures, since the engine has the last word."""
        max_samples = self._admission.max_samples
        if len(pictures) > max_samples:
            raise ValueError(
                f"{len(pictures)} pictures at once are out of range: this engine holds at most {max_samples}; "
                "send fewer, or raise max_queue"
            )
        contract.check_depth(self._num_stages)
        assert all(picture.shape == self._pictures_NHWC.shape[1:] for picture in pictures), (
            "preprocessing gives one size"
        )
        if self._draining or not self.alive:
            raise EngineStopped(draining=self._draining, restarts=True)
        if overload := self.overload(len(pictures), client):
            raise overload
        taken = self._link.take(self, len(pictures), client)
        if taken is None:
            raise Overloaded(RETRY_AFTER_S)
        slots, futures = taken
        self._own += len(slots)
        self._by_client[client] += len(slots)
        for slot, picture in zip(slots, pictures, strict=True):
            self._pictures_NHWC[slot] = picture
        encoded = messages.encode_contract(contract)
        self._link.send(Submission(self._state.model, encoded, slots, client, deadline_s))
        if deadline_s is not None:
            self._link.expire(futures, deadline_s)
        return futures

    @property
    def drained(self) -> bool:
        """Takes in nothing more, and has answered everything."""
        return self._draining and not self._own

    async def drain(self) -> None:
        """Wait for what is in flight, take in nothing new; the last model to be drained closes the link."""
        self._draining = True
        if self._own:
            self._emptied.clear()
            await self._emptied.wait()
        if all(engine.drained for engine in self._link.engines):
            self._link.close()

    def update(self, state: State) -> None:
        """The engine process has sent its state."""
        self._state = state
        if state.alive:
            self.let_go()

    def forget(self) -> None:
        """The engine process is gone."""
        self._state = self._unknown

    def settled(self, client: str) -> None:
        """One sample of a client is no longer in flight."""
        self._own -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]
        if not self._own:
            self._emptied.set()

    def let_go(self) -> None:
        """Whoever waits for the start waits no longer, now or later."""
        self._waits = False
        if self._warm is not None and not self._warm.done():
            self._warm.set_result(None)
