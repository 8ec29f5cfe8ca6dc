"""Throughput, latency, accuracy and CPU by threshold: exits on against exits off.

First every picture once at each threshold, for accuracy and exit mix; this warms the server up. Then rounds of closed
loops for capacity, and rounds of open loops at one rate for latency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import LoopFigures, closed_loop
from benchmarks.harness.figures import Document, field_ratios, fill, interleave, spread, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import open_loop
from benchmarks.harness.pictures import TestPictures, read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import predictions, write_requests
from benchmarks.harness.results import publish
from benchmarks.harness.server import Server, server_under_test
from benchmarks.options import ThresholdsOptions, parse_thresholds
from benchmarks.serving.answers import accuracy, ask_each, classes, describe_model, disagreement, exit_mix

EXITS_OFF = 1.0
OPEN_LOOP_SHARE = 0.7
# Accuracy, in percentage points, that exits may lose and still pay.
TOLERATED_POINTS = 1.0


def run(options: ThresholdsOptions) -> None:
    """Measure a server by threshold, print the table, write the JSON file."""
    pictures = read_test_pictures(options.dataset, options.data_root, options.pictures)
    with server_under_test(options.url, options.model, options.server_threads) as server:
        publish(options.output, measure(options, server, pictures), section)


def measure(options: ThresholdsOptions, server: Server, pictures: TestPictures) -> dict[str, Any]:
    """All measurements, as the document of the result file."""
    head, thresholds = provenance("thresholds", options), parse_thresholds(options.thresholds)
    requests = {t: predictions(pictures.png, f"threshold={t!r}") for t in thresholds}
    model, num_exits = describe_model(server, requests[EXITS_OFF][0])
    answers = {t: ask_each(server, requests[t], options.connections) for t in thresholds}
    full, timing = classes(answers[EXITS_OFF]), (options.seconds, options.warmup_seconds)
    with tempfile.TemporaryDirectory() as name:
        folders = {t: write_requests(requests[t], Path(name, f"{t!r}")) for t in thresholds}

        def capacity(folder: Path, number: int) -> LoopFigures:
            return closed_loop(server, folder, options.connections, *timing)

        def latency(folder: Path, number: int) -> LoopFigures:
            # Within a round all thresholds meet the same pictures at the same times.
            return open_loop(server, folder, rate, *timing, seed=number)

        closed = interleave({t: partial(capacity, folder) for t, folder in folders.items()}, options.rounds)
        rate = options.rate or OPEN_LOOP_SHARE * spread(loop.throughput for loop in closed[EXITS_OFF]).median
        opened = interleave({t: partial(latency, folder) for t, folder in folders.items()}, options.rounds)
    rows = [
        {
            "threshold": t,
            "accuracy": accuracy(answers[t], pictures.class_ids),
            "disagreement": disagreement(answers[t], full),
            "exit_mix": exit_mix(answers[t], num_exits),
            **figures(t, closed, opened),
        }
        for t in thresholds
    ]
    return {
        **head,
        "served": model,
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


Rounds = Mapping[float, Sequence[LoopFigures]]


def figures(threshold: float, closed: Rounds, opened: Rounds) -> dict[str, Any]:
    """One threshold over all rounds; ratios against exits off are taken within a round."""
    capacity, latency = closed[threshold], opened[threshold]
    cost = spreads(capacity, "throughput", "cpu_ms", "load_cpu_ms")
    return {
        "throughput": cost["throughput"],
        "ratio": field_ratios("throughput", capacity, closed[EXITS_OFF]),
        **spreads(latency, "p50_ms", "p95_ms", "p99_ms"),
        "server_cpu_ms": cost["cpu_ms"],
        "load_cpu_ms": cost["load_cpu_ms"],
        "requests": sum(loop.requests for loop in (*capacity, *latency)),
        "errors": sum(loop.errors for loop in (*capacity, *latency)),
    }


def section(document: Document) -> str:
    """The table, where its figures come from, and the conclusions."""
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
