"""Requests as bytes, and closed loops by wrk: its figures, and what it sends."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.closed_loop import closed_loop, read_output, wrk_path
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.requests import Request, form, prediction, read_requests, write_requests
from benchmarks.harness.server import Server
from tests.benchmarks.conftest import PICTURES

REPORT = """Running 2s test @ http://127.0.0.1:1
{"requests": 300, "refused": 20, "broken": 3, "duration_us": 2000000, "p50_us": 1500, "p95_us": 2500, "p99_us": 4000}
"""


def test_a_request_is_written_as_it_goes_over_the_wire(tmp_path: Path) -> None:
    request = Request("/a?b=1", "image/png", b"\0\r\n1", {"X-One": "2"})
    (written,) = read_requests(write_requests([request], tmp_path / "r"))
    head = b"POST /a?b=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 4\r\nX-One: 2"
    assert written == head + b"\r\n\r\n\0\r\n1"


def test_a_form_holds_its_parts_between_its_boundaries() -> None:
    request = form("/p", [("images", b"\x89--\r\n")], "image/png")
    boundary = request.content_type.partition("boundary=")[2].encode()
    before, part, after = request.body.split(b"--" + boundary)
    head, _, content = part.partition(b"\r\n\r\n")
    assert (before, content, after) == (b"", b"\x89--\r\n\r\n", b"--\r\n")
    assert b'name="images"' in head
    assert b"Content-Type: image/png" in head


def test_refused_requests_are_errors_and_no_throughput() -> None:
    figures = read_output(REPORT, server_cpu_s=0.56, load_cpu_s=0.28)
    assert (figures.requests, figures.errors, figures.throughput) == (280, 23, 140.0)
    assert (figures.p50_ms, figures.p95_ms, figures.p99_ms) == (1.5, 2.5, 4.0)
    assert (figures.cpu_ms, figures.load_cpu_ms) == pytest.approx((2.0, 1.0))


def test_a_report_without_figures_is_an_error_that_shows_it() -> None:
    with pytest.raises(BenchmarkError, match="unable to connect"):
        read_output("unable to connect to 127.0.0.1:1 Connection refused\n", 0.0, 0.0)


def test_a_missing_wrk_and_an_empty_folder_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=str(tmp_path)):
        closed_loop(Server(1), tmp_path, 1, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="apt install wrk"):
        wrk_path()


@pytest.mark.usefixtures("wrk")
def test_wrk_sends_every_request_in_turn_and_counts_refusals(serve: Callable[..., Any], tmp_path: Path) -> None:
    queries = ("threshold=0.5", "threshold=1.0")
    folder = write_requests((prediction(body, query) for body in PICTURES for query in queries), tmp_path / "requests")
    with serve(failing=frozenset({b"picture-b"})) as running:
        figures = closed_loop(running.server, folder, 2, 1, warmup_s=0)
        seen = Counter(running.app.seen)
    assert set(seen) == {(body, query) for body in PICTURES for query in queries}
    assert max(seen.values()) - min(seen.values()) <= 2
    assert figures.requests > 0
    assert figures.errors / (figures.errors + figures.requests) == pytest.approx(1 / 3, abs=0.05)
    assert figures.load_cpu_ms > 0.0
    assert figures.cpu_ms != figures.cpu_ms
    with serve(failing=frozenset({b"picture-b"})) as running, pytest.raises(BenchmarkError, match="not all"):
        closed_loop(running.server, folder, 2, 1, warmup_s=0, may_fail=False)


@pytest.mark.usefixtures("wrk")
def test_a_server_that_answers_nothing_is_an_error(serve: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_requests((prediction(body, "threshold=1") for body in PICTURES), tmp_path / "requests")
    message = "answered none of the closed loop's requests"
    with serve(failing=frozenset(PICTURES)) as running, pytest.raises(BenchmarkError, match=message):
        closed_loop(running.server, folder, 1, 1, warmup_s=0)
