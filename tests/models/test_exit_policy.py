"""The exit decision against a plain loop, and calibration against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.models.exit_policy import Calibration, ExitReason, ExitRule, exits_taken, may_leave


def taken(confidences: list[float], rule: ExitRule) -> int:
    return int(exits_taken(np.array([confidences], dtype=np.float32), rule)[0])


def test_threshold_0_always_answers_at_the_first_exit() -> None:
    assert taken([0.0, 1.0, 1.0], ExitRule.uniform(0.0, 3)) == 1


def test_threshold_1_never_answers_early_even_at_full_confidence() -> None:
    assert taken([1.0, 1.0, 1.0], ExitRule.uniform(1.0, 3)) == 3


def test_confidence_equal_to_the_threshold_may_leave() -> None:
    assert taken([0.5, 0.9], ExitRule.uniform(0.5, 2)) == 1
    assert taken([np.nextafter(np.float32(0.5), np.float32(0)), 0.9], ExitRule.uniform(0.5, 2)) == 2


def test_each_exit_has_its_own_threshold() -> None:
    rule = ExitRule((0.9, 0.5, 0.0))
    assert [taken(c, rule) for c in ([0.9, 0, 0, 0], [0.8, 0.5, 0, 0], [0.8, 0.4, 0.0, 0])] == [1, 2, 3]


def test_min_exit_holds_back_the_confident_and_max_exit_lets_go_the_doubtful() -> None:
    assert taken([1.0, 1.0, 1.0, 1.0], ExitRule.uniform(0.0, 4, min_exit=3)) == 3
    assert taken([0.1, 0.1, 0.1, 0.1], ExitRule.uniform(1.0, 4, max_exit=2)) == 2
    assert taken([1.0, 0.0, 0.0, 0.0], ExitRule.uniform(0.5, 4, min_exit=2, max_exit=2)) == 2


def test_a_network_with_one_exit_answers_there() -> None:
    assert taken([0.2], ExitRule(())) == 1


def test_a_picture_without_a_number_for_confidence_answers_at_full_depth() -> None:
    assert taken([math.nan] * 3, ExitRule.uniform(0.0, 3)) == 3
    assert taken([math.nan] * 3, ExitRule.uniform(0.5, 3, max_exit=2)) == 2


def test_reasons_say_why_a_picture_left() -> None:
    rule = ExitRule.uniform(0.8, 4, max_exit=3)
    assert rule.reason(1, 0.8) is ExitReason.CONFIDENT
    assert rule.reason(3, 0.79) is ExitReason.MAX_EXIT
    assert rule.reason(3, 0.81) is ExitReason.CONFIDENT
    assert ExitRule.uniform(0.8, 4).reason(4, 0.99) is ExitReason.FINAL
    assert ExitRule.uniform(0.8, 4).reason(4, 0.1) is ExitReason.FINAL
    assert ExitRule.uniform(1.0, 4, max_exit=2).reason(2, 1.0) is ExitReason.MAX_EXIT
    assert [str(reason) for reason in ExitReason] == ["confident", "final", "max_exit", "deadline", "brownout"]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9, 0.95])
def test_reason_at_max_exit_agrees_with_the_decision_to_the_last_bit(threshold: float) -> None:
    free, bounded = ExitRule.uniform(threshold, 3), ExitRule.uniform(threshold, 3, max_exit=1)
    edge = np.float32(threshold)
    for confidence in (np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(1))):
        confident = bool(may_leave(np.array([confidence]), free.limits[:1])[0])
        assert (bounded.reason(1, float(confidence)) is ExitReason.CONFIDENT) == confident


shares = st.floats(0, 1, width=32)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_exits=st.integers(1, 5))
def test_decision_equals_a_plain_loop_over_samples_and_exits(data: st.DataObject, num_exits: int) -> None:
    thresholds = tuple(data.draw(st.lists(shares, min_size=num_exits - 1, max_size=num_exits - 1)))
    min_exit = data.draw(st.integers(1, num_exits))
    max_exit = data.draw(st.integers(min_exit, num_exits))
    # Confidences often equal to a threshold: there the decision is at its edge.
    often_equal = st.one_of(shares, st.sampled_from((*thresholds, 1.0)))
    row = st.lists(often_equal, min_size=num_exits, max_size=num_exits)
    confidences = data.draw(st.lists(row, min_size=1, max_size=8))
    rule = ExitRule(thresholds, min_exit, max_exit)

    expected = []
    for sample in confidences:
        for exit, confidence in enumerate(sample, start=1):
            early = exit < num_exits and thresholds[exit - 1] < 1.0 and confidence >= thresholds[exit - 1]
            if exit == max_exit or (exit >= min_exit and early):
                expected.append(exit)
                break

    confidence_NK = np.array(confidences, dtype=np.float32)
    assert exits_taken(confidence_NK, rule).tolist() == expected
    one_by_one = [
        next(k for k in range(1, num_exits + 1) if may_leave(sample[k - 1], rule.limits[k - 1]))
        for sample in confidence_NK
    ]
    assert one_by_one == expected


def test_accumulation_and_temperature_follow_the_formulas() -> None:
    calibration = Calibration((2.0, 0.5, 1.0), (0.0, 0.5, 2.0))
    z1, z2, z3 = (np.array(z) for z in ([[1.0, 2.0]], [[3.0, -1.0]], [[0.5, 0.25]]))
    a1 = z1
    a2 = 0.5 * a1 + z2
    a3 = 2.0 * a2 + z3
    accumulated = None
    for exit, (z, a, temperature) in enumerate(zip((z1, z2, z3), (a1, a2, a3), (2.0, 0.5, 1.0), strict=True), start=1):
        accumulated = calibration.accumulate(exit, accumulated, torch.tensor(z, dtype=torch.float64))
        assert accumulated.dtype == torch.float32
        np.testing.assert_allclose(accumulated.numpy(), a, rtol=1e-6)
        powers = np.exp(a / temperature)
        np.testing.assert_allclose(
            calibration.probabilities(exit, accumulated).numpy(), powers / powers.sum(), rtol=1e-5
        )


def test_a_carry_of_0_forgets_the_exits_before() -> None:
    calibration = Calibration((1.0, 1.0), (0.0, 0.0))
    logits_BC = torch.tensor([[1.0, 2.0]])
    assert torch.equal(calibration.accumulate(2, torch.full((1, 2), math.inf), logits_BC), logits_BC)


def test_half_precision_logits_are_calibrated_in_float32() -> None:
    calibration = Calibration.neutral(2)
    accumulated = calibration.accumulate(1, None, torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    assert calibration.probabilities(1, accumulated).dtype == torch.float32


def test_neutral_calibration_is_plain_softmax_at_every_exit() -> None:
    calibration = Calibration.neutral(3)
    logits_BC = torch.tensor([[1.0, 2.0, 4.0]])
    accumulated = calibration.accumulate(3, torch.ones(1, 3), logits_BC)
    assert torch.equal(calibration.probabilities(3, accumulated), logits_BC.softmax(dim=1))


@pytest.mark.parametrize(
    ("temperatures", "weights", "message"),
    [
        ((1.0,), (0.0, 0.0), "1 temperatures and 2 carries"),
        ((), (), "0 temperatures and 0 carries"),
        ((1.0, 0.0), (0.0, 0.0), r"temperatures \(1.0, 0.0\) are out of range: give finite numbers above 0"),
        ((1.0, math.nan), (0.0, 0.0), "temperatures .* out of range"),
        ((1.0, math.inf), (0.0, 0.0), "temperatures .* out of range"),
        ((1.0, 1.0), (0.0, -0.1), "carries .* out of range: give 0 first"),
        ((1.0, 1.0), (0.0, math.nan), "carries .* out of range"),
        ((1.0, 1.0), (0.5, 0.0), "carries .* out of range: give 0 first"),
    ],
)
def test_unusable_calibration_is_refused(temperatures: tuple, weights: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration(temperatures, weights)


@pytest.mark.parametrize(
    ("thresholds", "bounds", "message"),
    [
        ((0.5, 1.1), (1, 3), r"thresholds \[0.5, 1.1\] are out of range: give numbers in \[0, 1\]"),
        ((-0.1, 0.5), (1, 3), r"thresholds \[-0.1, 0.5\] are out of range"),
        ((math.nan, 0.5), (1, 3), r"thresholds \[nan, 0.5\] are out of range"),
        ((0.5, 0.5), (0, 3), "min_exit 0 and max_exit 3 are out of range: 1 <= min_exit <= max_exit <= 3"),
        ((0.5, 0.5), (1, 4), "min_exit 1 and max_exit 4 are out of range"),
        ((0.5, 0.5), (3, 2), "min_exit 3 and max_exit 2 are out of range"),
    ],
)
def test_unusable_rule_is_refused(thresholds: tuple, bounds: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExitRule(thresholds, *bounds)
