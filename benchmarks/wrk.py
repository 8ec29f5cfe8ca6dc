"""Closed loops by wrk, at some ten microseconds of CPU a request; each request another picture and threshold.

wrk is not on PyPI: `apt install wrk`, `brew install wrk`, or https://github.com/wg/wrk.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError

SCRIPT = Path(__file__).parent / "wrk.lua"
# A server that has not answered by then is counted as broken.
TIMEOUT_S = 30


@dataclass(frozen=True)
class Figures:
    """What a load generator saw in its time; of an open loop, without the warm-up.

    requests: answered with a status of 2xx or 3xx. errors: all other answers, broken connections and time-outs.
    throughput: those requests a second. p50_ms and so on: wrk's are of all answers, refusals included; an open loop's
    of those requests. load_cpu_s: what the generator itself computed.
    """

    requests: int
    errors: int
    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_cpu_s: float


def wrk_path() -> str:
    """Where wrk is. Raises BenchmarkError where it is not, with the fix."""
    path = shutil.which("wrk")
    if path is None:
        raise BenchmarkError("wrk is not installed: apt install wrk, brew install wrk, or https://github.com/wg/wrk")
    return path


def run_wrk(port: int, requests_folder: Path, connections: int, duration_s: int) -> Figures:
    """Send the requests in the folder (see `benchmarks.peers.requests`) to 127.0.0.1, over and over.

    Raises BenchmarkError where wrk is not installed or fails, and for an empty folder.
    """
    if not any(requests_folder.glob("*.http")):
        raise BenchmarkError(f"{requests_folder}: no requests to send")
    command = [wrk_path(), "--threads", "1", "--connections", str(connections), "--duration", f"{duration_s}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "--script", str(SCRIPT), f"http://127.0.0.1:{port}"]
    before_s = _children_cpu_s()
    done = subprocess.run([*command, "--", str(requests_folder)], capture_output=True, text=True, check=False)
    load_cpu_s = _children_cpu_s() - before_s
    if done.returncode:
        raise BenchmarkError(f"wrk failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return read_output(done.stdout, load_cpu_s)


def read_output(text: str, load_cpu_s: float) -> Figures:
    """From the JSON line that the script prints beside wrk's own report. Raises BenchmarkError where there is none."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchmarkError(f"wrk printed no figures: {text.strip()[-500:]}")
    told = json.loads(lines[-1])
    answered = told["requests"] - told["refused"]
    p50_ms, p95_ms, p99_ms = (told[f"p{percent}_us"] / 1000 for percent in (50, 95, 99))
    throughput = 1e6 * answered / told["duration_us"]
    return Figures(answered, told["refused"] + told["broken"], throughput, p50_ms, p95_ms, p99_ms, load_cpu_s)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
