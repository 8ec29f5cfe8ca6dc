"""A server of any make as processes: started, awaited, its CPU time read, and ended with all that it started."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.errors import BenchmarkError
from benchmarks.load import ROOT

# In the environment of every process of a server, whoever its parent is: some servers let theirs be adopted.
MARK = "OFFRAMP_BENCH_SERVER"
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0
# What the first process left behind when it ended: some servers' workers notice late, some never.
ORPHANS_TIMEOUT_S = 2.0
POLL_S = 0.05
PROC = Path("/proc")
LAST_WORDS = 3000


@dataclass(frozen=True)
class Running:
    """A server that answers on `port` of this machine."""

    port: int
    mark: str
    process: subprocess.Popen[bytes]

    def named(self, word: str) -> list[int]:
        """Its processes with `word` in their command line."""
        return [pid for pid in members(self.mark) if word.encode() in _of(pid, "cmdline")]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes, and of those that these have waited for."""
        return sum(cpu_s_of(pid, waited_for=True) for pid in members(self.mark))

    def rss_bytes(self) -> int:
        """Resident memory of all its processes; what they share counts in each."""
        return sum(_rss_bytes(pid) for pid in members(self.mark))

    def forget_peak(self) -> None:
        """Let `peak_rss_bytes` count from now."""
        for pid in members(self.mark):
            # proc(5): 5 resets the peak.
            (PROC / str(pid) / "clear_refs").write_text("5")

    def peak_rss_bytes(self) -> int:
        """Of each process the most, together: at least as much as all ever held at one time."""
        peaks = (re.search(rb"VmHWM:\s+(\d+) kB", _of(pid, "status")) for pid in members(self.mark))
        return sum(1024 * int(peak[1]) for peak in peaks if peak)


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    is_ready: Callable[[int], bool],
    variables: Mapping[str, str],
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[Running]:
    """Run `command` with `variables` in its environment until the block ends.

    is_ready: asked with the port until it says so. Raises BenchmarkError with the server's last words if it does not.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, **variables, MARK: mark}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            deadline_s = time.monotonic() + ready_timeout_s
            while not is_ready(port):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise BenchmarkError(_why_not_ready(process.poll(), ready_timeout_s, log))
                time.sleep(POLL_S)
            yield Running(port, mark, process)
        finally:
            _stop(process, mark)


def members(mark: str) -> list[int]:
    """The processes that carry the mark; without /proc, none."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for path in PROC.glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            # It has ended, or belongs to somebody else.
            continue
    return found


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s_of(pid: int, waited_for: bool = False) -> float:
    """CPU seconds of a process, and of the children that it has waited for if wanted; 0 where it has ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0.0
    return cpu_s_from_stat(stat, os.sysconf("SC_CLK_TCK"), waited_for)


def cpu_s_from_stat(stat: str, ticks_per_s: int, waited_for: bool = False) -> float:
    """User and system seconds of all threads, from the text of /proc/PID/stat."""
    # The second field is the command in brackets, and may hold blanks and brackets itself.
    fields = stat.rpartition(")")[2].split()
    # proc(5): own time is fields 14 and 15, that of children 16 and 17.
    return sum(int(ticks) for ticks in fields[11 : 15 if waited_for else 13]) / ticks_per_s


def _of(pid: int, file: str) -> bytes:
    """Of a process; empty where it has ended."""
    try:
        return (PROC / str(pid) / file).read_bytes()
    except OSError:
        return b""


def _rss_bytes(pid: int) -> int:
    try:
        statm = (PROC / str(pid) / "statm").read_text()
    except OSError:
        return 0
    # proc(5): the second field, in pages.
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    if process.poll() is None:
        process.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        started_s = time.monotonic()
        while process.poll() is None and time.monotonic() - started_s < STOP_TIMEOUT_S:
            time.sleep(POLL_S)
        started_s = time.monotonic()
        while members(mark) and time.monotonic() - started_s < ORPHANS_TIMEOUT_S:
            time.sleep(POLL_S)
        for pid in members(mark):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    process.wait()


def _why_not_ready(exit_status: int | None, waited_s: float, log: BinaryIO) -> str:
    log.seek(0)
    words = log.read().decode("utf-8", "replace")[-LAST_WORDS:].strip()
    if exit_status is None:
        return f"the server did not answer within {waited_s:g} s; its last words: {words}"
    return f"the server ended before it answered (exit status {exit_status}): {words}"
