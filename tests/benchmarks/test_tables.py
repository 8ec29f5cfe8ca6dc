"""Result files as Markdown, and documents that hold them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.tables import filled, main, thresholds_section, thresholds_verdict

SPREAD = {"median": 2.0, "min": 1.5, "max": 2.5}


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
        "verdict": ["Exits pay."],
    } | changes


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thresholds.json").write_text(json.dumps(document()))
    return tmp_path / "results"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("Before.\n\n<!-- results: thresholds.json -->\nstale\n<!-- end of results -->\n\nAfter.\n")
    return path


def test_a_line_shows_median_and_extremes_share_and_errors() -> None:
    line = thresholds_section(document()).splitlines()[2]
    assert line == (
        "| 0.8 | 72.00% | 1.50% | 25 / 50 / 0 / 25 | 512 (500–530) | 1.90× (1.80–2.00) | 2.0 (1.5–2.5) | 2.0 (1.5–2.5) "
        "| 9.0 (8.0–10.0) | – | 3 |"
    )


def test_every_line_has_as_many_cells_as_the_head() -> None:
    lines = [line for line in thresholds_section(document()).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_the_source_names_hardware_versions_counts_and_command() -> None:
    section = thresholds_section(document())
    for part in (
        "Some CPU, 2 cores",
        "torch 2.11.0",
        "2,000 cifar100",
        "4 interleaved rounds",
        "321/s",
        "`offramp bench`",
    ):
        assert part in section
    assert "started elsewhere" not in section
    assert "started elsewhere" in thresholds_section(document(own_server=False))


@pytest.mark.parametrize(
    ("ratio", "accuracy", "words"),
    [
        ((1.01, 1.9, 2.0), 0.715, "Threshold 0.8: exits pay: 1.90× (1.01–2.00)"),
        ((1.5, 1.9, 2.0), 0.60, "Threshold 0.8: faster, but at a price in accuracy: "),
        ((0.8, 0.9, 0.99), 0.72, "Threshold 0.8: exits do not pay: 0.90×"),
        ((0.9, 1.1, 1.2), 0.72, "Threshold 0.8: exits make no difference that these rounds can tell: "),
    ],
)
def test_the_verdict_says_whether_exits_pay(ratio: tuple[float, float, float], accuracy: float, words: str) -> None:
    (sentence,) = thresholds_verdict([row(0.8, ratio, accuracy=accuracy), row(1.0)])
    assert sentence.startswith(words)
    assert f"accuracy {100 * (accuracy - 0.72):+.2f} points; p99 at the same load 9.0 ms against 9.0 ms." in sentence


def test_only_what_is_between_the_marks_is_replaced(results: Path, page: Path) -> None:
    text = filled(page.read_text(), results)
    assert text.startswith("Before.\n\n<!-- results: thresholds.json -->\n| threshold |")
    assert text.endswith("- Exits pay.\n<!-- end of results -->\n\nAfter.\n")
    assert "stale" not in text
    assert filled(text, results) == text


def test_a_result_that_is_not_there_is_said_to_be_missing(results: Path, page: Path) -> None:
    (results / "thresholds.json").unlink()
    assert "Not measured yet: `benchmarks/results/thresholds.json` is not there." in filled(page.read_text(), results)


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmark": "other"}', '{"benchmark": "thresholds"}'])
def test_a_file_that_is_no_result_is_named(results: Path, page: Path, content: str) -> None:
    (results / "thresholds.json").write_text(content)
    with pytest.raises(BenchmarkError, match=r"thresholds\.json: not a result file"):
        filled(page.read_text(), results)


def test_the_check_fails_on_a_stale_page_without_changing_it_and_passes_once_written(
    results: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = page.read_text()
    assert main(["--check", str(page)], results) == 1
    assert "stale" in capsys.readouterr().err
    assert page.read_text() == stale
    assert main([str(page)], results) == 0
    assert main(["--check", str(page)], results) == 0
    (results / "thresholds.json").write_text(json.dumps(document(pictures=1999)))
    assert main(["--check", str(page)], results) == 1


def test_the_projects_own_page_agrees_with_its_results() -> None:
    assert main(["--check"]) == 0
