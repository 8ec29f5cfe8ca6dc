"""Closed loops by wrk, at some ten microseconds of CPU a request.

wrk is not on PyPI: `apt install wrk`, `brew install wrk`, or https://github.com/wg/wrk.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.requests import read_requests
from benchmarks.harness.server import Server

SCRIPT = Path(__file__).parent / "wrk.lua"
# A request that takes longer is an error.
TIMEOUT_S = 30


@dataclass(frozen=True)
class LoopFigures:
    """Figures of the measured seconds of one closed or open loop.

    requests: answered with 2xx or 3xx. errors: all others. throughput: `requests` a second. p50_ms and so on: latency;
    wrk's includes refusals. cpu_ms, load_cpu_ms: CPU time of server and load generator for one request; cpu_ms is NaN
    for a server that was started elsewhere.
    """

    requests: int
    errors: int
    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    load_cpu_ms: float


def wrk_path() -> str:
    """Path of wrk. Raises BenchmarkError with the fix where it is missing."""
    path = shutil.which("wrk")
    if path is None:
        raise BenchmarkError("wrk is not installed: apt install wrk, brew install wrk, or https://github.com/wg/wrk")
    return path


def closed_loop(
    server: Server, requests_folder: Path, connections: int, seconds: int, warmup_s: int = 1, may_fail: bool = True
) -> LoopFigures:
    """Send the requests in the folder (see `write_requests`) over and over, for `seconds` after the warm-up.

    Raises BenchmarkError where wrk is missing or fails, for an empty folder, where no request is answered, and, unless
    requests `may_fail`, where one is not.
    """
    read_requests(requests_folder)
    if warmup_s:
        _run_wrk(server, requests_folder, connections, warmup_s)
    server_s, load_s = server.cpu_s(), _children_cpu_s()
    text = _run_wrk(server, requests_folder, connections, seconds)
    loop = read_output(text, server.cpu_s() - server_s, _children_cpu_s() - load_s)
    if not loop.requests or (loop.errors and not may_fail):
        answered = "none" if not loop.requests else "not all"
        raise BenchmarkError(f"the server answered {answered} of the closed loop's requests ({loop.errors} errors)")
    return loop


def read_output(text: str, server_cpu_s: float, load_cpu_s: float) -> LoopFigures:
    """Figures from the JSON line that wrk.lua prints. Raises BenchmarkError where it is missing."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchmarkError(f"wrk printed no figures: {text.strip()[-500:]}")
    read = json.loads(lines[-1])
    answered, errors = read["requests"] - read["refused"], read["refused"] + read["broken"]
    latencies_ms = (read[f"p{percent}_us"] / 1000 for percent in (50, 95, 99))
    cpu_ms = (1e3 * seconds / max(1, answered) for seconds in (server_cpu_s, load_cpu_s))
    return LoopFigures(answered, errors, 1e6 * answered / read["duration_us"], *latencies_ms, *cpu_ms)


def _run_wrk(server: Server, folder: Path, connections: int, seconds: int) -> str:
    command = [wrk_path(), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "--script", str(SCRIPT), f"http://{server.host}:{server.port}"]
    done = subprocess.run([*command, "--", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"wrk failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
