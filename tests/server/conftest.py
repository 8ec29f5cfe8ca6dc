"""A server under test: the real application, and an engine whose answers follow from the picture alone."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image

from offramp.models.bundle import Bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.server.engine.admission import EngineLoad
from offramp.server.engine.errors import DeadlineExceeded, EngineStopped, Overloaded
from offramp.server.engine.request import Answer, Contract, Promise, Visit
from offramp.server.engine.stats import CancelStats, Observer, SampleStats, StepStats
from offramp.server.http.app import create_app
from offramp.server.metrics import Metrics
from offramp.server.registry import Registry, ServedModel
from offramp.server.settings import Settings

CLASSES = 10
EXITS = 4


@dataclass
class BrightnessEngine:
    """Sees only the first pixel's red value r: class r % 10, confidence 0.1 + 0.9 (r / 255) k / 4 at exit k.

    holds: keep every answer back. replacement: of its answers. stopped: raised by submit. overloaded: the answer to
    `overload`, which was called `asks` times. failures: errors of futures, by red value.
    """

    observer: Observer
    holds: bool = False
    replacement: Promise | None = None
    stopped: EngineStopped | None = None
    overloaded: Overloaded | None = None
    max_samples: int = 1024
    failures: dict[int, Exception] = field(default_factory=dict)
    alive: bool = False
    asks: int = 0
    contracts: list[Contract] = field(default_factory=list)
    deadlines_s: list[float | None] = field(default_factory=list)
    waiting: list[asyncio.Future[Answer]] = field(default_factory=list)
    asked: dict[asyncio.Future[Answer], tuple[int, Contract]] = field(default_factory=dict)
    submitted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def inflight_samples(self) -> int:
        return len(self.waiting)

    @property
    def queue_depths(self) -> tuple[int, ...]:
        return (len(self.waiting), *(0,) * (EXITS - 1))

    async def start(self, loop: asyncio.AbstractEventLoop, warm_up: Callable[[], object]) -> None:
        await asyncio.to_thread(warm_up)
        self.loop = loop
        self.alive = True

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(len(self.waiting), 1, 0.001)

    def overload(self, num_pictures: int, client: str = "") -> Overloaded | None:
        self.asks += 1
        full = len(self.waiting) + num_pictures > self.max_samples
        return self.overloaded or (Overloaded(1.0) if full else None)

    def submit(
        self, pictures: Sequence[np.ndarray], contract: Contract, client: str = "", deadline_s: float | None = None
    ) -> list[asyncio.Future[Answer]]:
        if refusal := self.stopped or self.overload(len(pictures)):
            raise refusal
        self.contracts.append(contract)
        self.deadlines_s.append(deadline_s)
        self.submitted.set()
        return [self._take(int(picture[0, 0, 0]), contract) for picture in pictures]

    async def drain(self) -> None:
        for future in list(self.waiting):
            future.set_exception(DeadlineExceeded("drained"))
        self.alive = False

    def release(self) -> None:
        for future in list(self.waiting):
            self.resolve(future)

    def _take(self, red: int, contract: Contract) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = self.loop.create_future()
        self.waiting.append(future)
        self.asked[future] = red, contract
        future.add_done_callback(self._done)
        if not self.holds:
            self.resolve(future)
        return future

    def resolve(self, future: asyncio.Future[Answer]) -> None:
        red, contract = self.asked[future]
        rule = contract.asked.rule
        if red in self.failures:
            future.set_exception(self.failures[red])
            return
        visited: tuple[Visit, ...] = ()
        for exit, limit in enumerate(rule.limits, start=1):
            confidence = float(np.float32(0.1 + 0.9 * red / 255 * exit / len(rule.limits)))
            visited = (*visited, Visit(exit, red % CLASSES, confidence))
            self.observer(StepStats(exit, 1, 0.001))
            if confidence >= limit:
                break
        probabilities = np.full(CLASSES, (1 - confidence) / (CLASSES - 1), dtype=np.float32)
        probabilities[red % CLASSES] = confidence
        answer = Answer(visited, probabilities, 0.002, 0.003, rule.reason(exit, confidence), 0.005, self.replacement)
        future.set_result(answer)
        self.observer(SampleStats(exit, answer.reason, confidence, 0.002, 0.005))

    def _done(self, future: asyncio.Future) -> None:
        self.waiting.remove(future)
        if future.cancelled():
            self.observer(CancelStats("queued"))


@dataclass
class Site:
    """A running application, a client of it, and what is behind it."""

    app: FastAPI
    client: httpx.AsyncClient
    registry: Registry
    metrics: Metrics
    engine: BrightnessEngine

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics._collectors.get_sample_value(name, labels)


def make_bundle(**changes) -> Bundle:
    torch.manual_seed(0)
    config = ModelConfig("resnet18", CLASSES, width=8, input_size=32)
    bundle = Bundle(
        name="tiny",
        version="1",
        config=config,
        preprocessing=Preprocessing(32),
        labels=tuple(f"label{i}" for i in range(CLASSES)),
        calibration=Calibration.neutral(EXITS),
        threshold=0.5,
        net=MultiExitNet(config).eval(),
        exits=tuple({"accuracy": 0.5 + k / 10} for k in range(EXITS)),
        training={"recipe": "none"},
    )
    return replace(bundle, **changes)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return make_bundle()


cost_of = cache(count_cost)


def assemble(bundles: Sequence[Bundle], metrics: Metrics, **engine_options) -> Registry:
    served = []
    for bundle in bundles:
        cost = cost_of(bundle.config)
        engine = BrightnessEngine(metrics.add_model(bundle, cost, "cpu"), **engine_options)
        served.append(ServedModel(bundle, cost, "cpu", engine, lambda: None))
    return Registry(served)


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what changes here knows nothing of events
        await asyncio.sleep(0)


@pytest.fixture(scope="session")
def until():
    """`await until(condition)`: let everything else run until the condition holds."""
    return wait_until


@pytest.fixture
def serve(bundle: Bundle):
    """`async with serve(bundles=..., settings=..., **engine_options) as site`."""

    @asynccontextmanager
    async def serve(
        bundles: Sequence[Bundle] = (bundle,), settings: Settings | None = None, **engine_options
    ) -> AsyncIterator[Site]:
        metrics = Metrics()
        registry = assemble(bundles, metrics, **engine_options)
        app = create_app(registry, settings or Settings(decode_threads=1), metrics)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://offramp") as client,
        ):
            await wait_until(lambda: registry.why_not_ready() is None)
            engine = registry.served[0].engine
            assert isinstance(engine, BrightnessEngine)
            yield Site(app, client, registry, metrics, engine)

    return serve


@pytest.fixture
async def site(serve) -> AsyncIterator[Site]:
    async with serve() as site:
        yield site


@pytest.fixture(scope="session")
def encode():
    """`encode(red, "PNG")`: a 32 × 32 picture of one colour, encoded."""

    def encode(red: int = 255, format: str = "PNG", size: tuple[int, int] = (32, 32)) -> bytes:
        buffer = io.BytesIO()
        options = {"lossless": True} if format == "WEBP" else {}
        Image.new("RGB", size, (red, 0, 0)).save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def server_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The records of the server's loggers. Resets what a server or library in this process has set."""
    logger, every = logging.getLogger("offramp"), logging.Logger.manager.loggerDict
    loggers = [
        one for name, one in every.items() if name.split(".")[0] == "offramp" and isinstance(one, logging.Logger)
    ]
    before = [(each, each.propagate, each.level, each.disabled) for each in loggers]
    switched_off = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    for each in loggers:
        each.propagate, each.disabled = each is not logger, False
        each.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    heard = caplog.handler.level
    caplog.handler.setLevel(logging.NOTSET)
    yield caplog
    caplog.handler.setLevel(heard)
    logger.removeHandler(caplog.handler)
    for one, propagates, level, disabled in before:
        one.propagate, one.disabled = propagates, disabled
        each.setLevel(level)
    logging.disable(switched_off)
