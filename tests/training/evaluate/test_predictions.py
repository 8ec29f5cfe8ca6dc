"""Dividing pictures, and counting what thresholds do to them."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.training.evaluate.predictions import ExitPredictions, count_at_thresholds, divide


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
def test_a_division_is_disjoint_whole_and_fair_to_every_class(share: float) -> None:
    labels_N = np.repeat(np.arange(7), [1, 1, 2, 5, 10, 30, 51])
    first, second = divide(labels_N, share)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(100))
    assert len(first) == int(share * 100)
    for label, size in enumerate([1, 1, 2, 5, 10, 30, 51]):
        assert abs((labels_N[first] == label).sum() - share * size) < 1.0


def test_a_division_is_the_same_each_time_and_mixes_the_pictures_of_a_class() -> None:
    labels_N = np.arange(1000) % 10
    first, _ = divide(labels_N, 0.4)
    assert first.tolist() == divide(labels_N.copy(), 0.4)[0].tolist()
    halves = [(first < 500).mean(), (first >= 500).mean()]
    assert min(halves) > 0.4
    assert first[:12].tolist() != list(range(12))


def test_what_thresholds_do_is_counted() -> None:
    answers = ExitPredictions(
        confidence_NK=np.array([[0.9, 0.5], [0.6, 0.9], [0.2, 0.4], [0.8, 0.8], [0.7, 0.2]], dtype=np.float32),
        class_id_NK=np.array([[0, 1], [0, 0], [2, 1], [1, 0], [2, 1]]),
        labels_N=np.array([0, 0, 1, 0, 0]),
    )
    none, some, everyone = count_at_thresholds(answers, [(1.0,), (0.7,), (0.0,)])
    assert (none.mix_K, none.disagreed, none.lost, none.gained) == ((0, 5), 0, 0, 0)
    assert (some.mix_K, some.disagreed, some.lost, some.gained) == ((3, 2), 3, 1, 1)
    assert (everyone.mix_K, everyone.disagreed, everyone.lost, everyone.gained) == ((5, 0), 4, 2, 1)
    assert some.exit_mix == (0.6, 0.4)
    assert some.mean_cost((1.0, 2.0)) == pytest.approx(1.4)
