"""The first table: throughput, latency, accuracy and CPU by threshold, exits on against exits off, one run.

First every picture once at each threshold (accuracy, exit mix; it also warms the server up); then rounds of closed
loops for capacity; then rounds of open loops at one rate for latency. Rounds are interleaved, A B C, B C A, …, and
ratios are taken within a round, so that a machine that drifts does so for all thresholds alike.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from benchmarks.command_line import command_line
from benchmarks.errors import BenchmarkError
from benchmarks.load import LoadResult, Record, run_load
from benchmarks.machine import provenance
from benchmarks.options import BenchOptions, parse_thresholds
from benchmarks.pictures import Pictures, export_test_pictures
from benchmarks.plan import Job
from benchmarks.serving import Server, server_under_test
from benchmarks.stats import Measured, Quality, judge, measure, spread
from benchmarks.tables import thresholds_section, thresholds_verdict

Way = TypeVar("Way")

EXITS_OFF = 1.0
OPEN_LOOP_SHARE = 0.7
# Independent clients rather than a pool: most requests that the open loop lets be unanswered at a time.
OPEN_LOOP_CONNECTIONS = 512


@dataclass(frozen=True)
class Cell:
    """One threshold in one round. CPU per request, warm-up included in both; server_cpu_ms None if not ours."""

    round: int
    threshold: float
    measured: Measured
    server_cpu_ms: float | None
    load_cpu_ms: float


@dataclass(frozen=True)
class Experiment:
    """What is measured with what. load: runs a job of the load generator."""

    options: BenchOptions
    server: Server
    pictures: Pictures
    load: Callable[[Job], LoadResult] = run_load

    def answer_all(self, threshold: float) -> LoadResult:
        """Every picture once."""
        return self.load(self._job(threshold))

    def measure(self, round: int, threshold: float, rate: float | None = None) -> Cell:
        """One threshold in one round: a closed loop, or an open one at `rate` a second.

        Raises BenchmarkError when nothing was answered.
        """
        timed = {"warmup_s": self.options.warmup_seconds, "duration_s": self.options.seconds, "rate": rate}
        before_s = self.server.cpu_s()
        # Within a round all thresholds meet the same pictures at the same times.
        result = self.load(self._job(threshold, seed=round, **timed))
        after_s = self.server.cpu_s()
        measured, count = measure(result), max(1, len(result.records))
        if not measured.requests:
            raise BenchmarkError(
                f"threshold {threshold:g}: none of {len(result.records)} requests was answered in the measured "
                f"{self.options.seconds:g} s; give more --seconds, or a lower --rate"
            )
        server_cpu_ms = None if before_s is None or after_s is None else 1e3 * (after_s - before_s) / count
        cell = Cell(round, threshold, measured, server_cpu_ms, 1e3 * result.cpu_s / count)
        _report(cell, rate)
        return cell

    def _job(self, threshold: float, rate: float | None = None, **timing: Any) -> Job:
        connections = self.options.connections if rate is None else OPEN_LOOP_CONNECTIONS
        folder = str(self.pictures.folder)
        return Job(self.server.url, folder, (threshold,), connections, rate=rate, **timing)


def run(options: BenchOptions) -> int:
    """Measure a server by threshold, print the table, write the JSON file.

    python -m benchmarks.thresholds --data-root data
    """
    with tempfile.TemporaryDirectory() as folder, server_under_test(options) as server:
        pictures = export_test_pictures(options.dataset, options.data_root, options.pictures, Path(folder))
        document = bench(Experiment(options, server, pictures))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(f"\n{thresholds_section(document)}\n\nwritten to {options.output}")
    typer.echo(json.dumps({name: value for name, value in document.items() if name != "rounds"}))
    return 0


def bench(experiment: Experiment) -> dict[str, Any]:
    """All measurements, as the document of the result file."""
    options, server, pictures = experiment.options, experiment.server, experiment.pictures
    head = {"benchmark": "thresholds", **provenance()}
    thresholds = parse_thresholds(options.thresholds)
    once = {t: experiment.answer_all(t) for t in thresholds}
    changed = {t: disagreement(once[t].records, once[EXITS_OFF].records) for t in thresholds}
    quality = {t: judge(result.records, pictures.labels, result.num_exits) for t, result in once.items()}
    closed = [experiment.measure(*turn) for turn in interleaved(thresholds, options.rounds)]
    capacity = spread([cell.measured.throughput for cell in closed if cell.threshold == EXITS_OFF]).median
    rate = options.rate or OPEN_LOOP_SHARE * capacity
    opened = [experiment.measure(*turn, rate) for turn in interleaved(thresholds, options.rounds)]
    rows = [{**row(t, quality[t], closed, opened), "disagreement": changed[t]} for t in thresholds]
    return {
        **head,
        "served": once[EXITS_OFF].served,
        "own_server": server.own is not None,
        "dataset": options.dataset,
        "pictures": len(pictures),
        "connections": options.connections,
        "rounds_each": options.rounds,
        "seconds": options.seconds,
        "warmup_seconds": options.warmup_seconds,
        "open_loop_rate": rate,
        "rows": rows,
        "verdict": thresholds_verdict(rows),
        "rounds": {"closed_loop": [asdict(cell) for cell in closed], "open_loop": [asdict(cell) for cell in opened]},
    }


def disagreement(records: Sequence[Record], full_depth: Sequence[Record]) -> float:
    """The share of the pictures that got another class than at full depth."""
    classes = {record.picture: record.label for record in full_depth}
    return sum(record.label != classes[record.picture] for record in records) / len(records)


def interleaved(ways: Sequence[Way], rounds: int) -> Iterator[tuple[int, Way]]:
    """(round, way) for every round, such as by threshold, each beginning with another way than the one before."""
    for index in range(rounds):
        first = index % len(ways)
        for way in (*ways[first:], *ways[:first]):
            yield index, way


def _report(cell: Cell, rate: float | None) -> None:
    kind, measured = "closed loop" if rate is None else f"open loop {rate:.0f}/s", cell.measured
    typer.echo(
        f"round {cell.round + 1}, {kind}, threshold {cell.threshold:g}: {measured.throughput:.0f} pictures/s, "
        f"p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms, {measured.errors} errors",
        err=True,
    )


def row(threshold: float, quality: Quality, closed: Sequence[Cell], opened: Sequence[Cell]) -> dict[str, Any]:
    """One line of the table: medians and extremes over rounds; ratios against exits off are taken per round."""
    ours = [cell for cell in closed if cell.threshold == threshold]
    off = {cell.round: cell.measured.throughput for cell in closed if cell.threshold == EXITS_OFF}
    latency = [cell for cell in opened if cell.threshold == threshold]
    server_cpu_ms = [cell.server_cpu_ms for cell in ours if cell.server_cpu_ms is not None]
    return {
        "threshold": threshold,
        "accuracy": quality.accuracy,
        "exit_mix": [count / quality.pictures for count in quality.exit_counts],
        "throughput": asdict(spread([cell.measured.throughput for cell in ours])),
        "ratio": asdict(spread([cell.measured.throughput / off[cell.round] for cell in ours])),
        **{
            name: asdict(spread([getattr(c.measured, name) for c in latency]))
            for name in ("p50_ms", "p95_ms", "p99_ms")
        },
        "send_delay_p99_ms": max(cell.measured.send_delay_p99_ms for cell in latency),
        "server_cpu_ms": asdict(spread(server_cpu_ms)) if server_cpu_ms else None,
        "load_cpu_ms": asdict(spread([cell.load_cpu_ms for cell in ours])),
        "requests": sum(cell.measured.requests for cell in (*ours, *latency)),
        "errors": sum(cell.measured.errors for cell in (*ours, *latency)),
    }


if __name__ == "__main__":
    command_line(BenchOptions, run)
