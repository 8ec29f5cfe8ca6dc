"""The server under test: one that runs already, or an own `offramp serve` process for the time of a measurement."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.errors import BenchmarkError
from benchmarks.load import ROOT
from benchmarks.options import AccuracyOptions, BenchOptions

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True)
class Server:
    """Where it listens; and its process where it is ours, else None."""

    url: str
    pid: int | None

    def cpu_s(self) -> float | None:
        """CPU seconds the server's process has used; None where it is not ours or the system has no /proc."""
        if self.pid is None or not Path(f"/proc/{self.pid}/stat").exists():
            return None
        return cpu_s_from_stat(Path(f"/proc/{self.pid}/stat").read_text(), os.sysconf("SC_CLK_TCK"))

    def get(self, path: str) -> str:
        """The body of a GET. Raises BenchmarkError when the server does not answer with success."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return str(response.read().decode())
        except OSError as error:
            raise BenchmarkError(f"{self.url}{path}: no answer ({error}); is the server running?") from error


def cpu_s_from_stat(stat: str, ticks_per_s: int) -> float:
    """User and system seconds of all threads, from the text of /proc/PID/stat (proc(5), fields 14 and 15)."""
    # The second field is the command in brackets, and may hold blanks and brackets itself.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


@contextmanager
def server_under_test(options: BenchOptions | AccuracyOptions) -> Iterator[Server]:
    """The server at `options.url`, or an own one that is stopped at the end. Raises BenchmarkError if not ready."""
    if options.url is not None:
        server = Server(options.url.rstrip("/"), None)
        server.get("/readyz")
        yield server
        return
    port = _free_port()
    command = [sys.executable, "-m", "offramp", "serve", "--port", str(port), "--log-level", "warning"]
    command += ["--threads", str(options.server_threads)]
    if options.model is not None:
        command += ["--model", str(options.model.resolve())]
    with own_server(command, port) as server:
        yield server


@contextmanager
def own_server(command: Sequence[str], port: int) -> Iterator[Server]:
    """Run `command`, wait until /readyz says so, stop it at the end. Raises BenchmarkError with its last words."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            server = Server(f"http://127.0.0.1:{port}", process.pid)
            deadline_s = time.monotonic() + READY_TIMEOUT_S
            while not _ready(server):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise BenchmarkError(_why_not_ready(process.poll(), log))
                time.sleep(POLL_S)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _why_not_ready(exit_status: int | None, log: BinaryIO) -> str:
    log.seek(0)
    words = log.read().decode("utf-8", "replace")[-2000:].strip()
    if exit_status is None:
        return f"the server was not ready after {READY_TIMEOUT_S:g} s; is the machine busy? Its words: {words}"
    return f"the server ended before it was ready (exit status {exit_status}): {words}"


def _ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
