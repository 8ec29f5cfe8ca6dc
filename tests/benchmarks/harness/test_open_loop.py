"""The open loop, and each request once: schedule, connections, latency, and what became of each request."""

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.client import send, send_each
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.open_loop import (
    BROKEN,
    REFUSED,
    SILENT,
    Load,
    LoadResult,
    Sent,
    poisson_arrivals,
    run_load,
    service_figures,
)
from benchmarks.harness.requests import prediction, write_requests
from benchmarks.harness.server import free_port
from tests.benchmarks.conftest import PICTURES
from tests.benchmarks.raw_server import ERROR, OK, RawServer

REQUESTS = [prediction(body, f"threshold={t}").encoded() for body in PICTURES for t in (0.5, 1.0)]
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
Serve = Callable[..., Any]


def load(port: int, **changes: Any) -> Load:
    return replace(Load(port, 4, 0.3, timeout_s=0.2), **changes)


def test_arrivals_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    arrivals = list(poisson_arrivals(50.0, 400.0, seed=1))
    assert arrivals == list(poisson_arrivals(50.0, 400.0, seed=1)) != list(poisson_arrivals(50.0, 400.0, seed=2))
    assert arrivals == sorted(arrivals)
    assert 0.0 < arrivals[0] < arrivals[-1] < 400.0
    gaps = [after - before for before, after in zip([0.0, *arrivals], arrivals, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50.0, rel=0.03)
    # Exponential gaps: the standard deviation equals the mean.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)


def test_each_request_is_sent_once_and_keeps_its_answer(serve: Serve) -> None:
    with serve() as running:
        result = send_each(Load(running.server.port, 2, bodies=True), enumerate(REQUESTS))
        assert Counter(running.app.seen) == {(body, f"threshold={t}"): 1 for body in PICTURES for t in (0.5, 1.0)}
        assert len(running.app.clients) <= 2
    exits = [json.loads(sent.body)["predictions"][0]["exit"] for sent in result.answers()]
    assert exits == [1, 4, 1, 4, 1, 4]
    assert result.load_cpu_s > 0.0


def test_the_schedule_is_kept_independently_of_the_answers(serve: Serve, tmp_path: Path) -> None:
    arrivals = list(poisson_arrivals(60.0, 0.5, seed=5))
    folder = write_requests(REQUESTS, tmp_path / "requests")
    # The first is answered only when the last has been sent.
    with serve(held=len(arrivals) - 1) as running:
        job = Load(running.server.port, 200, 0.3, rate=60.0, warmup_s=0.2, seed=5)
        result = run_load(job, folder)
        assert running.app.most_in_flight == len(arrivals)
    assert sorted(sent.due_s for sent in result.sent) == arrivals
    assert all(sent.due_s <= sent.sent_s <= sent.done_s for sent in result.sent)
    assert min(sent.done_s for sent in result.sent) >= max(arrivals)
    assert {sent.number for sent in result.sent} == {number for _, number in job.planned(6)}


def test_latency_counts_from_the_schedule_while_requests_wait_for_a_connection(serve: Serve) -> None:
    with serve() as running:
        job = Load(running.server.port, 1, 0.05, rate=2000.0, seed=5)
        result = send(job, REQUESTS)
        assert len(running.app.clients) == 1
    assert sorted(sent.due_s for sent in result.sent) == list(poisson_arrivals(2000.0, 0.05, seed=5))
    assert all(sent.latency_s == sent.done_s - sent.due_s for sent in result.sent)
    # Through one connection answers come one by one: each ends later than all before it.
    assert len({sent.done_s for sent in result.sent}) == len(result.sent)


def test_a_failed_request_is_quoted(serve: Serve) -> None:
    with serve(failing=frozenset({b"picture-b"})) as running:
        result = send_each(Load(running.server.port, 3, bodies=True), enumerate(REQUESTS))
    assert {sent.number: (sent.status, sent.body) for sent in result.sent if sent.status != 200} == {
        2: (503, "full"),
        3: (503, "full"),
    }
    with pytest.raises(BenchmarkError, match="2 of 6 requests failed, such as: 503 full"):
        result.answers()


def test_figures_leave_the_warm_up_out_and_count_from_when_a_request_was_due() -> None:
    sent = (
        Sent(0, 0.5, 0.5, 9.5, 200),
        Sent(0, 1.0, 1.2, 1.4, 200),
        Sent(0, 2.0, 2.0, 2.1, 200),
        Sent(0, 2.5, 2.5, 2.6, 503),
        Sent(0, 2.9, 2.9, 3.9, 0),
    )
    result = LoadResult(Load(1, 1, 2.0, rate=2.0, warmup_s=1.0), sent, 0.0, 0.5)
    figures = result.figures(server_cpu_s=0.01)
    assert (figures.requests, figures.errors, figures.throughput) == (2, 2, 1.0)
    assert (figures.p50_ms, figures.p99_ms) == pytest.approx((100.0, 400.0))
    assert (figures.cpu_ms, figures.load_cpu_ms) == pytest.approx((2.0, 100.0))
    with pytest.raises(BenchmarkError, match="answered none of 2 requests"):
        replace(result, sent=sent[3:]).figures()


def test_goodput_counts_answers_in_time_and_separates_refusals_from_failures() -> None:
    sent = (
        Sent(0, 0.5, 0.5, 0.6, 200),
        Sent(0, 1.0, 1.0, 1.1, 200),
        Sent(1, 1.5, 1.6, 2.0, 200),
        Sent(2, 2.0, 2.0, 2.1, 503),
        Sent(3, 2.0, 2.0, 2.1, 429),
        Sent(4, 2.0, 2.0, 2.1, 0),
    )
    counted = LoadResult(Load(1, 1, 2.0, 1.0, warmup_s=1.0), sent, 0.0, 0.0).measured()
    assert counted == sent[1:]
    figures = service_figures(counted, 2.0, 0.2)
    assert (figures.offered_per_s, figures.answered_per_s, figures.goodput) == (2.5, 1.0, 0.5)
    assert (figures.refused, figures.failed) == (0.4, 1)
    assert (figures.p50_ms, figures.p99_ms) == pytest.approx((100.0, 500.0))


def test_the_client_records_what_became_of_each_request() -> None:
    answers = {b"a": OK, b"b": ERROR, b"c": None, b"d": b"", b"e": b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"f": b"junk"}
    with RawServer(lambda request: answers[request[4:5]]) as server:
        requests = [(number, LIVE.replace(b" /livez", b" " + name)) for number, name in enumerate(answers)]
        result = send_each(load(server.port), requests)
    became = {sent.number: (sent.status, sent.body) for sent in result.sent}
    assert became == {0: (200, ""), 1: (500, ""), 2: (0, SILENT), 3: (0, BROKEN), 4: (200, ""), 5: (0, BROKEN)}
    assert send(load(free_port()), [LIVE]).statuses().keys() == {REFUSED}


def test_an_evenly_spaced_loop_keeps_its_schedule_and_its_address(tmp_path: Path) -> None:
    with RawServer(lambda _: OK) as server:
        job = load(server.port, rate=20.0, evenly=True, source="127.0.0.2", bodies=True)
        result = run_load(job, write_requests([LIVE, LIVE], tmp_path / "live"))
    assert [sent.due_s for sent in result.sent] == pytest.approx([n / 20 for n in range(6)])
    assert [(sent.number, sent.status, sent.body) for sent in result.sent] == [(n % 2, 200, "{}") for n in range(6)]
    assert set(server.sources) == {"127.0.0.2"}
    with pytest.raises(BenchmarkError, match="no requests"):
        run_load(job, write_requests([], tmp_path / "none"))


def test_a_closed_loop_keeps_its_connections_and_replaces_those_that_end() -> None:
    with RawServer(lambda _: OK) as server:
        assert len(send(load(server.port), [LIVE]).sent) > 8
        assert len(server.sources) <= 4
    with RawServer(lambda _: OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as server:
        result = send(load(server.port), [LIVE])
        assert len(server.sources) == len(result.sent) > 8
        assert result.statuses().keys() == {"200"}


def test_a_server_that_resets_idle_connections_gets_new_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.recv(1000)
                connection.sendall(OK)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        job = load(listener.getsockname()[1], rate=5.0, evenly=True, duration_s=0.6)
        assert send(job, [LIVE]).statuses() == {"200": 3}


@pytest.mark.parametrize(("way", "became"), [("close", "200"), ("mute", SILENT), ("drip", SILENT)])
def test_ways_of_being_a_bad_client(way: str, became: str) -> None:
    body = b"x" * 10**4
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with RawServer(lambda _: OK) as server:
        result = send(load(server.port, way=way), [request])
    assert result.statuses().keys() == {became}
