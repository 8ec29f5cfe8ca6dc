"""What the server costs beside the network: time to readiness, one request alone, CPU, several frontends, memory.

All with pictures of the size that the network takes, as PNG.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import theilslopes

from benchmarks.harness.closed_loop import LoopFigures, closed_loop, wrk_path
from benchmarks.harness.figures import Document, interleave, spread, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import open_loop
from benchmarks.harness.pictures import read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import predictions
from benchmarks.harness.results import publish
from benchmarks.harness.server import Server, patient_server
from benchmarks.options import ServerCostsOptions, parse_thresholds
from benchmarks.serving.answers import latencies_ms
from benchmarks.serving.engine import run_engine
from benchmarks.serving.setup import Setup, StartServer
from offramp.models.bundle import EMBEDDED, load_bundle
from offramp.models.device import choose_device
from offramp.models.exit_policy import ExitRule
from offramp.server.engine.profile import CostProfile, measure_profile
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.runner import Runner
from offramp.server.memory import freeze_heap
from offramp.server.offline import first_exit

MEBI = 2**20
# Share of the first capacity of one process at the largest threshold.
OPEN_LOOP_SHARE = 0.7
MAX_BATCH_SIZE = 32
MIN_MEMORY_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class CostSetup(Setup[ServerCostsOptions]):
    """pictures: as the network takes them. runner, profile: of the network alone."""

    pictures: list[Any] = field(repr=False)
    runner: Runner
    profile: CostProfile

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds that are measured."""
        return parse_thresholds(self.options.thresholds)

    def requests(self, threshold: float) -> Path:
        """A request for each picture."""
        query = f"threshold={threshold:g}"
        return self.write(query, predictions(self.png, query))

    def capacity(self, server: Server, threshold: float) -> LoopFigures:
        """The server in a closed loop."""
        return closed_loop(server, self.requests(threshold), self.options.connections, self.options.seconds)


def run(options: ServerCostsOptions) -> None:
    """Measure the server's own costs and write the result file."""
    wrk_path()
    png = read_test_pictures(options.dataset, options.data_root, options.pictures).png
    publish(options.output, measure(options, png), section, ("memory",))


def measure(options: ServerCostsOptions, png: Sequence[bytes], start: StartServer = patient_server) -> dict[str, Any]:
    """All measurements with these pictures, as the document of the result file."""
    head, bundle = provenance("server-costs", options), load_bundle(options.model or EMBEDDED)
    pictures = [bundle.preprocessing.apply(Image.open(io.BytesIO(file))) for file in png]
    runner = choose_runner(bundle, choose_device("auto"))
    runner.warm_up(MAX_BATCH_SIZE)
    profile = measure_profile(runner, bundle.preprocessing.size, MAX_BATCH_SIZE, time.monotonic)
    freeze_heap()
    with tempfile.TemporaryDirectory() as folder:
        shared = Setup(options=options, png=png, folder=Path(folder), start=start)
        setup = CostSetup(**vars(shared), pictures=pictures, runner=runner, profile=profile)
        return {
            **head,
            **{name: getattr(options, name) for name in ("pictures", "connections", "rounds", "seconds")},
            "served": f"{bundle.name} {bundle.version}",
            "startup": {"ready_s": spread(ready_s(setup) for _ in range(options.rounds))},
            **measure_costs(setup),
            "frontends": measure_frontends(setup),
            "memory": measure_memory(setup),
        }


def ready_s(setup: CostSetup) -> float:
    """Seconds from the command to readiness."""
    start_s = time.perf_counter()
    with setup.serve():
        return time.perf_counter() - start_s


@dataclass(frozen=True)
class CostRound:
    """One threshold in one round.

    http_p50_ms, network_p50_ms: median latency of one request at a time on one connection, and of the network alone.
    server_ms, engine_ms: CPU for one picture of the server at capacity, and of the engine alone. throughput: pictures
    a second at capacity.
    """

    http_p50_ms: float
    network_p50_ms: float
    server_ms: float
    engine_ms: float
    throughput: float

    @property
    def more_ms(self) -> float:
        """What the server adds to the latency."""
        return self.http_p50_ms - self.network_p50_ms

    @property
    def beyond_ms(self) -> float:
        """What the server adds to the CPU time."""
        return self.server_ms - self.engine_ms


def measure_costs(setup: CostSetup) -> dict[str, list[dict[str, Any]]]:
    """One request alone, and CPU at capacity, by threshold; each beside the network or engine alone."""

    def measure_round(threshold: float, number: int) -> CostRound:
        http_ms = statistics.median(latencies_ms(server, setup.png, f"threshold={threshold:g}"))
        network_ms = statistics.median(network_latencies_ms(setup, threshold))
        loop = setup.capacity(server, threshold)
        return CostRound(http_ms, network_ms, loop.cpu_ms, engine_cpu_ms(setup, threshold), loop.throughput)

    with setup.serve() as server:
        rounds = interleave({t: partial(measure_round, t) for t in setup.thresholds}, setup.options.rounds)
    fields = {
        "alone": ("http_p50_ms", "network_p50_ms", "more_ms"),
        "cpu": ("server_ms", "engine_ms", "beyond_ms", "throughput"),
    }
    return {
        part: [{"threshold": threshold, **spreads(some, *names)} for threshold, some in rounds.items()]
        for part, names in fields.items()
    }


def network_latencies_ms(setup: CostSetup, threshold: float) -> list[float]:
    """Milliseconds that the network takes for each picture, up to the exit where it leaves."""
    rule, times_ms = ExitRule.uniform(threshold, setup.runner.num_stages), []
    for picture in setup.pictures:
        start_s = time.perf_counter()
        first_exit(setup.runner, picture, rule)
        times_ms.append(1e3 * (time.perf_counter() - start_s))
    return times_ms


def engine_cpu_ms(setup: CostSetup, threshold: float) -> float:
    """CPU of the engine without HTTP, for one picture."""
    pictures = setup.pictures * max(1, min(5000, setup.options.requests) // len(setup.pictures))
    before_s = time.process_time()
    asyncio.run(run_engine(setup.runner, setup.profile, pictures, threshold, MAX_BATCH_SIZE))
    return 1e3 * (time.process_time() - before_s) / len(pictures)


def measure_frontends(setup: CostSetup) -> list[dict[str, Any]]:
    """By the number of frontends: capacity by closed loop, and latency by open loop at one rate for all."""
    options, rates = setup.options, list[float]()

    def loops(count: int, number: int) -> dict[float, tuple[LoopFigures, LoopFigures]]:
        by_threshold = {}
        with setup.serve("--frontends", str(count)) as server:
            for threshold in sorted(setup.thresholds, reverse=True):
                closed = setup.capacity(server, threshold)
                rates.append(OPEN_LOOP_SHARE * closed.throughput)
                opened = open_loop(server, setup.requests(threshold), rates[0], options.seconds, 1, seed=number)
                by_threshold[threshold] = closed, opened
        return by_threshold

    rounds = interleave({count: partial(loops, count) for count in options.frontend_counts()}, options.rounds)
    rows = []
    for count, threshold in ((count, t) for count in sorted(rounds) for t in sorted(setup.thresholds)):
        closed, opened = zip(*(each[threshold] for each in rounds[count]), strict=True)
        row = {
            "frontends": count,
            "threshold": threshold,
            "open_loop_rate": rates[0],
            "errors": sum(loop.errors for loop in (*closed, *opened)),
            **spreads(closed, "throughput", "cpu_ms"),
            **spreads(opened, "p50_ms", "p99_ms"),
        }
        rows.append(row)
    return rows


def measure_memory(setup: CostSetup) -> dict[str, Any]:
    """Resident memory over many requests, and its growth after the first quarter of them."""
    options, threshold = setup.options, setup.thresholds[0]
    sent, samples = 0, list[tuple[int, float]]()
    with setup.serve() as server:
        while sent < options.requests or len(samples) < MIN_MEMORY_SAMPLES:
            folder = setup.requests(threshold)
            sent += closed_loop(server, folder, options.connections, 1, warmup_s=0, may_fail=False).requests
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
        "{served}; {pictures:,} test pictures as PNG; median (least–most) of {rounds} interleaved rounds of {seconds} "
        "s; closed loops of {connections} connections; open loops of Poisson arrivals at "
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
