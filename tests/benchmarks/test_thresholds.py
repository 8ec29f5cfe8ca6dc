"""The table's rows: order of rounds, ratios within rounds, and a whole small benchmark."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.load import perform
from benchmarks.options import BenchOptions
from benchmarks.pictures import Pictures
from benchmarks.serving import Server
from benchmarks.stats import Measured, Quality
from benchmarks.tables import thresholds_section
from benchmarks.thresholds import Cell, Experiment, bench, interleaved, row


def cell(round: int, threshold: float, throughput: float, p99_ms: float = 5.0, cpu_ms: float | None = 2.0) -> Cell:
    return Cell(round, threshold, Measured(10, 1, throughput, 1.0, 2.0, p99_ms, 0.1 * round), cpu_ms, 0.3)


def test_rounds_hold_every_threshold_once_and_begin_with_another_each_time() -> None:
    turns = list(interleaved((0.0, 0.5, 1.0), 4))
    assert Counter(turns) == {(index, t): 1 for index in range(4) for t in (0.0, 0.5, 1.0)}
    assert [t for _, t in turns[::3]] == [0.0, 0.5, 1.0, 0.0]
    assert [index for index, _ in turns] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_ratios_are_taken_within_a_round_before_their_median() -> None:
    closed = [
        cell(0, 0.5, 200),
        cell(0, 1.0, 100),
        cell(1, 1.0, 10),
        cell(1, 0.5, 30),
        cell(2, 0.5, 50),
        cell(2, 1.0, 50),
    ]
    line = row(0.5, Quality(4, 0.75, (3, 1)), closed, [cell(0, 0.5, 7, p99_ms=9.0), cell(1, 0.5, 7, p99_ms=4.0)])
    assert line["ratio"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert line["throughput"] == {"median": 50, "min": 30, "max": 200}
    assert line["p99_ms"] == {"median": 6.5, "min": 4.0, "max": 9.0}
    assert line["exit_mix"] == [0.75, 0.25]
    assert (line["requests"], line["errors"]) == (50, 5)


def test_server_cpu_is_absent_where_the_server_is_not_ours() -> None:
    line = row(1.0, Quality(1, 1.0, (1,)), [cell(0, 1.0, 5, cpu_ms=None)], [cell(0, 1.0, 5, cpu_ms=None)])
    assert line["server_cpu_ms"] is None


def test_a_whole_benchmark_gives_a_document_that_is_json_and_renders(
    serve: Callable[..., Any], pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BenchOptions(thresholds="0.5,1", rounds=1, seconds=0.2, warmup_seconds=0.0, connections=2, rate=100.0)
    with serve() as running:
        document = json.loads(
            json.dumps(bench(Experiment(options, Server(running.url, None), pictures, perform)), allow_nan=False)
        )
    assert [line["threshold"] for line in document["rows"]] == [0.5, 1.0]
    assert [line["exit_mix"] for line in document["rows"]] == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert [line["accuracy"] for line in document["rows"]] == [1.0, 1.0]
    assert [line["errors"] for line in document["rows"]] == [0, 0]
    assert (document["served"], document["pictures"], document["open_loop_rate"]) == ("small 7", 3, 100.0)
    assert {"machine", "versions", "date", "command", "rounds", "verdict"} <= document.keys()
    assert "100 / 0 / 0 / 0" in thresholds_section(document)
    assert capsys.readouterr().err.count("round 1") == 4
