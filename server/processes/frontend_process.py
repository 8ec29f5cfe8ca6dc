"""A frontend process: HTTP, decoding and admission; the engine runs in another process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from types import FrameType

import torch

from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import EMBEDDED
from offramp.models.device import choose_device
from offramp.server.engine.admission import Admission
from offramp.server.http.app import create_app
from offramp.server.http.http_limits import raise_descriptor_limit
from offramp.server.http.uvicorn_config import HttpConfig
from offramp.server.loading import load_served
from offramp.server.memory import freeze_heap
from offramp.server.metrics import Metrics, share_counters
from offramp.server.processes.acceptor import Acceptor
from offramp.server.processes.remote_engine import LOOK_S, EngineLink
from offramp.server.processes.supervisor_channel import BEAT_S, Assignment, SupervisorChannel
from offramp.server.registry import Registry, ServedModel
from offramp.server.request.accounts import Accounts
from offramp.server.request.decoding import MOST_THREADS
from offramp.server.serve import Server, configure_logging, http_config, log_config

logger = logging.getLogger(__name__)

LOOKS_PER_BEAT = round(BEAT_S / LOOK_S)


class FrontendServer(Server):
    """A server that reports to the supervisor, and ends when the supervisor is gone."""

    def __init__(self, config: HttpConfig, registry: Registry, channel: SupervisorChannel, link: EngineLink) -> None:
        self._assignment = channel.assignment
        super().__init__(
            config, registry, self._assignment.settings.drain_delay_s, self._assignment.address, logger.info
        )
        self._channel = channel
        self._link = link

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, except that an Acceptor shares the connections with the other frontends."""
        await super().startup(sockets=[])
        assert sockets is not None
        [listener] = sockets
        assignment = self._assignment
        self._acceptor = Acceptor(
            listener,
            self._protocol,
            self.server_state.connections,
            assignment.connections,
            assignment.settings.frontends,
            assignment.number,
        )
        self._looking = asyncio.create_task(self._keep_looking())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await self._acceptor.close()
        await super().shutdown(sockets)
        self._looking.cancel()

    async def _keep_looking(self) -> None:
        for look in itertools.count():
            self._link.look()
            self._acceptor.publish_count()
            if look % LOOKS_PER_BEAT == 0:
                self._channel.send()
            await asyncio.sleep(LOOK_S)

    def on_ready(self) -> None:
        """The supervisor announces the server, once for all its processes."""
        self._channel.send(announcement=self.announcement())

    def on_draining(self) -> None:
        """The supervisor logs it, once for all its processes."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As the server's, but a second signal does nothing: the supervisor kills a process that is late.

        Some service managers send the first signal to every process, and the supervisor then sends one more.
        """
        if not self._registry.draining:
            super().handle_exit(sig, frame)
        self._link.stop_waiting()

    async def on_tick(self, counter: int) -> bool:
        """As the server's. It ends too when the supervisor is gone, or when the engine serves other models."""
        if not self._registry.draining and (self._link.refused or self._channel.closed):
            if self._link.refused:
                self._channel.send(
                    failure="a bundle was replaced while the server ran, and the engine has another than this"
                )
            self.handle_exit(signal.SIGINT, None)
        return await super().on_tick(counter)


def load_remote(assignment: Assignment, metrics: Metrics) -> tuple[Registry, EngineLink]:
    """Load every bundle's facts, for engines in another process. Raises ValueError as `offramp.server.loading` does."""
    settings = assignment.settings
    load_backbones(settings.backbones)
    device = str(choose_device(settings.device))
    whole = [load_served(path, settings) for path in settings.model or [EMBEDDED]]
    costs = [bundle.cost for bundle in whole]
    # Without weights: the network runs in the engine process.
    bundles = [replace(bundle, net=bundle.net.to("meta")) for bundle in whole]
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
        served.append(ServedModel(bundle, cost, device, engine, warm_up=lambda: None))
    return Registry(served, engines_restart=True), link


def run_frontend(channel: SupervisorChannel) -> int:
    """Run a frontend process from its start to its end; returns its exit status."""
    assignment, settings = channel.assignment, channel.assignment.settings
    configure_logging(log_config(settings.log_level))
    raise_descriptor_limit()
    share_counters(assignment.folder, assignment.name)
    # This process measures the network but never runs it.
    torch.set_num_threads(1)
    cores_each = (os.cpu_count() or 1) // settings.frontends
    decode_threads = settings.decode_threads or max(1, min(MOST_THREADS, cores_each))
    try:
        metrics = Metrics(shared=assignment.folder)
        registry, link = load_remote(assignment, metrics)
        accounts = Accounts(assignment.accounts, settings.frontends, assignment.number)
        app = create_app(registry, replace(settings, decode_threads=decode_threads), metrics, accounts)
    except ValueError as error:
        channel.send(failure=str(error))
        return 1
    server = FrontendServer(http_config(app, settings, accounts), registry, channel, link)
    freeze_heap()
    server.run(sockets=[socket.socket(fileno=assignment.listener)])
    return 1 if link.refused else 0


if __name__ == "__main__":
    sys.exit(run_frontend(SupervisorChannel()))
