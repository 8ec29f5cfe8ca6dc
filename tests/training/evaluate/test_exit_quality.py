"""Quality of exits: figures by hand, by brute force over all pairs and orders, and properties that always hold."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.training.evaluate.exit_quality import failure_auroc, oracle, reliability, selective_risk, settled

Answers = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


def answers(confidences: list[float], rights: list[int]) -> Answers:
    return np.array(confidences, dtype=np.float32), np.array(rights, dtype=np.bool_)


# Few distinct confidences, so that ties are common.
judged_pictures = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40).map(
    lambda pairs: answers([level / 8 for level, _ in pairs], [right for _, right in pairs])
)
right_tables = st.integers(1, 4).flatmap(
    lambda exits: st.lists(st.lists(st.booleans(), min_size=exits, max_size=exits), min_size=1, max_size=20)
)


def test_reliability_by_hand() -> None:
    result = reliability(*answers([0.05, 0.55, 0.58, 0.95, 1.0], [0, 1, 0, 1, 1]), bins=10)
    assert result.share == pytest.approx((0.2, 0.4, 0.4))
    assert result.confidence == pytest.approx((0.05, 0.565, 0.975))
    assert result.accuracy == (0.0, 0.5, 1.0)
    # |0.05 - 0| + |0.55 + 0.58 - 1| + |0.95 + 1.0 - 2|, over five pictures.
    assert result.calibration_error == pytest.approx((0.05 + 0.13 + 0.05) / 5, rel=1e-5)


def test_calibration_error_is_0_for_the_calibrated_and_1_for_the_surely_wrong() -> None:
    assert reliability(*answers([0.5] * 10, [0, 1] * 5)).calibration_error == pytest.approx(0.0)
    assert reliability(*answers([1.0] * 4, [0] * 4)).calibration_error == pytest.approx(1.0)


@given(judged_pictures)
def test_the_bins_hold_every_picture_once(pictures: Answers) -> None:
    confidence_N, right_N = pictures
    result = reliability(confidence_N, right_N, bins=5)
    assert sum(result.share) == pytest.approx(1.0)
    for values_N, means in ((confidence_N, result.confidence), (right_N, result.accuracy)):
        assert np.dot(result.share, means) == pytest.approx(values_N.mean(), abs=1e-6)
    assert list(result.confidence) == sorted(result.confidence)
    assert 0.0 <= result.calibration_error <= 1.0


@pytest.mark.parametrize(
    ("confidences", "rights", "expected"),
    [
        ([0.9, 0.8, 0.3], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.3], [0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5], [0, 1, 1], 0.5),
        # Right at .9 and .4, wrong at .6, .4 and .1: 3 + (0 + 1/2 + 1) of 6 pairs.
        ([0.9, 0.6, 0.4, 0.4, 0.1], [1, 0, 1, 0, 0], 0.75),
    ],
)
def test_ranking_by_hand(confidences: list[float], rights: list[int], expected: float) -> None:
    assert failure_auroc(*answers(confidences, rights)) == pytest.approx(expected)


def test_ranking_of_many_answers_is_exact() -> None:
    confidence_N = (np.arange(20_000) / 20_000).astype(np.float32)
    # The k-th of n right answers is above k wrong ones.
    assert failure_auroc(confidence_N, np.arange(20_000) % 2 == 1) == pytest.approx(10_001 / 20_000, rel=1e-12)


@pytest.mark.parametrize("right", [0, 1])
def test_without_right_or_without_wrong_answers_there_is_no_ranking(right: int) -> None:
    assert failure_auroc(*answers([0.2, 0.7], [right, right])) is None


@given(judged_pictures)
def test_ranking_is_the_share_of_pairs_in_order(pictures: Answers) -> None:
    confidence_N, right_N = pictures
    pairs = [(r > w) + (r == w) / 2 for r in confidence_N[right_N] for w in confidence_N[~right_N]]
    result = failure_auroc(confidence_N, right_N)
    assert result is None if not pairs else result == pytest.approx(sum(pairs) / len(pairs))


@given(judged_pictures)
def test_ranking_depends_on_the_order_alone_and_reverses_with_it(pictures: Answers) -> None:
    confidence_N, right_N = pictures
    result = failure_auroc(confidence_N, right_N)
    assert failure_auroc(np.exp(3 * confidence_N), right_N) == result
    turned = failure_auroc(-confidence_N, right_N)
    assert (result is None and turned is None) or (turned or 0.0) + (result or 0.0) == pytest.approx(1.0)


def test_selective_risk_by_hand() -> None:
    # Most confident first: right, wrong, right, wrong.
    result = selective_risk(*answers([0.4, 0.9, 0.6, 0.1], [1, 1, 0, 0]), coverages=4)
    assert result.curve == pytest.approx((0.0, 1 / 2, 1 / 3, 2 / 4))
    assert result.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # The best order has both wrong ones last: 0, 0, 1/3, 2/4.
    assert result.excess == pytest.approx(result.area - (1 / 3 + 1 / 2) / 4)


def test_coverages_are_rounded_up_to_whole_pictures() -> None:
    pictures = answers([0.9, 0.5, 0.1], [1, 1, 0])
    assert selective_risk(*pictures, coverages=2).curve == pytest.approx((0.0, 1 / 3))
    assert selective_risk(*pictures, coverages=6).curve == pytest.approx((0.0, 0.0, 0.0, 0.0, 1 / 3, 1 / 3))


def test_equal_confidences_count_as_the_mean_over_their_orders() -> None:
    rights = [1, 0, 1, 1, 0]
    confidences = [0.9, 0.5, 0.5, 0.5, 0.2]
    result = selective_risk(*answers(confidences, rights), coverages=5)
    risks = [
        [1 - sum(order[: count + 1]) / (count + 1) for count in range(5)]
        for order in ((1, *middle, 0) for middle in permutations((0, 1, 1)))
    ]
    assert result.curve == pytest.approx(np.mean(risks, axis=0).tolist())
    assert result.area == pytest.approx(np.mean(risks))


@given(judged_pictures, st.randoms())
def test_risk_ends_at_the_error_and_does_not_depend_on_the_order_of_the_pictures(pictures, random) -> None:
    confidence_N, right_N = pictures
    result = selective_risk(confidence_N, right_N, coverages=7)
    assert len(result.curve) == 7
    assert result.curve[-1] == pytest.approx(1 - right_N.mean())
    assert -1e-12 <= result.excess <= result.area <= 1.0
    order = list(range(len(right_N)))
    random.shuffle(order)
    assert selective_risk(confidence_N[order], right_N[order], coverages=7) == result


@given(judged_pictures)
def test_only_a_perfect_ranking_has_no_excess(pictures: Answers) -> None:
    excess = selective_risk(*pictures).excess
    perfect = failure_auroc(*pictures) in (None, 1.0)
    assert excess == pytest.approx(0.0, abs=1e-12) if perfect else excess > 1e-9


def test_the_oracle_by_hand() -> None:
    right_NK = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=np.bool_)
    result = oracle(right_NK, (10, 30, 60))
    # It leaves at exits 1, 2, 3, 3 (no exit is right) and 1.
    assert result.accuracy == pytest.approx(4 / 5)
    assert result.mean_multiply_adds == pytest.approx((10 + 30 + 60 + 60 + 10) / 5)
    assert result.compute == pytest.approx(34 / 60)
    assert result.overthought == pytest.approx(2 / 5)
    assert result.wasted == pytest.approx(1 / 5)


@given(right_tables)
def test_the_oracle_gains_exactly_the_overthought_share(table: list[list[bool]]) -> None:
    right_NK = np.array(table, dtype=np.bool_)
    costs = (10, 30, 60, 100)[: right_NK.shape[1]]
    result = oracle(right_NK, costs)
    assert result.accuracy == pytest.approx(right_NK[:, -1].mean() + result.overthought)
    assert result.accuracy >= right_NK.mean(axis=0).max() - 1e-12
    assert costs[0] <= result.mean_multiply_adds <= costs[-1]
    assert result.wasted <= right_NK[:, -1].mean()


def test_one_exit_alone_cannot_overthink() -> None:
    result = oracle(np.array([[True], [False]]), (60,))
    assert (result.accuracy, result.compute, result.overthought, result.wasted) == (0.5, 1.0, 0.0, 0.0)
    assert settled(np.array([[3], [1]])) == (1.0,)


def test_an_answer_is_settled_where_all_later_exits_give_it_too() -> None:
    class_id_NK = np.array([[2, 2, 2], [5, 2, 5], [1, 2, 2], [0, 1, 2]])
    assert settled(class_id_NK) == pytest.approx((1 / 4, 2 / 4, 1.0))
