"""`offramp serve` on a thread: its options, application and HTTP server, without a process that imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import typer

from benchmarks.harness.server import Server as Listening
from offramp.command import add_command
from offramp.server.http.app import create_app
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.serve import Server, http_config, listen, url
from offramp.server.settings import Settings

# Nothing to compile, and few batch sizes whose steps are timed at the start.
QUICK = ("--port", "0", "--runner", "torch", "--max-batch-size", "8")


@contextmanager
def served_here(model: Path | None, *options: str) -> Iterator[Listening]:
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
            yield Listening(listener.getsockname()[1])
        finally:
            server.should_exit = True
            serving.result()


def settings_of(*flags: str) -> Settings:
    """The settings of `offramp serve` with these flags."""
    parsed: list[Settings] = []

    def keep(settings: Settings) -> None:
        parsed.append(settings)

    app = typer.Typer()
    add_command(app, Settings)(keep)
    typer.main.get_command(app).main(list(flags), standalone_mode=False)
    (settings,) = parsed
    return settings
