"""What the server costs beside the network: time to readiness, one request alone, CPU, several frontends, memory.

All with pictures of the size that the network takes, as PNG. What is compared is measured by turns.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import theilslopes

from benchmarks.harness.closed_loop import LoopFigures, closed_loop, wrk_path
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Document, spread, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import open_loop
from benchmarks.harness.pictures import read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import prediction, write_requests
from benchmarks.harness.results import publish, say
from benchmarks.harness.server import Server, patient_server
from benchmarks.options import ServerCostsOptions, parse_thresholds
from benchmarks.serving.answers import latencies_ms
from benchmarks.serving.engine import run_engine
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.device import choose_device
from offramp.models.exit_policy import ExitRule
from offramp.server.engine.profile import CostProfile, measure_profile
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.runner import Runner
from offramp.server.memory import freeze_heap
from offramp.server.offline import first_exit

MEBI = 2**20
# Share of the first capacity of one process at threshold 1.
OPEN_LOOP_SHARE = 0.7
MAX_BATCH_SIZE = 32
MIN_MEMORY_SAMPLES = 4


@dataclass(frozen=True)
class Setup:
    """What all measurements share. requests: a folder for each threshold. start: a server, by model and flags."""

    options: ServerCostsOptions
    bundle: Bundle
    runner: Runner
    profile: CostProfile
    pictures: list[Any] = field(repr=False)
    png: Sequence[bytes] = field(repr=False)
    requests: dict[float, Path]
    start: Callable[..., AbstractContextManager[Server]]

    def serve(self, frontends: int = 0) -> AbstractContextManager[Server]:
        """A server: ready inside, stopped after."""
        return self.start(self.options.model, "--frontends", str(frontends))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds that are measured."""
        return parse_thresholds(self.options.thresholds)

    def closed_loop(self, server: Server, threshold: float) -> LoopFigures:
        """The server's capacity."""
        return closed_loop(server, self.requests[threshold], self.options.connections, self.options.seconds)


def run(options: ServerCostsOptions) -> None:
    """Measure the server's own costs and write the result file."""
    wrk_path()
    png = read_test_pictures(options.dataset, options.data_root, options.pictures).png
    publish(options.output, measure(options, png), section, ("memory",))


def measure(
    options: ServerCostsOptions,
    png: Sequence[bytes],
    start: Callable[..., AbstractContextManager[Server]] = patient_server,
) -> dict[str, Any]:
    """All measurements with these pictures, as the document of the result file."""
    head = provenance("server-costs", options)
    with tempfile.TemporaryDirectory() as folder:
        setup = prepare(options, png, Path(folder), start)
        return {
            **head,
            **{name: getattr(options, name) for name in ("pictures", "connections", "rounds", "seconds")},
            "served": f"{setup.bundle.name} {setup.bundle.version}",
            "startup": {"ready_s": spread(ready_s(setup) for _ in range(options.rounds))},
            "alone": measure_alone(setup),
            "cpu": measure_cpu(setup),
            "frontends": measure_frontends(setup),
            "memory": measure_memory(setup),
        }


def prepare(
    options: ServerCostsOptions,
    png: Sequence[bytes],
    folder: Path,
    start: Callable[..., AbstractContextManager[Server]],
) -> Setup:
    """Warm the network up, for what is measured without a server, and write all requests."""
    bundle = load_bundle(options.model or EMBEDDED)
    pictures = [bundle.preprocessing.apply(Image.open(io.BytesIO(file))) for file in png]
    runner = choose_runner(bundle, choose_device("auto"))
    runner.warm_up(MAX_BATCH_SIZE)
    profile = measure_profile(runner, bundle.preprocessing.size, MAX_BATCH_SIZE, time.monotonic)
    freeze_heap()
    requests = {
        threshold: write_requests(
            (prediction(file, f"threshold={threshold:g}") for file in png), folder / f"{threshold:g}"
        )
        for threshold in parse_thresholds(options.thresholds)
    }
    return Setup(options, bundle, runner, profile, pictures, png, requests, start)


def ready_s(setup: Setup) -> float:
    """Seconds from the command to readiness."""
    start_s = time.perf_counter()
    with setup.serve():
        return time.perf_counter() - start_s


def measure_alone(setup: Setup) -> list[dict[str, Any]]:
    """Latency of one request at a time on one connection, and of the network alone over the same pictures."""
    http_ms: dict[float, list[float]] = {threshold: [] for threshold in setup.thresholds}
    network_ms: dict[float, list[float]] = {threshold: [] for threshold in setup.thresholds}
    with setup.serve() as server:
        for _ in range(setup.options.rounds):
            for t in setup.thresholds:
                http_ms[t].append(statistics.median(latencies_ms(server, setup.png, f"threshold={t:g}")))
                network_ms[t].append(statistics.median(network_latencies_ms(setup, t)))
    return [
        {
            "threshold": t,
            "http_p50_ms": spread(http_ms[t]),
            "network_p50_ms": spread(network_ms[t]),
            "more_ms": spread(http - network for http, network in zip(http_ms[t], network_ms[t], strict=True)),
        }
        for t in setup.thresholds
    ]


def network_latencies_ms(setup: Setup, threshold: float) -> list[float]:
    """Milliseconds that the network takes for each picture, up to the exit where it leaves."""
    rule, times = ExitRule.uniform(threshold, setup.runner.num_stages), []
    for picture in setup.pictures:
        start_s = time.perf_counter()
        first_exit(setup.runner, picture, rule)
        times.append(1e3 * (time.perf_counter() - start_s))
    return times


def measure_cpu(setup: Setup) -> list[dict[str, Any]]:
    """CPU a request at capacity: of the server, and of the engine alone on the same pictures."""
    loops: dict[float, list[tuple[LoopFigures, float]]] = {threshold: [] for threshold in setup.thresholds}
    with setup.serve() as server:
        for _ in range(setup.options.rounds):
            for threshold, some in loops.items():
                some.append((setup.closed_loop(server, threshold), engine_cpu_ms(setup, threshold)))
                say(f"CPU at threshold {threshold:g}: {some[-1]}")
    return [
        {
            "threshold": threshold,
            "server_ms": spread(loop.cpu_ms for loop, _ in some),
            "engine_ms": spread(engine_ms for _, engine_ms in some),
            "beyond_ms": spread(loop.cpu_ms - engine_ms for loop, engine_ms in some),
            "throughput": spread(loop.throughput for loop, _ in some),
        }
        for threshold, some in loops.items()
    ]


def engine_cpu_ms(setup: Setup, threshold: float) -> float:
    """CPU of the engine without HTTP, for one picture."""
    pictures = setup.pictures * max(1, min(5000, setup.options.requests) // len(setup.pictures))
    before_s = time.process_time()
    asyncio.run(run_engine(setup.runner, setup.profile, pictures, threshold, MAX_BATCH_SIZE))
    return 1e3 * (time.process_time() - before_s) / len(pictures)


def measure_frontends(setup: Setup) -> list[dict[str, Any]]:
    """By the number of frontends: capacity by closed loop, and latency by open loop at one rate for all."""
    options, counts, rate = setup.options, setup.options.frontend_counts(), 0.0
    loops: dict[tuple[int, float], list[tuple[LoopFigures, LoopFigures]]] = {}
    for number in range(options.rounds):
        for count in counts if number % 2 == 0 else counts[::-1]:
            with setup.serve(count) as server:
                for threshold in sorted(setup.thresholds, reverse=True):
                    closed = setup.closed_loop(server, threshold)
                    rate = rate or OPEN_LOOP_SHARE * closed.throughput
                    opened = open_loop(server, setup.requests[threshold], rate, options.seconds, 1, seed=number)
                    loops.setdefault((count, threshold), []).append((closed, opened))
                    say(f"{count} frontends, threshold {threshold:g}: {closed}, {opened}")
    return [
        {
            "frontends": count,
            "threshold": threshold,
            "open_loop_rate": rate,
            "errors": sum(closed.errors + opened.errors for closed, opened in some),
            "throughput": spread(closed.throughput for closed, _ in some),
            "cpu_ms": spread(closed.cpu_ms for closed, _ in some),
            "p50_ms": spread(opened.p50_ms for _, opened in some),
            "p99_ms": spread(opened.p99_ms for _, opened in some),
        }
        for (count, threshold), some in sorted(loops.items())
    ]


def measure_memory(setup: Setup) -> dict[str, Any]:
    """Resident memory over many requests, and its growth after the first quarter of them."""
    options, threshold = setup.options, setup.thresholds[0]
    sent, samples = 0, list[tuple[int, float]]()
    with setup.serve() as server:
        while sent < options.requests or len(samples) < MIN_MEMORY_SAMPLES:
            loop = closed_loop(server, setup.requests[threshold], options.connections, 1, warmup_s=0)
            if loop.errors:
                raise BenchmarkError(f"{loop.errors} errors while memory was watched")
            sent += loop.requests
            samples.append((sent, server.rss_bytes() / MEBI))
    return {"threshold": threshold, "requests": sent, "mib_per_100k": 1e5 * growth(samples), "samples": samples}


def growth(samples: Sequence[tuple[int, float]]) -> float:
    """MiB a request after the first quarter: the median slope between any two samples (Theil-Sen).

    A leak is in every pair of samples; an allocator that takes some more pages once is in few.
    """
    counts, rss_mib = np.array(samples).T
    later = counts >= counts[-1] / 4
    return float(theilslopes(rss_mib[later], counts[later]).slope)


def section(document: Document) -> str:
    """The tables: readiness, one request alone, CPU, frontends, memory."""
    (first_count, first_mib), *_, (last_count, last_mib) = document["memory"]["samples"]
    alone = {
        "threshold": "{threshold:g}",
        "over HTTP, ms": "{http_p50_ms:.2f}",
        "network, ms": "{network_p50_ms:.2f}",
        "more, ms": "{more_ms:.2f}",
    }
    cpu = {
        "threshold": "{threshold:g}",
        "pictures/s": "{throughput:.0f}",
        "server, ms": "{server_ms:.2f}",
        "engine, ms": "{engine_ms:.2f}",
        "beyond, ms": "{beyond_ms:.2f}",
    }
    frontends = {
        "frontends": "{frontends}",
        "threshold": "{threshold:g}",
        "pictures/s": "{throughput:.0f}",
        "CPU, ms": "{cpu_ms:.2f}",
        "p50, ms": "{p50_ms:.1f}",
        "p99, ms": "{p99_ms:.1f}",
        "errors": "{errors}",
    }
    memory = (
        f"Memory over {last_count:,} requests at threshold {{memory[threshold]:g}}: {first_mib:.0f} MiB resident after "
        f"the first {first_count:,}, {last_mib:.0f} MiB after the last; after the first quarter "
        "{memory[mib_per_100k]:+.2f} MiB in 100,000 requests (median slope between any two samples)."
    )
    how = (
        "{served}; {pictures:,} test pictures as PNG; median (least–most) of {rounds} rounds by turns of {seconds} s; "
        "closed loops of {connections} connections; open loops of Poisson arrivals at "
        "{frontends[0][open_loop_rate]:.0f}/s."
    )
    return section_of(
        document,
        "From the command to readiness: {startup[ready_s]:.1f} s.",
        "One request alone, on one connection, and the network alone over the same pictures, medians:",
        table(alone, document["alone"]),
        "CPU for one picture at capacity, of the server and of the engine alone:",
        table(cpu, document["cpu"]),
        "By the number of frontends; 0: one process does all:",
        table(frontends, document["frontends"]),
        memory,
        how,
    )
