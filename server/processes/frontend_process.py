"""A frontend process: HTTP, decoding and admission; the engine is in another process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from types import FrameType

import torch

from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import EMBEDDED, Bundle
from offramp.models.device import choose_device
from offramp.server.engine.admission import Admission
from offramp.server.http.app import create_app
from offramp.server.http.http_limits import raise_descriptor_limit
from offramp.server.http.uvicorn_config import HttpConfig
from offramp.server.loading import load_served
from offramp.server.memory import freeze_heap
from offramp.server.metrics import Metrics, share_counters
from offramp.server.processes.acceptor import Acceptor, OpenConnections
from offramp.server.processes.remote_engine import LOOK_S, EngineLink
from offramp.server.processes.supervisor_channel import BEAT_S, Assignment, Lifeline, read_assignment
from offramp.server.registry import Registry, ServedModel
from offramp.server.request.accounts import Accounts
from offramp.server.request.decoding import MOST_THREADS
from offramp.server.serve import Server, configure_logging, http_config, log_config
from offramp.server.settings import Settings

logger = logging.getLogger(__name__)

TICKS_PER_BEAT = round(BEAT_S / LOOK_S)


class FrontendServer(Server):
    """A server that tells the supervisor that it lives, and ends when the supervisor is gone."""

    def __init__(
        self,
        config: HttpConfig,
        registry: Registry,
        drain_delay_s: float,
        address: str,
        lifeline: Lifeline,
        link: EngineLink,
        shares: OpenConnections,
    ) -> None:
        super().__init__(config, registry, drain_delay_s, address, logger.info)
        self._lifeline = lifeline
        self._link = link
        self._shares = shares

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but for how connections are accepted."""
        await super().startup(sockets=[])
        connections = self.server_state.connections
        self._acceptors = [Acceptor(one, self._protocol, connections, self._shares) for one in sockets or []]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        for acceptor in self._acceptors:
            acceptor.close()
        # uvicorn ticks no more.
        looking = asyncio.create_task(self._keep_looking())
        await super().shutdown(sockets)
        looking.cancel()

    async def _keep_looking(self) -> None:
        while True:
            self._link.look()
            self._lifeline.beat()
            await asyncio.sleep(LOOK_S)

    def on_ready(self) -> None:
        """The supervisor announces the server, once for all its processes."""
        self._lifeline.ready(self.announcement())

    def on_draining(self) -> None:
        """The supervisor logs it, once for all its processes."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As the server's, but a second signal does nothing: the supervisor kills a process that is late.

        Some service managers send the first to every process, and the supervisor then sends one more. Waiting for the
        engine to become ready ends.
        """
        if not self._registry.draining:
            super().handle_exit(sig, frame)
        for engine in self._link.engines:
            engine.let_go()

    async def on_tick(self, counter: int) -> bool:
        """As the server's; the tenth of a second is uvicorn's."""
        self._link.look()
        for acceptor in self._acceptors:
            acceptor.tell()
        if counter % TICKS_PER_BEAT == 0:
            self._lifeline.beat()
            if self._lifeline.cut and not self._registry.draining:
                self.handle_exit(signal.SIGINT, None)
        if self._link.refused and not self._registry.draining:
            self._lifeline.failed("a bundle was replaced while the server ran, and the engine has another than this")
            self.handle_exit(signal.SIGINT, None)
        return await super().on_tick(counter)


def load_remote(settings: Settings, metrics: Metrics, assignment: Assignment) -> tuple[Registry, EngineLink]:
    """Every bundle's facts, in front of the engine process. Raises ValueError, as `offramp.server.loading` does."""
    load_backbones(settings.backbones)
    device = str(choose_device(settings.device))
    whole = [load_served(path, settings) for path in settings.model or [EMBEDDED]]
    costs = [bundle.cost for bundle in whole]
    bundles = [_without_weights(bundle) for bundle in whole]
    del whole
    link = EngineLink(
        assignment.engine_address,
        assignment.number,
        assignment.segments[assignment.number],
        bundles,
        Admission(settings.max_queue, settings.max_wait_s),
    )
    served = []
    for bundle, cost, engine in zip(bundles, costs, link.engines, strict=True):
        metrics.add_model(bundle, cost, device)
        served.append(ServedModel(bundle, cost, device, engine, _warmed_up_elsewhere))
    return Registry(served, engines_restart=True), link


def _without_weights(bundle: Bundle) -> Bundle:
    return replace(bundle, net=bundle.net.to("meta"))


def _warmed_up_elsewhere() -> None:
    """The engine process warms up itself."""


def run_frontend(assignment: Assignment) -> int:
    """The whole life of a frontend process; its exit status."""
    settings, lifeline = assignment.settings, Lifeline(assignment.lifeline)
    configure_logging(log_config(settings.log_level))
    raise_descriptor_limit()
    share_counters(assignment.folder, assignment.name)
    # The network is only measured here, never run.
    torch.set_num_threads(1)
    cores_each = (os.cpu_count() or 1) // settings.frontends
    decode_threads = settings.decode_threads or max(1, min(MOST_THREADS, cores_each))
    try:
        metrics = Metrics(shared=assignment.folder)
        registry, link = load_remote(settings, metrics, assignment)
        accounts = Accounts(assignment.accounts, settings.frontends, assignment.number)
        app = create_app(registry, replace(settings, decode_threads=decode_threads), metrics, accounts)
    except ValueError as error:
        lifeline.failed(str(error))
        return 1
    listener = socket.socket(fileno=assignment.listener)
    shares = OpenConnections(assignment.shares, settings.frontends, assignment.number)
    server = FrontendServer(
        http_config(app, settings, accounts),
        registry,
        settings.drain_delay_s,
        assignment.address,
        lifeline,
        link,
        shares,
    )
    freeze_heap()
    server.run(sockets=[listener])
    return 1 if link.refused else 0


if __name__ == "__main__":
    sys.exit(run_frontend(read_assignment()))
