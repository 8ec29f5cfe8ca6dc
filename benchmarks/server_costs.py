"""What the server costs beside the network: time to readiness, one request alone, CPU, memory, several frontends.

    python -m benchmarks.server_costs --data-root data

All with pictures of the size that the network takes, as PNG. What is compared is measured by turns.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from PIL import Image
from scipy.stats import theilslopes

from benchmarks.command_line import command_line
from benchmarks.engine import through_engine
from benchmarks.errors import BenchmarkError
from benchmarks.load import ROOT
from benchmarks.machine import provenance
from benchmarks.options import DataRoot, DatasetName, ModelPath, parse_thresholds
from benchmarks.peers.open_loop import OpenJob, run_open_loop
from benchmarks.peers.requests import Ask, write_requests
from benchmarks.pictures import export_test_pictures, read_pictures
from benchmarks.processes import Running
from benchmarks.serving import own_server
from benchmarks.stats import percentile, spread
from benchmarks.wrk import run_wrk, wrk_path
from models.bundle import EMBEDDED, Bundle, load_bundle
from models.device import choose_device
from models.exit_policy import ExitRule
from server.engine.profile import CostProfile, measure_profile
from server.engine.runners.choice import choose_runner
from server.engine.runners.runner import Runner
from server.memory import freeze_heap
from server.offline import first_exit

MEBI = 2**20
# Of what one frontend does at most, at threshold 1.
OPEN_LOOP_SHARE = 0.7
OPEN_LOOP_CONNECTIONS = 512
MAX_BATCH_SIZE = 32
# Of memory, for a line through them.
ENOUGH_SAMPLES = 4


@dataclass(frozen=True)
class ServerCostsOptions:
    """Options of `python -m benchmarks.server_costs`. Raises ValueError for lists that are none."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    pictures: Annotated[int, typer.Option(min=1, help="Test pictures that are sent, over and over.")] = 1000
    thresholds: Annotated[str, typer.Option(help="Measured at each, separated by commas.")] = "0.7,1"
    frontends: Annotated[str, typer.Option(help="Numbers of frontends to compare, separated by commas.")] = "0,1,2"
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Clients of the closed loops.")] = 64
    rounds: Annotated[int, typer.Option(min=1, help="How often each thing is measured, by turns.")] = 4
    seconds: Annotated[int, typer.Option(min=1, help="Measured seconds of each closed and open loop.")] = 4
    requests: Annotated[int, typer.Option(min=1000, help="How many requests memory is watched over.")] = 200_000
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/server-costs.json")

    def __post_init__(self) -> None:
        parse_thresholds(self.thresholds)
        parse_counts(self.frontends)


def parse_counts(text: str) -> tuple[int, ...]:
    """ "0,1,2" -> (0, 1, 2). Raises ValueError for anything that is no list of different whole numbers from 0 up."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ValueError(f"frontends {text!r}: give different whole numbers from 0 up, separated by commas")
    return tuple(map(int, parts))


class Start(Protocol):
    """How a server is started; `served`, but in tests."""

    def __call__(
        self, options: ServerCostsOptions, frontends: int = 0
    ) -> AbstractContextManager[tuple[Running, float]]:
        """A server with so many frontends, and the seconds until it was ready."""
        ...


@dataclass(frozen=True)
class Setting:
    """What all measurements share. start: a server. requests: a folder of ready requests for each threshold."""

    options: ServerCostsOptions
    start: Start
    bundle: Bundle
    runner: Runner
    profile: CostProfile
    pictures: Sequence[Any]
    png: Sequence[bytes]
    requests: dict[float, Path]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those asked for."""
        return parse_thresholds(self.options.thresholds)


def run(options: ServerCostsOptions) -> int:
    """Measure the server's own costs and write the result file."""
    wrk_path()
    with tempfile.TemporaryDirectory() as folder:
        export_test_pictures(options.dataset, options.data_root, options.pictures, Path(folder))
        png = read_pictures(Path(folder))
    document = measured(options, png)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(f"written to {options.output}")
    return 0


@contextmanager
def served(options: ServerCostsOptions, frontends: int = 0) -> Iterator[tuple[Running, float]]:
    """A server of one's own, and the seconds until it was ready."""
    start_s = time.perf_counter()
    with own_server(options.model, "--frontends", str(frontends)) as server:
        yield server, time.perf_counter() - start_s


def measured(options: ServerCostsOptions, png: Sequence[bytes], start: Start = served) -> dict[str, Any]:
    """All measurements with these pictures, as the document of the result file."""
    head = {"benchmark": "server-costs", **provenance()}
    with tempfile.TemporaryDirectory() as folder:
        setting = prepared(options, png, Path(folder), start)
        return {
            **head,
            **{name: getattr(options, name) for name in ("pictures", "connections", "rounds", "seconds")},
            "served": f"{setting.bundle.name} {setting.bundle.version}",
            "startup": startup(setting),
            "alone": alone(setting),
            "cpu": cpu(setting),
            "frontends": frontends(setting),
            "memory": memory(setting),
        }


def prepared(options: ServerCostsOptions, png: Sequence[bytes], folder: Path, start: Start) -> Setting:
    """The network, warm, for what is measured without a server; and every request, ready to be sent."""
    bundle = load_bundle(options.model or EMBEDDED)
    pictures = [bundle.preprocessing.apply(Image.open(io.BytesIO(one))) for one in png]
    runner = choose_runner(bundle, choose_device("auto"))
    runner.warm_up(MAX_BATCH_SIZE)
    profile = measure_profile(runner, bundle.preprocessing.size, MAX_BATCH_SIZE, time.monotonic)
    freeze_heap()
    requests = {
        threshold: write_requests(
            (Ask(f"/v1/predict?threshold={threshold:g}", "image/png", one) for one in png), folder / f"{threshold:g}"
        )
        for threshold in parse_thresholds(options.thresholds)
    }
    return Setting(options, start, bundle, runner, profile, pictures, png, requests)


def startup(setting: Setting) -> dict[str, Any]:
    """Seconds from the command to readiness, and where they go."""
    options = setting.options
    command = [sys.executable, "-m", "benchmarks.startup", *([str(options.model.resolve())] if options.model else [])]
    ready_s, parts = [], []
    for _ in range(options.rounds):
        with setting.start(options) as (_, seconds):
            ready_s.append(seconds)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"benchmarks.startup failed: {done.stderr.strip()[-500:]}")
        parts.append(json.loads(done.stdout.splitlines()[-1]))
        say(f"ready after {seconds:.2f} s, of which {sum(parts[-1].values()):.2f} s are accounted for")
    medians = {name: statistics.median(one[name] for one in parts) for name in parts[0]}
    return {"ready_s": asdict(spread(ready_s)), "parts_s": medians}


def alone(setting: Setting) -> list[dict[str, Any]]:
    """Latency of one request at a time on one connection, and of the network alone over the same pictures."""
    through_http: dict[float, list[float]] = {threshold: [] for threshold in setting.thresholds}
    network: dict[float, list[float]] = {threshold: [] for threshold in setting.thresholds}
    with setting.start(setting.options) as (server, _):
        for _ in range(setting.options.rounds):
            for threshold in setting.thresholds:
                through_http[threshold].append(
                    1e3 * statistics.median(asked(server.port, setting.png, f"threshold={threshold:g}"))
                )
                network[threshold].append(1e3 * statistics.median(walked(setting, threshold)))
    rows = []
    for threshold in setting.thresholds:
        more = [a - b for a, b in zip(through_http[threshold], network[threshold], strict=True)]
        rows.append(
            {
                "threshold": threshold,
                "http_p50_ms": asdict(spread(through_http[threshold])),
                "network_p50_ms": asdict(spread(network[threshold])),
                "more_ms": asdict(spread(more)),
            }
        )
        say(f"alone: {rows[-1]}")
    return rows


def asked(port: int, png: Sequence[bytes], query: str) -> list[float]:
    """Seconds of each request, one after the other."""
    times = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for body in png:
            start_s = time.perf_counter()
            connection.request("POST", f"/v1/predict?{query}", body, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - start_s)
            if answer.status != 200:
                raise BenchmarkError(f"the server answered {answer.status} to a request alone")
    return times


def walked(setting: Setting, threshold: float) -> list[float]:
    """Seconds that the network takes for each picture, up to the exit where it leaves."""
    rule = ExitRule.uniform(threshold, setting.runner.num_stages)
    times = []
    for picture in setting.pictures:
        start_s = time.perf_counter()
        first_exit(setting.runner, picture, rule)
        times.append(time.perf_counter() - start_s)
    return times


def cpu(setting: Setting) -> list[dict[str, Any]]:
    """CPU a request at capacity: of the server, and of the engine alone on the same pictures."""
    options, rows = setting.options, []
    measured: dict[float, list[tuple[float, float, float]]] = {threshold: [] for threshold in setting.thresholds}
    with setting.start(options) as (server, _):
        for _ in range(options.rounds):
            for threshold in setting.thresholds:
                run_wrk(server.port, setting.requests[threshold], options.connections, 1)
                before_s = server.cpu_s()
                loop = run_wrk(server.port, setting.requests[threshold], options.connections, options.seconds)
                server_ms = 1e3 * (server.cpu_s() - before_s) / loop.requests
                measured[threshold].append((server_ms, engine_cpu_ms(setting, threshold), loop.throughput))
    for threshold, cells in measured.items():
        named = {
            "server_ms": [server_ms for server_ms, _, _ in cells],
            "engine_ms": [engine_ms for _, engine_ms, _ in cells],
            "beyond_ms": [server_ms - engine_ms for server_ms, engine_ms, _ in cells],
            "throughput": [throughput for _, _, throughput in cells],
        }
        rows.append({"threshold": threshold, **{name: asdict(spread(one)) for name, one in named.items()}})
        say(f"cpu: {rows[-1]}")
    return rows


def engine_cpu_ms(setting: Setting, threshold: float) -> float:
    """Of the engine without HTTP, for one picture."""
    pictures = [*setting.pictures] * max(1, min(5000, setting.options.requests) // len(setting.pictures))
    before_s = time.process_time()
    asyncio.run(through_engine(setting.runner, setting.profile, pictures, threshold, MAX_BATCH_SIZE))
    return 1e3 * (time.process_time() - before_s) / len(pictures)


def frontends(setting: Setting) -> list[dict[str, Any]]:
    """Capacity by closed loop, and latency by open loop at the same rate for all, by the number of frontends."""
    options, counts = setting.options, parse_counts(setting.options.frontends)
    cells: dict[tuple[int, float], list[dict[str, float]]] = {}
    rate = 0.0
    for round in range(options.rounds):
        for count in counts if round % 2 == 0 else counts[::-1]:
            with setting.start(options, count) as (server, _):
                for threshold in sorted(setting.thresholds, reverse=True):
                    folder = setting.requests[threshold]
                    run_wrk(server.port, folder, options.connections, 1)
                    before_s = server.cpu_s()
                    closed = run_wrk(server.port, folder, options.connections, options.seconds)
                    cpu_ms = 1e3 * (server.cpu_s() - before_s) / closed.requests
                    rate = rate or OPEN_LOOP_SHARE * closed.throughput
                    job = OpenJob(server.port, str(folder), OPEN_LOOP_CONNECTIONS, rate, 1, options.seconds, round)
                    due = [sent for sent in run_open_loop(job).sent if sent.due_s >= 1]
                    late_ms = [1e3 * (sent.done_s - sent.due_s) for sent in due if sent.status == 200]
                    cells.setdefault((count, threshold), []).append(
                        {
                            "throughput": closed.throughput,
                            "cpu_ms": cpu_ms,
                            "p50_ms": percentile(late_ms, 50),
                            "p99_ms": percentile(late_ms, 99),
                            "errors": closed.errors + len(due) - len(late_ms),
                        }
                    )
                    say(f"frontends {count}, threshold {threshold:g}: {cells[count, threshold][-1]}")
    return [
        {
            "frontends": count,
            "threshold": threshold,
            "open_loop_rate": rate,
            "errors": sum(one["errors"] for one in some),
            **{
                name: asdict(spread([one[name] for one in some]))
                for name in ("throughput", "cpu_ms", "p50_ms", "p99_ms")
            },
        }
        for (count, threshold), some in sorted(cells.items())
    ]


def memory(setting: Setting) -> dict[str, Any]:
    """Resident memory over many requests, and how it grows once the first quarter has passed."""
    options, threshold = setting.options, setting.thresholds[0]
    sent = 0
    samples: list[tuple[int, float]] = []
    with setting.start(options) as (server, _):
        while sent < options.requests or len(samples) < ENOUGH_SAMPLES:
            loop = run_wrk(server.port, setting.requests[threshold], options.connections, 1)
            if loop.errors or not loop.requests:
                raise BenchmarkError(f"{loop.errors} errors and {loop.requests} answers while memory was watched")
            sent += loop.requests
            samples.append((sent, server.rss_bytes() / MEBI))
    told = {"threshold": threshold, "requests": sent, "mib_per_100k": 1e5 * growth(samples), "samples": samples}
    say(f"memory: {samples[0][1]:.1f} MiB after {samples[0][0]} requests, {samples[-1][1]:.1f} after {sent}")
    return told


def growth(samples: Sequence[tuple[int, float]]) -> float:
    """MiB a request once the first quarter has passed: the median slope between any two samples (Theil-Sen).

    A leak goes on and on, and is in every pair; an allocator that takes some more pages once is in few.
    """
    counts, rss_mib = np.array(samples).T
    later = counts >= counts[-1] / 4
    return float(theilslopes(rss_mib[later], counts[later]).slope)


def say(text: str) -> None:
    """Progress."""
    typer.echo(text, err=True)


if __name__ == "__main__":
    command_line(ServerCostsOptions, run)
