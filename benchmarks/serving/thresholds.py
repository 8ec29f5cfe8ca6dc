"""Throughput, latency, accuracy and CPU by threshold: exits on against exits off.

First every picture once at each threshold, for accuracy and exit mix; this warms the server up. Then rounds of closed
loops for capacity, then rounds of open loops at one rate for latency. Rounds are interleaved, and ratios are taken
within a round: a machine whose speed changes does so for all thresholds alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import LoopFigures, closed_loop
from benchmarks.harness.figures import Document, fill, interleaved, ratios, spread, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import open_loop
from benchmarks.harness.pictures import TestPictures, read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import prediction, write_requests
from benchmarks.harness.results import publish, say
from benchmarks.harness.server import Server, server_under_test
from benchmarks.options import ThresholdsOptions, parse_thresholds
from benchmarks.serving.answers import accuracy, ask_each, classes, disagreement, exit_mix, served

EXITS_OFF = 1.0
OPEN_LOOP_SHARE = 0.7
# Accuracy, in percentage points, that exits may lose and still pay.
TOLERATED_POINTS = 1.0


@dataclass(frozen=True)
class ThresholdRound(LoopFigures):
    """One threshold in one round."""

    round: int
    threshold: float


def run(options: ThresholdsOptions) -> None:
    """Measure a server by threshold, print the table, write the JSON file."""
    pictures = read_test_pictures(options.dataset, options.data_root, options.pictures)
    with server_under_test(options.url, options.model, options.server_threads) as server:
        publish(options.output, measure(options, server, pictures), section)


def measure(options: ThresholdsOptions, server: Server, pictures: TestPictures) -> dict[str, Any]:
    """All measurements, as the document of the result file."""
    head, thresholds = provenance("thresholds", options), parse_thresholds(options.thresholds)
    requests = {t: [prediction(png, f"threshold={t!r}").encoded() for png in pictures.png] for t in thresholds}
    model = served(server, requests[EXITS_OFF][0])
    answers = {t: ask_each(server, requests[t], options.connections) for t in thresholds}
    full = classes(answers[EXITS_OFF])
    with tempfile.TemporaryDirectory() as folder:
        folders = {t: write_requests(requests[t], Path(folder, f"{t!r}")) for t in thresholds}
        closed = measure_rounds(options, server, folders)
        capacity = spread(one.throughput for one in closed if one.threshold == EXITS_OFF).median
        rate = options.rate or OPEN_LOOP_SHARE * capacity
        opened = measure_rounds(options, server, folders, rate)
    rows = [
        {
            "threshold": t,
            "accuracy": accuracy(answers[t], pictures.class_ids),
            "disagreement": disagreement(answers[t], full),
            "exit_mix": exit_mix(answers[t], model.num_exits),
            **figures(t, closed, opened),
        }
        for t in thresholds
    ]
    return {
        **head,
        "served": model.name,
        "own_server": server.process is not None,
        "dataset": options.dataset,
        "pictures": len(pictures),
        "connections": options.connections,
        "rounds_each": options.rounds,
        "seconds": options.seconds,
        "warmup_seconds": options.warmup_seconds,
        "open_loop_rate": rate,
        "rows": rows,
        "rounds": {"closed_loop": closed, "open_loop": opened},
    }


def measure_rounds(
    options: ThresholdsOptions, server: Server, folders: Mapping[float, Path], rate: float | None = None
) -> list[ThresholdRound]:
    """All thresholds in all rounds: closed loops, or open ones at `rate` a second."""
    rounds = []
    for number, threshold in interleaved(tuple(folders), options.rounds):
        timing = (options.seconds, options.warmup_seconds)
        if rate is None:
            loop = closed_loop(server, folders[threshold], options.connections, *timing)
        else:
            # Within a round all thresholds meet the same pictures at the same times.
            loop = open_loop(server, folders[threshold], rate, *timing, seed=number)
        rounds.append(ThresholdRound(**vars(loop), round=number, threshold=threshold))
        say(rounds[-1])
    return rounds


def figures(threshold: float, closed: Sequence[ThresholdRound], opened: Sequence[ThresholdRound]) -> dict[str, Any]:
    """One threshold over all rounds; ratios against exits off are taken within a round."""
    off = {one.round: one.throughput for one in closed if one.threshold == EXITS_OFF}
    ours = [one for one in closed if one.threshold == threshold]
    latency = [one for one in opened if one.threshold == threshold]
    cpu_ms = spread(one.cpu_ms for one in ours)
    return {
        "throughput": spread(one.throughput for one in ours),
        "ratio": ratios([one.throughput for one in ours], [off[one.round] for one in ours]),
        **{name: spread(getattr(one, name) for one in latency) for name in ("p50_ms", "p95_ms", "p99_ms")},
        "server_cpu_ms": cpu_ms if cpu_ms.median == cpu_ms.median else None,
        "load_cpu_ms": spread(one.load_cpu_ms for one in ours),
        "requests": sum(one.requests for one in (*ours, *latency)),
        "errors": sum(one.errors for one in (*ours, *latency)),
    }


def section(document: Document) -> str:
    """The table, where its figures come from, and what they say."""
    columns = {
        "threshold": "{threshold:g}",
        "accuracy": "{accuracy:.2%}",
        "changed": "{disagreement:.2%}",
        "exit mix, %": "{exit_mix:.0f}",
        "pictures/s": "{throughput:.0f}",
        "against off": "{ratio:.2f×}",
        "p50, ms": "{p50_ms:.1f}",
        "p95": "{p95_ms:.1f}",
        "p99": "{p99_ms:.1f}",
        "CPU, ms": "{server_cpu_ms:.2f}",
        "errors": "{errors}",
    }
    how = (
        "{served}; {pictures:,} {dataset} test pictures as PNG. Median (least–most) of {rounds_each} interleaved "
        "rounds of {seconds:g} s after {warmup_seconds:g} s of warm-up. Pictures a second: closed loop, {connections} "
        "connections. Latency: open loop, Poisson arrivals at {open_loop_rate:.0f}/s for every threshold. CPU: the "
        "server's, for one picture of the closed loop. Changed: answers of another class than at threshold 1."
    )
    text = section_of(document, table(columns, document["rows"]), how)
    return "\n".join([f"{text}\n", *(f"- {sentence}" for sentence in conclusions(document["rows"]))])


def conclusions(rows: Sequence[Document]) -> list[str]:
    """For each threshold below 1: whether exits pay, and at what accuracy and latency."""
    (off,) = (row for row in rows if row["threshold"] == EXITS_OFF)
    sentences = []
    for row in rows:
        if row is off:
            continue
        points = 100 * (row["accuracy"] - off["accuracy"])
        if row["ratio"]["min"] > 1.0:
            conclusion = "exits pay" if points >= -TOLERATED_POINTS else "faster, but less accurate"
        elif row["ratio"]["max"] < 1.0:
            conclusion = "exits do not pay"
        else:
            conclusion = "these rounds show no difference"
        template = (
            "Threshold {threshold:g}: {conclusion}: {ratio:.2f×} the throughput of exits off, accuracy {points:+.2f} "
            "points; p99 at the same load {p99_ms[median]:.1f} ms against {off[p99_ms][median]:.1f} ms."
        )
        sentences.append(fill(template, {**row, "conclusion": conclusion, "points": points, "off": off}))
    return sentences
