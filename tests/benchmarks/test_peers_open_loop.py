"""The open loop of made-up requests against a small server that knows what it was asked."""

import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.peers.contest import within_measured_time
from benchmarks.peers.open_loop import OpenJob, OpenResult, Sent, perform, run_open_loop
from benchmarks.peers.requests import Ask, write_requests
from benchmarks.plan import poisson_arrivals

PICTURES = (b"picture-a", b"picture-b", b"picture-c")


def port_of(running: Any) -> int:
    return int(running.url.rpartition(":")[2])


@pytest.fixture
def requests_folder(tmp_path: Path) -> str:
    asks = (Ask(f"/v1/predict?threshold={t}", "image/png", body) for body in PICTURES for t in (0.5, 1.0))
    return str(write_requests(asks, tmp_path / "requests"))


def test_each_request_is_sent_once_and_keeps_its_answer(serve: Callable[..., Any], requests_folder: str) -> None:
    with serve() as running:
        result = run_open_loop(OpenJob(port_of(running), requests_folder, connections=2))
        seen = Counter((body, query) for body, query, _ in running.app.seen)
        clients = len(running.app.clients)
    assert seen == {(body, f"threshold={t}"): 1 for body in PICTURES for t in (0.5, 1.0)}
    exits = {sent.number: json.loads(sent.body)["predictions"][0]["exit"] for sent in result.sent}
    assert exits == {0: 1, 1: 4, 2: 1, 3: 4, 4: 1, 5: 4}
    assert clients <= 2
    assert result.load_cpu_s > 0.0


def test_the_schedule_is_kept_whatever_becomes_of_the_answers(serve: Callable[..., Any], requests_folder: str) -> None:
    arrivals = poisson_arrivals(60.0, 0.5, seed=5)
    # The first is answered only when the last has been sent.
    with serve(held=len(arrivals) - 1) as running:
        job = OpenJob(port_of(running), requests_folder, 200, rate=60.0, warmup_s=0.2, duration_s=0.3, seed=5)
        result = perform(job)
        assert running.app.most_in_flight == len(arrivals)
    assert sorted(sent.due_s for sent in result.sent) == arrivals
    assert all(sent.due_s <= sent.sent_s <= sent.done_s for sent in result.sent)
    assert min(sent.done_s for sent in result.sent) >= max(arrivals)
    assert {sent.number for sent in result.sent} == {number for _, number in job.planned(6)}


def test_requests_beyond_the_connections_wait_and_are_all_answered(
    serve: Callable[..., Any], requests_folder: str
) -> None:
    with serve() as running:
        job = OpenJob(port_of(running), requests_folder, connections=1, rate=300.0, duration_s=0.2)
        result = perform(job)
        assert len(running.app.clients) == 1
    assert [sent.status for sent in result.sent] == [200] * len(job.planned(6))


def test_a_refusal_is_told_with_its_words(serve: Callable[..., Any], requests_folder: str) -> None:
    with serve(failing=frozenset({b"picture-b"})) as running:
        result = perform(OpenJob(port_of(running), requests_folder, connections=3))
    assert {sent.number: (sent.status, sent.body) for sent in result.sent if sent.status != 200} == {
        2: (503, "full"),
        3: (503, "full"),
    }


def test_a_server_that_is_not_there_answers_nothing(requests_folder: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        result = perform(OpenJob(probe.getsockname()[1], requests_folder, connections=4))
    assert sorted(sent.number for sent in result.sent) == list(range(6))
    assert {sent.status for sent in result.sent} == {0}
    assert all(sent.body for sent in result.sent)


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=str(tmp_path)):
        run_open_loop(OpenJob(1, str(tmp_path), 1))


def test_figures_leave_the_warm_up_out_and_count_from_when_a_request_was_due() -> None:
    job = OpenJob(1, "", 1, rate=2.0, warmup_s=1.0, duration_s=2.0)
    sent = (
        Sent(0, 0.5, 0.5, 9.5, 200),
        Sent(0, 1.0, 1.2, 1.4, 200),
        Sent(0, 2.0, 2.0, 2.1, 200),
        Sent(0, 2.5, 2.5, 2.6, 503),
        Sent(0, 2.9, 2.9, 3.9, 0),
    )
    figures = within_measured_time(OpenResult(job, sent, 0.5))
    assert (figures.requests, figures.errors, figures.throughput) == (2, 2, 1.0)
    assert figures.p99_ms == pytest.approx(400.0)
    assert figures.p50_ms == pytest.approx(100.0)


def test_what_is_never_answered_is_counted_once(requests_folder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = OpenJob(silent.getsockname()[1], requests_folder, 2, rate=100.0, duration_s=0.2, seed=1, timeout_s=0.2)
        result = perform(job)
    assert len(result.sent) == len(job.planned(6)) > 2
    assert {sent.status for sent in result.sent} == {0}
