"""Thresholds as given on the command line."""

import pytest

from benchmarks.options import AccuracyOptions, BenchOptions, parse_thresholds


def test_thresholds_are_read_in_the_given_order() -> None:
    assert parse_thresholds("0, 0.95,1,0.5") == (0.0, 0.95, 1.0, 0.5)


@pytest.mark.parametrize("text", ["", "a,1", "0.5,,1", "1.5,1", "-0.1,1", "nan,1", "inf,1", "0.5,0.5,1"])
def test_what_is_no_list_of_different_thresholds_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        AccuracyOptions(thresholds=text)


def test_a_comparison_without_exits_off_is_refused() -> None:
    with pytest.raises(ValueError, match="lack 1"):
        BenchOptions(thresholds="0,0.5")
