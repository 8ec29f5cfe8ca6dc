"""Served answers beside evaluated ones: differences, counters, conclusion."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import fill
from benchmarks.harness.pictures import TestPictures
from benchmarks.options import AccuracyOptions
from benchmarks.serving.accuracy import (
    DIFFERENCE,
    Difference,
    Reference,
    compare,
    conclude,
    differences,
    exit_counters,
    largest_confidence_difference,
    section,
)
from benchmarks.serving.answers import Answer


def reference(confidence: float = 0.9) -> Reference:
    """Three pictures of classes 0, 1, 2, equally sure at all four exits."""
    confidence_NK = np.full((3, 4), confidence, np.float32)
    class_id_NK = np.repeat(np.arange(3)[:, None], 4, axis=1)
    return Reference(confidence_NK, np.full((3, 4), 0.25, np.float32), class_id_NK, np.arange(3))


def answer(picture: int, exit: int, class_id: int, confidence: float = 0.9) -> Answer:
    return Answer(picture, class_id, exit, "confident", 0.5, confidence)


def test_equal_answers_show_no_difference() -> None:
    assert differences([answer(n, 1, n) for n in range(3)], reference(), 0.5) == []


def test_another_exit_is_as_distant_as_the_shallower_confidence_from_the_threshold() -> None:
    (different,) = differences([answer(1, 3, 1)], reference(), 0.5)
    assert (different.picture, different.served_exit, different.evaluated_exit) == (1, 3, 1)
    assert different.distance == pytest.approx(0.4)
    sentence = fill(DIFFERENCE, vars(different))
    assert sentence.startswith("picture 1 at threshold 0.5: served exit 3 class 1, evaluated exit 1 class 1; 4.0e-01")


def test_another_class_is_as_distant_as_the_runner_up() -> None:
    (different,) = differences([answer(2, 1, 0)], reference(), 0.5)
    assert (different.served_class_id, different.evaluated_class_id) == (0, 2)
    assert different.distance == pytest.approx(0.65)


def test_confidences_are_compared_at_the_exit_that_was_served() -> None:
    records = [answer(0, 1, 0, 0.9), answer(1, 1, 1, 0.9004)]
    assert largest_confidence_difference(records, reference()) == pytest.approx(0.0004, rel=1e-3)


def test_counters_are_summed_by_exit_over_all_other_labels() -> None:
    metrics = (
        "# TYPE offramp_samples counter\n"
        'offramp_samples_total{model="a",exit="1",reason="confident"} 5.0\n'
        'offramp_samples_total{model="a",exit="1",reason="deadline"} 2.0\n'
        'offramp_samples_total{model="b",exit="4",reason="final"} 1.0\n'
        'offramp_samples_created{model="a",exit="1",reason="confident"} 1.7e9\n'
        'offramp_inflight_samples{model="a"} 3.0\n'
    )
    assert exit_counters(metrics) == {1: 7, 4: 1}


def difference(distance: float) -> Difference:
    return Difference(0, 0.5, 1, 2, 7, 7, distance)


@pytest.mark.parametrize(
    ("different", "answered", "counted", "agrees"),
    [
        ([], {1: 3}, {1: 3, 2: 0}, True),
        ([difference(1e-6)], {1: 3}, {1: 3}, True),
        ([difference(1e-6), difference(0.01)], {1: 3}, {1: 3}, False),
        ([], {1: 3}, {1: 4}, False),
        ([], {1: 3, 2: 1}, {1: 3}, False),
    ],
)
def test_only_rounding_and_exact_counters_agree(
    different: list[Difference], answered: dict[int, int], counted: dict[int, int], agrees: bool
) -> None:
    assert conclude(different, answered, counted)[1] is agrees


def compared(running: Any, pictures: TestPictures, thresholds: str = "0.5,1") -> dict[str, Any]:
    options = AccuracyOptions(thresholds=thresholds, connections=4)
    document = compare(options, running.server, pictures, reference())
    return json.loads(json.dumps(document, allow_nan=False))


def test_a_server_that_answers_as_evaluated_agrees(serve: Callable[..., Any], pictures: TestPictures) -> None:
    with serve() as running:
        compared(running, pictures)
        document = compared(running, pictures)
    assert document["agrees"]
    assert document["answers_by_exit"] == document["counted_by_exit"] == {"1": 3, "4": 3}
    assert [line["accuracy"] for line in document["rows"]] == [1.0, 1.0]
    assert [line["evaluated_mix"] for line in document["rows"]] == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert "| 1 | 100.00% | 100.00% | 0.00 / 0.00 / 0.00 / 100.00 |" in section(document)


def test_a_server_that_exits_elsewhere_is_noticed(serve: Callable[..., Any], pictures: TestPictures) -> None:
    # The small server leaves at exit 1 below threshold 1, however sure; the evaluation of 0.95 goes on to exit 4.
    with serve() as running:
        document = compared(running, pictures, "0.95")
    assert not document["agrees"]
    assert document["rows"][0]["exits_differing"] == 3
    assert [d["distance"] for d in document["differences"]] == pytest.approx([0.05] * 3, rel=1e-3)


def test_a_server_that_miscounts_is_noticed(serve: Callable[..., Any], pictures: TestPictures) -> None:
    with serve(miscounted=1) as running:
        document = compared(running, pictures)
    assert not document["agrees"]
    assert document["counted_by_exit"] == {"1": 4, "4": 3}


def test_a_refused_picture_stops_the_comparison(serve: Callable[..., Any], pictures: TestPictures) -> None:
    with serve(failing=frozenset({b"picture-c"})) as running, pytest.raises(BenchmarkError, match="503 full"):
        compared(running, pictures)
