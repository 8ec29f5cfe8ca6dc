"""Run the server: load, listen, announce; drain and end at a signal."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from offramp.server.engine.step_watch import ENGINE_THREAD
from offramp.server.http.tcp import ACCEPTS, BACKLOG, accept_waiting, limit_unsent
from offramp.server.memory import freeze_heap
from offramp.server.settings import Settings

# Imported inside functions: the supervisor of several processes loads neither torch nor the web framework.
if TYPE_CHECKING:
    from fastapi import FastAPI

    from offramp.server.http.uvicorn_config import HttpConfig
    from offramp.server.registry import Registry
    from offramp.server.request.accounts import Accounts

logger = logging.getLogger(__name__)

TICKS_PER_SWEEP = 10


class Server(uvicorn.Server):
    """uvicorn's server with an orderly end: it turns not ready, closes its port, and answers all requests in flight.

    SIGTERM waits `drain_delay_s` before the port closes, SIGINT does not. A second signal ends the process at once. The
    server also ends if an engine has ended: nothing in this process restarts it.
    """

    def __init__(
        self,
        config: HttpConfig,
        registry: Registry,
        drain_delay_s: float,
        address: str,
        announce: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._connections = config.connections
        self._registry = registry
        self._drain_delay_s = drain_delay_s
        self._address = address
        self._announce = announce
        self._announced = self._says_draining = False
        self._close_at_s = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called at SIGTERM and SIGINT. The exit status stays 0, unlike with uvicorn's method."""
        if self._registry.draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._registry.draining = self._connections.draining = True
        self._close_at_s = time.monotonic() + (self._drain_delay_s if sig == signal.SIGTERM else 0.0)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: announce readiness, and end at the right time or after a failure."""
        if counter % TICKS_PER_SWEEP == 0:
            self._connections.sweep()
        if not self._announced and self._registry.why_not_ready() is None:
            self._announced = True
            self.on_ready()
        if self._announced and not self._registry.engines_restart and not self._registry.draining:
            self._registry.failure = self._registry.why_not_ready()
        if time.monotonic() >= self._close_at_s or self._registry.failure is not None:
            self.should_exit = True
        # At the end: a signal may come during the tick, which may be the last one.
        if self._registry.draining and not self._says_draining:
            self._says_draining = True
            self.on_draining()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, but first accept the waiting connections, and answer their first request."""
        self._connections.closed = self._connections.draining = True
        for listener in sockets or []:
            await accept_waiting(listener, self._protocol)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def on_ready(self) -> None:
        """Called once the server can answer."""
        for line in self.announcement():
            self._announce(line)

    def on_draining(self) -> None:
        """Called once, soon after the first signal."""
        log_draining(self.config.timeout_graceful_shutdown or 0, len(self.server_state.tasks))

    def announcement(self) -> list[str]:
        """Lines for the operator: the address, and an example request."""
        served = self._registry.served
        names = ", ".join(f"{model.bundle.name} {model.bundle.version} on {model.device}" for model in served)
        return [
            f"Offramp serves {names} at {self._address} (docs: {self._address}/docs)",
            f"  curl --data-binary @photo.jpg '{self._address}/v1/predict?threshold=0.8'",
        ]


def log_draining(at_most_s: float, num_requests: int | None = None) -> None:
    """Log that the server ends. num_requests: in flight, if known."""
    count = "" if num_requests is None else f"{num_requests} request{'' if num_requests == 1 else 's'} in flight, "
    logger.info("draining: %sat most %g s; Ctrl-C again ends at once", count, at_most_s)


def configure_logging(config: dict[str, Any]) -> None:
    """Set up logging for the whole process, with the warnings of libraries."""
    logging.config.dictConfig(config)
    logging.captureWarnings(True)


def run(settings: Settings, configure_logging: Callable[[dict[str, Any]], None] = configure_logging) -> int:
    """Serve until a signal. Returns the exit code: 0 after an orderly end, else 1 with one sentence on stderr.

    configure_logging: called with `log_config`.
    """
    if settings.frontends:
        from offramp.server.processes.supervisor import supervise

        return supervise(settings)
    configure_logging(log_config(settings.log_level))
    return _run_in_one_process(settings)


def _run_in_one_process(settings: Settings) -> int:
    from offramp.server.http.app import create_app
    from offramp.server.http.http_limits import raise_descriptor_limit
    from offramp.server.loading import load_registry
    from offramp.server.metrics import Metrics

    raise_descriptor_limit()
    metrics = Metrics()
    try:
        log_keys(settings)
        registry = load_registry(settings, metrics)
        app = create_app(registry, settings, metrics)
        listener = listen(settings.host, settings.port)
    except ValueError as error:
        print(f"offramp: {error}", file=sys.stderr)
        return 1
    announce = logging.getLogger("offramp.announcement").info
    freeze_heap()
    server = Server(http_config(app, settings), registry, settings.drain_delay_s, url(listener), announce)
    server.run(sockets=[listener, *(listener.dup() for _ in range(ACCEPTS - 1))])
    if registry.failure is not None:
        print(f"offramp: {registry.failure}", file=sys.stderr)
        return 1
    logger.info("stopped")
    return 0


def end_process(status: int) -> NoReturn:
    """End this process. At once if a step hangs: the device's driver would wait for it for ever."""
    if any(thread.name == ENGINE_THREAD for thread in threading.enumerate()):
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError if the address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port}: {error.strerror}; end what runs there or choose another --port"
        ) from error
    limit_unsent(listener)
    return listener


def url(listener: socket.socket) -> str:
    """The socket's URL for a client on this machine."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def http_config(app: FastAPI, settings: Settings, accounts: Accounts | None = None) -> HttpConfig:
    """uvicorn's configuration for the application."""
    from offramp.server.http.connections import Connections
    from offramp.server.http.proxies import TrustedProxies
    from offramp.server.http.uvicorn_config import HttpConfig

    return HttpConfig(
        app,
        Connections(settings.http_limits, TrustedProxies(settings.trusted_proxies), accounts),
        app.state.gate,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )


def log_keys(settings: Settings) -> None:
    """Log the number of API keys, and warn if other users can read their file. Raises ValueError."""
    file = settings.api_keys_file
    if file is not None and file.exists() and (mode := stat.S_IMODE(file.stat().st_mode)) & stat.S_IRWXO:
        logger.warning("api_keys_file %s is open to every user of this machine (mode %o): chmod 600 it", file, mode)
    if keys := settings.read_api_keys():
        logger.info("API keys read: %d", len(keys))


def log_config(level: str) -> dict[str, Any]:
    """Logging to stderr, one line an event. Of uvicorn, only warnings, and with level debug its steps."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}, "plain": {}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
            "plain": {"class": "logging.StreamHandler", "formatter": "plain"},
        },
        "loggers": {
            # Logged at any level. By logging, since a closed pipe must not end the server.
            "offramp.announcement": {"level": "INFO", "handlers": ["plain"], "propagate": False},
            "offramp": {"level": level.upper(), "handlers": ["stderr"], "propagate": False},
            "py.warnings": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
            "uvicorn": {"level": "INFO" if level == "debug" else "WARNING", "handlers": ["stderr"], "propagate": False},
        },
    }
