"""The server under test as processes: start, readiness, CPU time, memory, stop."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import psutil

from benchmarks.harness.errors import BenchmarkError

ROOT = Path(__file__).resolve().parents[2]
# In the environment of every process of a server: some servers' workers are not descendants of its first process.
MARK = "OFFRAMP_BENCH_SERVER"
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 15.0
# Time for workers to notice that the first process has ended.
ORPHANS_TIMEOUT_S = 2.0
POLL_S = 0.05
LAST_WORDS = 3000


@dataclass(frozen=True)
class Server:
    """A server. process, mark: of a server that this process has started; else its CPU time is NaN."""

    port: int
    host: str = "127.0.0.1"
    mark: str = ""
    process: subprocess.Popen[bytes] | None = None

    def processes(self) -> list[psutil.Process]:
        """All processes of the server, with their facts in `info`."""
        facts = ["environ", "cmdline", "cpu_times", "memory_info"]
        every = psutil.process_iter(facts) if self.mark else ()
        return [process for process in every if (process.info["environ"] or {}).get(MARK) == self.mark]

    def named(self, word: str) -> list[int]:
        """Ids of its processes with `word` in their command line."""
        return [p.pid for p in self.processes() if any(word in argument for argument in p.info["cmdline"] or ())]

    def cpu_s(self) -> float:
        """CPU seconds of its processes and of children that have ended. NaN for a server started elsewhere."""
        return sum(sum(p.info["cpu_times"][:4]) for p in self.processes()) if self.mark else float("nan")

    def rss_bytes(self) -> int:
        """Resident memory of all its processes; shared memory counts in each."""
        return sum(p.info["memory_info"].rss for p in self.processes())

    def reset_peak(self) -> None:
        """Let `peak_rss_bytes` count from now (proc(5): writing 5 to clear_refs)."""
        for process in self.processes():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_rss_bytes(self) -> int:
        """Sum of each process's largest resident memory."""
        status = (Path(f"/proc/{process.pid}/status").read_text() for process in self.processes())
        return sum(1024 * int(peak[1]) for text in status if (peak := re.search(r"VmHWM:\s+(\d+) kB", text)))

    def get(self, path: str) -> str:
        """The body of a GET. Raises BenchmarkError where the answer is not 200."""
        url = f"http://{self.host}:{self.port}{path}"
        try:
            status, body = request(self, "GET", path)
        except OSError as error:
            raise BenchmarkError(f"{url}: no answer ({error}); is it up?") from error
        if status != 200:
            raise BenchmarkError(f"{url}: status {status} {body[:300]}")
        return body

    def is_ready(self) -> bool:
        """Whether /readyz answers 200."""
        try:
            return request(self, "GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


def request(
    server: Server, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


@contextmanager
def start_server(
    command: Sequence[str],
    port: int,
    variables: Mapping[str, str] | None = None,
    is_ready: Callable[[Server], bool] = Server.is_ready,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[Server]:
    """Run `command` until the block ends. variables: for its environment.

    Raises BenchmarkError with the last output of a server that ends, or is not ready in time.
    """
    mark = uuid.uuid4().hex
    # The process finds the same packages as this one, and `benchmarks`.
    paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(variables or {}), MARK: mark}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        server = Server(port, mark=mark, process=process)
        try:
            deadline_s = time.monotonic() + ready_timeout_s
            while not is_ready(server):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise BenchmarkError(_why_not_ready(process.poll(), ready_timeout_s, log))
                time.sleep(POLL_S)
            yield server
        finally:
            _stop(server, process)


@contextmanager
def offramp_server(model: Path | None, *flags: str) -> Iterator[Server]:
    """`offramp serve` on a free port, with the default of every option that is not in `flags`."""
    port = free_port()
    command = [sys.executable, "-m", "offramp", "serve", "--port", str(port), "--log-level", "warning", *flags]
    with start_server([*command, *(["--model", str(model.resolve())] if model else [])], port) as server:
        yield server


@contextmanager
def patient_server(model: Path | None, *flags: str) -> Iterator[Server]:
    """The same with --max-wait-s 60: no request of a closed loop is refused for its wait."""
    with offramp_server(model, "--max-wait-s", "60", *flags) as server:
        yield server


@contextmanager
def server_under_test(url: str | None, model: Path | None, threads: int) -> Iterator[Server]:
    """The server at `url`, or `patient_server` with that model and number of threads."""
    if url is None:
        with patient_server(model, "--threads", str(threads)) as server:
            yield server
        return
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"url {url!r}: give http://HOST:PORT")
    server = Server(parts.port or 80, parts.hostname)
    server.get("/readyz")
    yield server


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(server: Server, first: subprocess.Popen[bytes]) -> None:
    """End the first process, then all others: with SIGTERM, then with SIGKILL."""
    first.terminate()
    with suppress(subprocess.TimeoutExpired):
        first.wait(STOP_TIMEOUT_S)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        _, left = psutil.wait_procs(server.processes(), ORPHANS_TIMEOUT_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                end(process)
    first.wait()


def _why_not_ready(exit_status: int | None, waited_s: float, log: BinaryIO) -> str:
    log.seek(0)
    words = log.read().decode("utf-8", "replace")[-LAST_WORDS:].strip()
    if exit_status is None:
        return f"the server did not answer within {waited_s:g} s; its last words: {words}"
    return f"the server ended before it answered (exit status {exit_status}): {words}"
