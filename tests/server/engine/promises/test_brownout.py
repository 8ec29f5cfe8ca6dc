"""Brownout: down step by step under load, up again step by step, and steady in between."""

from __future__ import annotations

import pytest

from offramp.server.engine.promises.brownout import Brownout, BrownoutLimits

LIMITS = BrownoutLimits(high_s=1.0, low_s=0.25, lower_every_s=0.1, raise_every_s=2.0)


def test_under_load_the_level_rises_step_by_step_up_to_the_last() -> None:
    brownout = Brownout(LIMITS, levels=3)
    levels = [brownout.update(now_s, 5.0) for now_s in (0.0, 0.05, 0.11, 0.15, 0.25, 0.5, 9.0)]
    assert levels == [1, 1, 2, 2, 3, 3, 3]


def test_between_the_limits_the_level_stays() -> None:
    brownout = Brownout(LIMITS, levels=3)
    brownout.update(0.0, 5.0)
    assert [brownout.update(now_s, 0.6) for now_s in (1.0, 10.0, 100.0)] == [1, 1, 1]


def test_recovery_is_slower_than_giving_way() -> None:
    brownout = Brownout(LIMITS, levels=3)
    for now_s in (0.0, 0.2, 0.4):
        brownout.update(now_s, 5.0)
    levels = [brownout.update(now_s, 0.1) for now_s in (1.0, 2.3, 2.5, 4.3, 4.5, 7.0, 20.0)]
    assert levels == [3, 3, 2, 2, 1, 0, 0]


def test_after_a_long_rest_nothing_is_left_of_the_load() -> None:
    brownout = Brownout(LIMITS, levels=3)
    for now_s in (0.0, 0.2, 0.4):
        brownout.update(now_s, 5.0)
    assert brownout.update(1000.0, 0.0) == 0


def test_a_wait_that_swings_about_one_limit_does_not_swing_the_level() -> None:
    brownout = Brownout(LIMITS, levels=3)
    waits_s = [1.1, 0.9] * 20
    levels = [brownout.update(0.001 * step, wait_s) for step, wait_s in enumerate(waits_s)]
    assert set(levels) == {1}


@pytest.mark.parametrize(("high_s", "low_s"), [(1.0, 1.0), (1.0, 2.0), (1.0, -0.1)])
def test_limits_without_room_between_them_are_refused(high_s: float, low_s: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        BrownoutLimits(high_s, low_s)
