"""Rows of the table, conclusions, and a whole small benchmark."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.harness.closed_loop import LoopFigures
from benchmarks.harness.pictures import TestPictures
from benchmarks.options import ThresholdsOptions
from benchmarks.serving.thresholds import conclusions, figures, measure, section

SPREAD = {"median": 2.0, "min": 1.5, "max": 2.5}


def loop(throughput: float, p99_ms: float = 5.0, cpu_ms: float = 2.0) -> LoopFigures:
    return LoopFigures(10, 1, throughput, 1.0, 2.0, p99_ms, cpu_ms, 0.3)


def row(threshold: float, ratio: tuple[float, float, float] = (1.0, 1.0, 1.0), **changes: Any) -> dict[str, Any]:
    least, median, most = ratio
    return {
        "threshold": threshold,
        "accuracy": 0.72,
        "disagreement": 0.015,
        "exit_mix": [0.25, 0.5, 0.0, 0.25],
        "throughput": {"median": 512.3, "min": 499.9, "max": 530.0},
        "ratio": {"median": median, "min": least, "max": most},
        "p50_ms": SPREAD,
        "p95_ms": SPREAD,
        "p99_ms": {"median": 9.04, "min": 8.0, "max": 10.0},
        "server_cpu_ms": None,
        "errors": 3,
    } | changes


def document(**changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "thresholds",
        "date": "2026-05-01T10:00:00+00:00",
        "command": "offramp bench",
        "machine": {"cpu": "Some CPU", "cores": 2, "gpus": []},
        "versions": {"python": "3.12.1", "torch": "2.11.0"},
        "served": "model 1",
        "own_server": True,
        "dataset": "cifar100",
        "pictures": 2000,
        "connections": 32,
        "rounds_each": 4,
        "seconds": 5.0,
        "warmup_seconds": 1.0,
        "open_loop_rate": 321.4,
        "rows": [row(0.8, (1.8, 1.9, 2.0)), row(1.0)],
    } | changes


def test_ratios_are_taken_within_a_round_before_their_median() -> None:
    closed = {0.5: [loop(200), loop(30), loop(50)], 1.0: [loop(100), loop(10), loop(50)]}
    line = figures(0.5, closed, {0.5: [loop(7, p99_ms=9.0), loop(7, p99_ms=4.0)]})
    assert asdict(line["ratio"]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert asdict(line["throughput"]) == {"median": 50, "min": 30, "max": 200}
    assert asdict(line["p99_ms"]) == {"median": 6.5, "min": 4.0, "max": 9.0}
    assert (line["requests"], line["errors"]) == (50, 5)


def test_server_cpu_is_absent_where_the_server_was_started_elsewhere() -> None:
    assert figures(1.0, {1.0: [loop(5, cpu_ms=float("nan"))]}, {1.0: [loop(5)]})["server_cpu_ms"] is None


@pytest.mark.usefixtures("wrk")
def test_a_whole_benchmark_gives_a_document_that_is_json_and_renders(
    serve: Callable[..., Any], pictures: TestPictures, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ThresholdsOptions(thresholds="0.5,1", rounds=1, seconds=1, connections=2, rate=100.0)
    with serve() as running:
        measured = measure(options, running.server, pictures)
    document = json.loads(json.dumps(measured, default=asdict))
    assert [line["threshold"] for line in document["rows"]] == [0.5, 1.0]
    assert [line["exit_mix"] for line in document["rows"]] == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert [line["accuracy"] for line in document["rows"]] == [1.0, 1.0]
    assert [line["errors"] for line in document["rows"]] == [0, 0]
    assert (document["served"], document["pictures"], document["open_loop_rate"]) == ("small 7", 3, 100.0)
    assert {"machine", "versions", "date", "command", "rounds", "options"} <= document.keys()
    assert "100 / 0 / 0 / 0" in section(document)
    assert capsys.readouterr().err.count("round 0, ") == 4


def test_a_line_shows_median_and_extremes_share_and_errors() -> None:
    assert section(document()).splitlines()[2] == (
        "| 0.8 | 72.00% | 1.50% | 25 / 50 / 0 / 25 | 512 (500–530) | 1.90× (1.80–2.00) | 2.0 (1.5–2.5) | 2.0 (1.5–2.5) "
        "| 9.0 (8.0–10.0) | – | 3 |"
    )


def test_the_source_names_hardware_versions_counts_and_command() -> None:
    for part in (
        "Some CPU, 2 cores",
        "torch 2.11.0",
        "2,000 cifar100",
        "4 interleaved rounds",
        "321/s",
        "`offramp bench`",
    ):
        assert part in section(document())
    assert "started elsewhere" not in section(document())
    assert "started elsewhere" in section(document(own_server=False))


@pytest.mark.parametrize(
    ("ratio", "accuracy", "words"),
    [
        ((1.01, 1.9, 2.0), 0.715, "Threshold 0.8: exits pay: 1.90× (1.01–2.00)"),
        ((1.5, 1.9, 2.0), 0.60, "Threshold 0.8: faster, but less accurate: "),
        ((0.8, 0.9, 0.99), 0.72, "Threshold 0.8: exits do not pay: 0.90×"),
        ((0.9, 1.1, 1.2), 0.72, "Threshold 0.8: these rounds show no difference: "),
    ],
)
def test_the_conclusion_is_whether_exits_pay(ratio: tuple[float, float, float], accuracy: float, words: str) -> None:
    (sentence,) = conclusions([row(0.8, ratio, accuracy=accuracy), row(1.0)])
    assert sentence.startswith(words)
    assert f"accuracy {100 * (accuracy - 0.72):+.2f} points; p99 at the same load 9.0 ms against 9.0 ms." in sentence
