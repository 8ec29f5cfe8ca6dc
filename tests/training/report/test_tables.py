"""Tables and plot of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from offramp.training.evaluate.evaluation import Evaluation, ExitCurves, ExitQuality, OperatingPoint
from offramp.training.evaluate.exit_quality import Oracle, Reliability
from offramp.training.report.plots import plot_evaluation
from offramp.training.report.tables import exits_table, overthinking_table, thresholds_table


def quality(exit: int, accuracy: float, served: float, compute: float, **changes: Any) -> ExitQuality:
    facts = ExitQuality(
        exit,
        accuracy,
        served,
        nll=1.2,
        ece_uncalibrated=0.2345,
        ece=0.0123,
        auroc=0.875,
        aurc=0.15,
        excess_aurc=0.05,
        agreement=0.8,
        settled=0.75,
        overthought=0.031,
        multiply_adds=int(4e7 * compute),
        compute=compute,
    )
    return replace(facts, **changes)


def curves(exit: int) -> ExitCurves:
    return ExitCurves(
        exit,
        risk=(0.0, 0.1, 0.2, 0.3),
        uncalibrated=Reliability((0.5, 0.5), (0.7, 0.9), (0.4, 0.6)),
        calibrated=Reliability((0.5, 0.5), (0.4, 0.8), (0.4, 0.7)),
    )


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        pictures=1000,
        exits=(
            quality(1, 0.6015, 0.6015, 0.25),
            quality(2, 0.7, 0.7125, 1.0, ece=0.02, auroc=None, agreement=1.0, settled=1.0, overthought=0.0),
        ),
        ensemble_accuracy=0.7234,
        oracle=Oracle(0.7435, 2e7, 0.5, 0.031, 0.55),
        operating_points=(
            OperatingPoint(0.0, 0.6015, 1e7, 0.25, (1.0, 0.0), 0.2),
            OperatingPoint(0.995, 0.71, 3.4e7, 0.85, (0.2, 0.8), 0.01),
            OperatingPoint(1.0, 0.7125, 4e7, 1.0, (0.0, 1.0), 0.0),
        ),
        curves=(curves(1), curves(2)),
    )


@pytest.fixture
def plain() -> Evaluation:
    """A network of one exit."""
    return Evaluation(
        pictures=1000,
        exits=(quality(1, 0.7, 0.7, 1.0, auroc=None),),
        ensemble_accuracy=0.7,
        oracle=Oracle(0.7, 4e7, 1.0, 0.0, 0.0),
        operating_points=(OperatingPoint(1.0, 0.7, 4e7, 1.0, (1.0,), 0.0),),
        curves=(curves(1),),
    )


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]


def test_exits_table_has_a_row_for_each_exit_and_one_for_the_mean(evaluation: Evaluation) -> None:
    rows = cells(exits_table(evaluation))
    assert rows[2] == ["1", "60.15%", "60.15%", "0.2345 → 0.0123", "0.8750", "0.1500", "10.0 M", "0.250"]
    assert rows[3] == ["2", "70.00%", "71.25%", "0.2345 → 0.0200", "–", "0.1500", "40.0 M", "1.000"]
    assert rows[4][:2] == ["mean of all", "72.34%"]
    assert {len(row) for row in rows} == {8}


def test_a_single_exit_has_no_mean_and_no_overthinking(plain: Evaluation) -> None:
    assert [row[0] for row in cells(exits_table(plain))[2:]] == ["1"]
    assert overthinking_table(plain) == ""
    assert cells(thresholds_table(plain))[2] == ["1", "70.00%", "1.000", "0.00%", "100.0%"]


def test_overthinking_has_a_row_for_each_exit_and_what_an_oracle_would_reach(evaluation: Evaluation) -> None:
    table, sentences = overthinking_table(evaluation).split("\n\n")
    assert cells(table)[2:] == [["1", "80.00%", "75.00%", "3.10%"], ["2", "100.00%", "100.00%", "0.00%"]]
    for part in ("74.35% right at 0.500 of the full cost", "3.10% of the pictures are right at", "55.00% are right at"):
        assert part in sentences


def test_thresholds_table_has_a_row_for_each_threshold_and_a_column_for_each_exit(evaluation: Evaluation) -> None:
    rows = cells(thresholds_table(evaluation))
    assert rows[0][4:] == ["exit 1", "exit 2"]
    assert rows[3] == ["0.995", "71.00%", "0.850", "1.00%", "20.0%", "80.0%"]
    assert len(rows) == 5
    assert {len(row) for row in rows} == {6}


def test_tables_are_well_formed_markdown(evaluation: Evaluation) -> None:
    overthinking, _ = overthinking_table(evaluation).split("\n\n")
    for table in (exits_table(evaluation), thresholds_table(evaluation), overthinking):
        lines = table.splitlines()
        assert all(line.startswith("| ") and line.endswith("|") for line in lines)
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")


@pytest.mark.parametrize("network", ["evaluation", "plain"])
def test_plot_is_a_picture(network: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the train extra")
    plot_evaluation(request.getfixturevalue(network), "toy", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300
