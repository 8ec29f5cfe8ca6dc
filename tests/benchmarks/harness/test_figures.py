"""Percentiles, spreads, order of rounds, templates and tables."""

import math
from functools import partial
from types import SimpleNamespace

import pytest

from benchmarks.harness.figures import Columns, Spread, fill, interleave, percentile, ratios, spread, spreads, table

SPREAD = {"median": 1.9, "min": 1.8, "max": 2.04}


def test_percentiles_are_of_nearest_rank() -> None:
    values = [15, 20, 35, 40, 50]
    assert [percentile(values, percent) for percent in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1000, 0, -1), 99) == 990


def test_a_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, min=1.0, max=10.0)


def test_ratios_are_taken_within_a_round_before_their_median() -> None:
    assert ratios([200, 30, 50], [100, 10, 50]) == Spread(2.0, 1.0, 3.0)


def test_spreads_leave_unknown_values_out() -> None:
    records = [SimpleNamespace(a=1.0, b=None, c=math.nan), SimpleNamespace(a=3.0, b=2.0, c=None)]
    assert spreads(records, "a", "b", "c") == {"a": Spread(2.0, 1.0, 3.0), "b": Spread(2.0, 2.0, 2.0), "c": None}


def test_rounds_hold_every_way_once_and_begin_with_another_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    turns: list[tuple[int, float]] = []

    def measure(way: float, number: int) -> float:
        turns.append((number, way))
        return way + number

    results = interleave({way: partial(measure, way) for way in (0.0, 0.5, 1.0)}, 4)
    assert sorted(turns) == [(number, way) for number in range(4) for way in (0.0, 0.5, 1.0)]
    assert [way for _, way in turns[::3]] == [0.0, 0.5, 1.0, 0.0]
    assert [number for number, _ in turns] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert results == {way: [way + number for number in range(4)] for way in (0.0, 0.5, 1.0)}
    assert "round 3, 0.5: 3.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{ratio:.2f×}", "1.90× (1.80–2.04)"),
        ("{ratio:.0f}", "2"),
        ("{ratio[max]:.1%}", "204.0%"),
        ("{mix:.0f}", "25 / 50 / 25"),
        ("{counts}", "200: 1,000, 503: 2"),
        ("{nothing:.2f}", "–"),
        ("{name}", "x"),
        ("{count:,} of {rows[1][n]:.1f ms}", "12,345 of 2.0 ms"),
    ],
)
def test_a_template_shows_spreads_shares_counts_and_gaps(template: str, text: str) -> None:
    row = {"ratio": SPREAD, "mix": [0.25, 0.5, 0.25], "counts": {"503": 2, "200": 1000}, "nothing": None, "name": "x"}
    assert fill(template, {**row, "count": 12345, "rows": [{"n": 1}, {"n": 2}]}) == text


def test_a_table_aligns_words_left_and_numbers_right() -> None:
    columns: Columns = {"name": "{name}", "n": "{n}", "twice": lambda row: str(2 * row["n"])}
    assert table(columns, [{"name": "a", "n": 1}, {"name": "b", "n": 2}]).splitlines() == [
        "| name | n | twice |",
        "| --- | ---: | ---: |",
        "| a | 1 | 2 |",
        "| b | 2 | 4 |",
    ]
