"""The load generator's own process against a small server that knows what it was asked."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load import perform, run_load
from benchmarks.pictures import Pictures, read_pictures
from benchmarks.plan import Job, plan, poisson_arrivals
from benchmarks.stats import judge, measure

Serve = Callable[..., Any]


def test_pictures_come_back_from_their_folder_in_order(pictures: Pictures) -> None:
    assert read_pictures(pictures.folder) == [b"picture-a", b"picture-b", b"picture-c"]


def test_every_pair_is_sent_once_and_comes_back_with_its_own_answer(serve: Serve, pictures: Pictures) -> None:
    with serve() as running:
        result = run_load(Job(running.url, str(pictures.folder), (0.25, 1.0), connections=2))
    wanted = {(body, f"threshold={t}", "image/png"): 1 for body in read_pictures(pictures.folder) for t in (0.25, 1.0)}
    assert Counter(running.app.seen) == wanted
    assert {(r.picture, r.threshold, r.class_id, r.exit) for r in result.records} == {
        (n, t, n, 1 if t < 1 else 4) for n in range(3) for t in (0.25, 1.0)
    }
    assert (result.served, result.num_exits) == ("small 7", 4)
    assert judge(result.records, pictures.labels, 4).exit_counts == (3, 0, 0, 3)
    assert judge(result.records, pictures.labels, 4).accuracy == 1.0
    assert result.cpu_s > 0.0


def test_connections_are_kept_and_no_more_than_asked_for(serve: Serve, pictures: Pictures) -> None:
    with serve() as running:
        result = perform(Job(running.url, str(pictures.folder), (1.0,), connections=3, duration_s=0.3))
    assert len(running.app.clients) == 3
    assert len(result.records) == len(running.app.seen) > 3


def test_a_closed_loop_has_all_its_connections_in_flight(serve: Serve, pictures: Pictures) -> None:
    # Nobody is answered before the sixth request is there, so only six connections at once come to an end.
    with serve(held=5) as running:
        perform(Job(running.url, str(pictures.folder), (0.0, 1.0), connections=6))
        assert running.app.most_in_flight == 6


def test_an_open_loop_sends_the_schedule_whatever_becomes_of_the_answers(serve: Serve, pictures: Pictures) -> None:
    job = Job("", str(pictures.folder), (1.0,), connections=200, seed=5, duration_s=0.5, rate=60.0)
    arrivals = poisson_arrivals(60.0, 0.5, seed=5)
    # The first is answered only when the last has been sent.
    with serve(held=len(arrivals) - 1) as running:
        result = perform(Job(**{**vars(job), "url": running.url}))
    assert sorted(r.due_s for r in result.records) == arrivals
    assert Counter(r.picture for r in result.records) == Counter(one.picture for one in plan(job, 3))


def test_latency_counts_from_the_scheduled_time_while_requests_wait_for_a_connection(
    serve: Serve, pictures: Pictures
) -> None:
    with serve() as running:
        job = Job(running.url, str(pictures.folder), (1.0,), connections=1, seed=5, duration_s=0.05, rate=2000.0)
        result = perform(job)
    arrivals = poisson_arrivals(2000.0, 0.05, seed=5)
    assert sorted(r.due_s for r in result.records) == arrivals
    assert all(r.due_s <= r.sent_s <= r.done_s for r in result.records)
    assert all(r.latency_s == r.done_s - r.due_s for r in result.records)
    assert len(running.app.clients) == 1
    # Through one connection answers come one by one: each ends later than all before it.
    assert len({r.done_s for r in result.records}) == len(arrivals)


def test_refusals_are_kept_with_their_status_and_words(serve: Serve, pictures: Pictures) -> None:
    with serve(failing=frozenset({b"picture-b"})) as running:
        result = perform(Job(running.url, str(pictures.folder), (1.0,), connections=2))
    (refused,) = [r for r in result.records if not r.answered]
    assert (refused.picture, refused.status, refused.error, refused.label) == (1, 503, "full", None)


def test_a_server_that_is_not_there_gives_errors_and_no_figures(pictures: Pictures) -> None:
    result = perform(Job("http://127.0.0.1:1", str(pictures.folder), (1.0,), connections=2))
    assert [r.status for r in result.records] == [0, 0, 0]
    assert all("Connect" in str(r.error) for r in result.records)
    assert result.served == ""


def test_a_generator_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no pictures to send"):
        run_load(Job("http://127.0.0.1:1", str(tmp_path), (1.0,), connections=2))


def test_a_timed_run_is_measured_from_its_records(serve: Serve, pictures: Pictures) -> None:
    with serve() as running:
        job = Job(running.url, str(pictures.folder), (1.0,), connections=2, duration_s=0.2, warmup_s=0.1)
        measured = measure(perform(job))
    assert measured.requests > 0
    assert measured.errors == 0
    assert measured.throughput == pytest.approx(measured.requests / 0.2)
    assert 0 < measured.p50_ms <= measured.p95_ms <= measured.p99_ms
