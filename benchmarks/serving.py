"""The server under test: one that runs already, or an own `offramp serve` for the time of a measurement."""

from __future__ import annotations

import http.client
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.load import ROOT
from benchmarks.options import AccuracyOptions, BenchOptions
from benchmarks.processes import PROC, Running, free_port, running

READY_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Server:
    """Where it listens; and its processes where they are ours, else None."""

    url: str
    own: Running | None = None

    def cpu_s(self) -> float | None:
        """CPU seconds the server's processes have used; None where they are not ours or the system has no /proc."""
        return None if self.own is None or not PROC.exists() else self.own.cpu_s()

    def get(self, path: str) -> str:
        """The body of a GET. Raises BenchmarkError when the server does not answer with success."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return str(response.read().decode())
        except OSError as error:
            raise BenchmarkError(f"{self.url}{path}: no answer ({error}); is the server running?") from error


@contextmanager
def server_under_test(options: BenchOptions | AccuracyOptions) -> Iterator[Server]:
    """The server at `options.url`, or an own one that is stopped at the end. Raises BenchmarkError if not ready."""
    if options.url is not None:
        server = Server(options.url.rstrip("/"))
        server.get("/readyz")
        yield server
        return
    with own_server(options.model, "--threads", str(options.server_threads)) as own:
        yield Server(f"http://127.0.0.1:{own.port}", own)


@contextmanager
def own_server(model: Path | None, *options: str) -> Iterator[Running]:
    """`offramp serve` on a free port: ready inside, ended after. Raises BenchmarkError if not ready."""
    # A closed loop waits for its answers: none is to be refused for the wait.
    with default_server(model, "--max-wait-s", "60", *options) as server:
        yield server


@contextmanager
def default_server(model: Path | None, *options: str) -> Iterator[Running]:
    """The same, but with the default of every option that is not given."""
    port = free_port()
    command = [sys.executable, "-m", "offramp", "serve", "--port", str(port), "--log-level", "warning", *options]
    if model is not None:
        command += ["--model", str(model.resolve())]
    with running(command, port, is_ready, {"PYTHONPATH": str(ROOT)}, READY_TIMEOUT_S) as server:
        yield server


def is_ready(port: int) -> bool:
    """What /readyz says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
