"""`offramp serve` on a thread: its options, application and HTTP server, but no process that has to import torch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import typer

import offramp
from server.app import create_app
from server.loading import load_registry
from server.metrics import Metrics
from server.serve import Server, http_config, listen, url
from server.settings import Settings

# Nothing to compile, and few batch sizes whose steps are timed at the start.
QUICK = ("--port", "0", "--runner", "torch", "--max-batch-size", "8")


@dataclass(frozen=True)
class Here:
    """Where it listens."""

    port: int


@contextmanager
def served_here(model: Path | None, *options: str) -> Iterator[Here]:
    """The bundle with these options beside QUICK: ready inside, ended after."""
    settings = settings_of("--model", str(model), "--max-wait-s", "60", *QUICK, *options)
    metrics = Metrics()
    registry = load_registry(settings, metrics)
    listener = listen(settings.host, settings.port)
    settled = Event()
    server = Server(
        http_config(create_app(registry, settings, metrics), settings),
        *(registry, settings.drain_delay_s, url(listener), lambda line: settled.set()),
    )
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(server.run, [listener])
        serving.add_done_callback(lambda ended: settled.set())
        settled.wait()
        assert not serving.done(), registry.failure
        try:
            yield Here(listener.getsockname()[1])
        finally:
            server.should_exit = True
            serving.result()


def settings_of(*flags: str) -> Settings:
    """What `offramp serve` makes of these flags."""
    told: list[Settings] = []

    def keep(settings: Settings) -> None:
        told.append(settings)

    app = typer.Typer()
    offramp.command(Settings, app)(keep)
    typer.main.get_command(app).main(list(flags), standalone_mode=False)
    (settings,) = told
    return settings
