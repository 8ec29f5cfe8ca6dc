"""Results between marks in documents."""

import json
import re
from pathlib import Path

import pytest
import typer

from benchmarks.harness.errors import BenchmarkError
from benchmarks.tables import DOCUMENTS, fill_document, find, main
from tests.benchmarks.serving.test_thresholds import document

TABLE = "Before.\n\n<!-- results: thresholds.json -->\nstale\n<!-- end of results -->\n\nAfter.\n"
MARK = "<!-- result: thresholds.json rows[threshold=0.8].ratio .2f× -->"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thresholds.json").write_text(json.dumps(document()))
    return tmp_path / "results"


def test_only_what_is_between_the_marks_is_replaced(results: Path) -> None:
    text = fill_document(TABLE, results)
    assert text.startswith("Before.\n\n<!-- results: thresholds.json -->\n| threshold |")
    assert text.endswith("p99 at the same load 9.0 ms against 9.0 ms.\n<!-- end of results -->\n\nAfter.\n")
    assert "stale" not in text
    assert fill_document(text, results) == text


def test_single_figures_in_a_sentence_are_replaced(results: Path) -> None:
    other = MARK.replace(".ratio .2f×", ".accuracy .1%")
    text = f"It is {MARK}1.27×<!-- end --> and {other}<!-- end -->."
    written = f"It is {MARK}1.90× (1.80–2.00)<!-- end --> and {other}72.0%<!-- end -->."
    assert fill_document(text, results) == written


def test_a_path_selects_fields_places_and_rows() -> None:
    rows = [{"n": 1, "a-b": {"c": 5}}, {"n": 2, "a-b": {"c": 6}}]
    assert find({"rows": rows}, "rows[n=2].a-b.c") == 6
    assert find({"rows": rows}, "rows[-1].n") == find({"rows": rows}, "rows[1].n") == 2


@pytest.mark.parametrize("path", ["rows[threshold=0.7].ratio", "rows[9]", "other", "rows[threshold=0.8].served"])
def test_a_figure_that_is_not_there_is_named(results: Path, path: str) -> None:
    with pytest.raises(BenchmarkError, match=r"thresholds\.json has no figure"):
        fill_document(f"<!-- result: thresholds.json {path} .2f --><!-- end -->", results)


def test_a_missing_result_is_said_to_be_missing(results: Path) -> None:
    (results / "thresholds.json").unlink()
    assert "Not measured yet: `benchmarks/results/thresholds.json` is missing." in fill_document(TABLE, results)


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmark": "other"}', '{"benchmark": "thresholds"}'])
def test_a_file_that_is_no_result_is_named(results: Path, content: str) -> None:
    (results / "thresholds.json").write_text(content)
    with pytest.raises(BenchmarkError, match=r"thresholds\.json: not a result file"):
        fill_document(TABLE, results)


def test_the_check_fails_on_a_stale_page_without_changing_it_and_passes_once_written(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(TABLE)
    with pytest.raises(typer.Exit):
        main([page], check=True, results=results)
    assert "stale" in capsys.readouterr().err
    assert page.read_text() == TABLE
    main([page], results=results)
    main([page], check=True, results=results)
    (results / "thresholds.json").write_text(json.dumps(document(pictures=1999)))
    with pytest.raises(typer.Exit):
        main([page], check=True, results=results)


def test_the_projects_own_documents_agree_with_the_results() -> None:
    main(check=True)
    # In Markdown a comment at the start of a line ends the paragraph.
    assert [path for path in DOCUMENTS if re.search(r"(?m)^\s*<!-- result: ", path.read_text())] == []
    assert {path.name for path in DOCUMENTS} >= {"README.md", "performance.md", "decisions.md"}
