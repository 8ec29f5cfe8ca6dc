"""Percentiles, windows, spread, accuracy: from records made by hand."""

import math

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load import LoadResult, Record
from benchmarks.plan import Job
from benchmarks.stats import Spread, judge, measure, percentile, spread


def record(due_s: float, done_s: float, sent_s: float | None = None, status: int = 200, **told: object) -> Record:
    sent_s = due_s if sent_s is None else sent_s
    return Record(picture=0, threshold=1.0, due_s=due_s, sent_s=sent_s, done_s=done_s, status=status, **told)  # type: ignore[arg-type]


def result(records: list[Record], rate: float | None = None) -> LoadResult:
    job = Job("http://127.0.0.1:1", "", (1.0,), connections=4, warmup_s=1.0, duration_s=2.0, rate=rate)
    return LoadResult(job, tuple(records), cpu_s=0.0, served="model 1", num_exits=4)


def test_percentiles_are_of_nearest_rank() -> None:
    values = [15, 20, 35, 40, 50]
    assert [percentile(values, percent) for percent in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1000, 0, -1), 99) == 990


def test_a_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, min=1.0, max=10.0)


def test_a_closed_loop_counts_what_was_answered_within_the_measured_seconds() -> None:
    records = [
        record(0.1, 0.9),
        record(0.9, 1.0),
        record(1.5, 1.7),
        record(2.5, 2.9),
        record(2.9, 3.0),
        record(2.9, 3.4),
    ]
    measured = measure(result(records))
    assert measured.requests == 3
    assert measured.throughput == 1.5
    assert measured.p50_ms == pytest.approx(200)
    assert measured.p99_ms == pytest.approx(400)


def test_an_open_loop_counts_what_was_due_within_the_measured_seconds_however_late_it_was_answered() -> None:
    records = [record(0.5, 1.5), record(1.0, 1.1), record(2.9, 9.9), record(3.0, 3.1)]
    measured = measure(result(records, rate=2.0))
    assert measured.requests == 2
    assert measured.p99_ms == pytest.approx(7000)


def test_latency_counts_from_the_schedule_and_not_from_the_sending() -> None:
    measured = measure(result([record(1.0, 2.5, sent_s=2.0)], rate=1.0))
    assert measured.p50_ms == pytest.approx(1500)
    assert measured.send_delay_p99_ms == pytest.approx(1000)


def test_failures_are_counted_apart_and_have_no_latency() -> None:
    measured = measure(result([record(1.0, 1.1), record(1.0, 2.9, status=503), record(1.0, 2.9, status=0)]))
    assert (measured.requests, measured.errors) == (1, 2)
    assert measured.p99_ms == pytest.approx(100)


def test_answers_are_judged_by_label_and_counted_by_exit() -> None:
    labels = ("cat", "dog")
    answers = [
        Record(0, 0.5, 0, 0, 0, 200, exit=1, label="cat"),
        Record(1, 0.5, 0, 0, 0, 200, exit=3, label="cat"),
        Record(1, 0.5, 0, 0, 0, 200, exit=3, label="dog"),
        Record(0, 0.5, 0, 0, 0, 200, exit=1, label="cat"),
    ]
    quality = judge(answers, labels, num_exits=4)
    assert quality.accuracy == 0.75
    assert quality.exit_counts == (2, 0, 2, 0)


def test_no_accuracy_is_given_where_a_request_failed() -> None:
    with pytest.raises(BenchmarkError, match="1 of 2 requests failed, such as: 503 full"):
        judge([record(0, 0, label="cat"), record(0, 0, status=503, error="full")], ("cat",), 4)
