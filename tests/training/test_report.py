"""Tables and plot of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from training.evaluate import Evaluation, ExitQuality, OperatingPoint
from training.report import exits_table, plot, thresholds_table


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        pictures=1000,
        exits=(
            ExitQuality(1, 0.6015, 0.6015, 0.0123, 10_000_000, 0.25),
            ExitQuality(2, 0.7, 0.7125, 0.02, 40_000_000, 1.0),
        ),
        ensemble_accuracy=0.7234,
        operating_points=(
            OperatingPoint(0.0, 0.6015, 1e7, 0.25, (1.0, 0.0), 0.2),
            OperatingPoint(0.995, 0.71, 3.4e7, 0.85, (0.2, 0.8), 0.01),
            OperatingPoint(1.0, 0.7125, 4e7, 1.0, (0.0, 1.0), 0.0),
        ),
    )


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]


def test_exits_table_has_a_row_for_each_exit_and_one_for_the_mean(evaluation: Evaluation) -> None:
    rows = cells(exits_table(evaluation))
    assert rows[2] == ["1", "60.15%", "60.15%", "0.0123", "10.0 M", "0.250"]
    assert rows[3] == ["2", "70.00%", "71.25%", "0.0200", "40.0 M", "1.000"]
    assert rows[4][:2] == ["mean of all", "72.34%"]
    assert {len(row) for row in rows} == {6}


def test_thresholds_table_has_a_row_for_each_threshold_and_a_column_for_each_exit(evaluation: Evaluation) -> None:
    rows = cells(thresholds_table(evaluation))
    assert rows[0][4:] == ["exit 1", "exit 2"]
    assert rows[3] == ["0.995", "71.00%", "0.850", "1.00%", "20.0%", "80.0%"]
    assert len(rows) == 5
    assert {len(row) for row in rows} == {6}


def test_tables_are_well_formed_markdown(evaluation: Evaluation) -> None:
    for table in (exits_table(evaluation), thresholds_table(evaluation)):
        lines = table.splitlines()
        assert all(line.startswith("| ") and line.endswith("|") for line in lines)
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")


def test_plot_is_a_picture(evaluation: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the train extra")
    plot(evaluation, "toy", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300
