"""Closed loops by wrk: its figures read, and what it sends."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.peers.requests import Ask, read_requests, write_requests
from benchmarks.wrk import read_output, run_wrk, wrk_path

REPORT = """Running 2s test @ http://127.0.0.1:1
{"requests": 300, "refused": 20, "broken": 3, "duration_us": 2000000, "p50_us": 1500, "p95_us": 2500, "p99_us": 4000}
"""


def asks() -> list[Ask]:
    pictures = (b"picture-a", b"picture-b", b"picture-c")
    return [Ask(f"/v1/predict?threshold={t}", "image/png", body) for body in pictures for t in (0.5, 1.0)]


def test_a_request_is_written_as_it_goes_over_the_wire(tmp_path: Path) -> None:
    (written,) = read_requests(write_requests([Ask("/a?b=1", "image/png", b"\0\r\n1", {"X-One": "2"})], tmp_path / "r"))
    head = b"POST /a?b=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 4\r\nX-One: 2"
    assert written == head + b"\r\n\r\n\0\r\n1"


def test_refused_requests_are_errors_and_no_throughput() -> None:
    figures = read_output(REPORT, load_cpu_s=0.25)
    assert (figures.requests, figures.errors, figures.throughput) == (280, 23, 140.0)
    assert (figures.p50_ms, figures.p95_ms, figures.p99_ms, figures.load_cpu_s) == (1.5, 2.5, 4.0, 0.25)


def test_a_report_without_figures_is_an_error_that_shows_it() -> None:
    with pytest.raises(BenchmarkError, match="unable to connect"):
        read_output("unable to connect to 127.0.0.1:1 Connection refused\n", 0.0)


def test_a_missing_wrk_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="apt install wrk"):
        wrk_path()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_every_request_in_turn_and_counts_refusals(serve: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_requests(asks(), tmp_path / "requests")
    with serve(failing=frozenset({b"picture-b"})) as running:
        figures = run_wrk(int(running.url.rpartition(":")[2]), folder, 2, 1)
        seen = Counter((body, query) for body, query, _ in running.app.seen)
    assert set(seen) == {(ask.body, ask.path.partition("?")[2]) for ask in asks()}
    assert max(seen.values()) - min(seen.values()) <= 2
    assert figures.requests > 0
    assert figures.errors / (figures.errors + figures.requests) == pytest.approx(1 / 3, abs=0.05)
    assert figures.load_cpu_s > 0.0
