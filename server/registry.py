"""The served models by name and version, and their readiness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from offramp.models.bundle import Bundle
from offramp.models.cost import NetworkCost
from offramp.server.engine.admission import EngineLoad
from offramp.server.engine.errors import RESTARTING, Overloaded, WarmUpFailed
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.request import Answer, Contract
from offramp.server.request.client_limits import Cost

logger = logging.getLogger(__name__)


class UnknownModel(LookupError):
    """No such model or version is served; the message lists the served ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class EngineClient(Protocol):
    """An engine as the frontend sees it. Only the event loop's thread calls it."""

    @property
    def alive(self) -> bool: ...

    @property
    def inflight_samples(self) -> int: ...

    @property
    def queue_depths(self) -> tuple[int, ...]: ...

    def start(
        self, loop: asyncio.AbstractEventLoop, warm_up: Callable[[], CostProfile | None]
    ) -> Awaitable[object]: ...

    @property
    def load(self) -> EngineLoad: ...

    def overload(self, num_pictures: int, client: str = "") -> Overloaded | None: ...

    def submit(
        self,
        pictures: Sequence[npt.NDArray[np.uint8]],
        contract: Contract,
        client: str = "",
        deadline_s: float | None = None,
    ) -> list[asyncio.Future[Answer]]: ...

    async def drain(self) -> None: ...


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of one model, and the engine that runs it.

    warm_up: runs and measures the network; the engine's thread begins with it.
    """

    bundle: Bundle
    cost: NetworkCost
    device: str
    engine: EngineClient
    warm_up: Callable[[], CostProfile | None]

    @cached_property
    def compute(self) -> tuple[float, ...]:
        """The share of the full depth's multiply-adds that each exit needs."""
        return tuple(round(share, 4) for share in self.cost.compute)

    @cached_property
    def _costs(self) -> tuple[Cost, ...]:
        first, *_ = totals = self.cost.sequential_multiply_adds
        return tuple(Cost(float(total), float(total - first)) for total in totals)

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.compute)

    def cost_at(self, exit: int) -> Cost:
        """Cost of a picture that leaves at exit 1..K, all heads on the way included."""
        return self._costs[exit - 1]


class Registry:
    """Served models in the order given. The first model, and the first version of a model, is the default.

    served: every version of every model. engines_restart: whether another process restarts an engine that has died.
    Raises ValueError without a model, or if a name and version come twice.
    """

    def __init__(self, served: Sequence[ServedModel], engines_restart: bool = False) -> None:
        if not served:
            raise ValueError("no model to serve: give at least one bundle")
        self._models: dict[str, dict[str, ServedModel]] = {}
        for model in served:
            name, version = model.bundle.name, model.bundle.version
            if self._models.setdefault(name, {}).setdefault(version, model) is not model:
                raise ValueError(
                    f"model {name!r} version {version!r} is given twice: leave one out, or give it another version"
                )
        self.served = [model for versions in self._models.values() for model in versions.values()]
        self.engines_restart = engines_restart
        self.draining = False
        self.failure: str | None = None
        self._warmed_up = False

    def __contains__(self, name: str) -> bool:
        return name in self._models

    @property
    def default_name(self) -> str:
        """The model of requests without a name."""
        return next(iter(self._models))

    def versions(self, name: str) -> dict[str, ServedModel]:
        """All versions of a model, its default first. Raises UnknownModel."""
        if name not in self._models:
            raise UnknownModel(f"no model {name[:64]!r} is served; there is {', '.join(self._models)}")
        return self._models[name]

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """One version of a model; None for its default. Raises UnknownModel."""
        versions = self.versions(name)
        if version is None:
            return next(iter(versions.values()))
        if version not in versions:
            raise UnknownModel(f"model {name!r} has no version {version[:64]!r}; there is {', '.join(versions)}")
        return versions[version]

    def why_not_ready(self) -> str | None:
        """The reason why the models cannot answer; None if they can."""
        if self.draining:
            return "the server is shutting down"
        if self.failure is not None:
            return self.failure
        if not self._warmed_up:
            return "the models are warming up"
        for model in self.served:
            if not model.engine.alive:
                died = f"the engine of {model.bundle.name} version {model.bundle.version} is not running"
                return RESTARTING if self.engines_restart else died
        return None

    async def start(self) -> None:
        """Start and warm up every engine. An error is the reason why the server does not become ready."""
        for model in self.served:
            try:
                await model.engine.start(asyncio.get_running_loop(), model.warm_up)
            except Exception as error:
                # Any error: the server would seem to warm up for ever.
                self.failure = f"warming up {model.bundle.name} version {model.bundle.version} failed: {error}"
                if not isinstance(error, WarmUpFailed):
                    logger.exception("%s version %s", model.bundle.name, model.bundle.version)
                return
        self._warmed_up = True

    async def drain(self) -> None:
        """Answer all requests in flight, and take in no more."""
        self.draining = True
        await asyncio.gather(*(model.engine.drain() for model in self.served))
