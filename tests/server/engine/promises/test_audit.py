"""Audit: bounds that hold at all times, and an alarm that rings when a promise is broken and not before."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from offramp.server.engine.promises.audit import MAX_WAITING, Alarm, ArrivalOrder, Auditor, Comparison, bounds
from offramp.server.engine.request import Promise

PROMISED = 0.01


def rings_after(alarm: Alarm, disagreements: Iterable[bool], promised: float = PROMISED) -> int | None:
    """The number of the sample at which the alarm rings."""
    for number, disagreed in enumerate(disagreements, start=1):
        alarm.learn(disagreed, promised)
        if alarm.rings:
            return number
    return None


def test_bounds_hold_at_all_times_at_once() -> None:
    # A tenth may be wrong somewhere on the way; of 150 sequences 15 at most; it is far fewer that are.
    random = np.random.default_rng(0)
    left = 0
    for _ in range(150):
        disagreed_N = np.cumsum(random.random(200) < 0.05)
        sequence = [bounds(n, int(k), 0.1) for n, k in enumerate(disagreed_N, start=1)]
        left += any(not low <= 0.05 <= high for low, high in sequence)
    assert left <= 10


def test_bounds_narrow_about_the_rate() -> None:
    assert bounds(0, 0, 0.05) == (0.0, 1.0)
    low, high = bounds(100_000, 800, 0.05)
    assert 0.0065 < low < 0.008 < high < 0.0095
    assert bounds(200, 0, 0.05)[0] == 0.0
    assert bounds(200, 0, 0.05)[1] < 0.04
    assert bounds(30, 30, 0.05)[1] == 1.0
    assert bounds(30, 30, 0.05)[0] > 0.8


def test_an_alarm_rings_soon_after_a_promise_is_broken() -> None:
    random = np.random.default_rng(1)
    for rate, at_most in ((0.3, 60), (0.1, 300), (0.05, 1500)):
        number = rings_after(Alarm(1e6), random.random(at_most) < rate)
        assert number is not None


def test_an_alarm_is_as_quick_after_many_good_samples() -> None:
    random = np.random.default_rng(2)
    bad = random.random(400) < 0.2
    fresh, seasoned = Alarm(1e6), Alarm(1e6)
    assert rings_after(seasoned, random.random(50_000) < 0.005) is None
    first, later = rings_after(fresh, bad), rings_after(seasoned, bad)
    assert first is not None
    assert later is not None
    assert later <= first


def test_a_kept_promise_rings_no_alarm_more_often_than_allowed() -> None:
    # At the very rate that is promised it takes 200 samples on average to a false alarm, or more.
    random = np.random.default_rng(3)
    runs = [rings_after(Alarm(200.0), random.random(20_000) < PROMISED) or 20_000 for _ in range(60)]
    assert np.mean(runs) > 200


def test_evidence_is_weighed_by_each_samples_own_promise() -> None:
    # One disagreement in ten breaks a promise of 1 %, and none of 30 %.
    disagreements = [number % 10 == 0 for number in range(400)]
    assert rings_after(Alarm(1e6), disagreements, 0.3) is None
    assert rings_after(Alarm(1e6), disagreements, 0.01) is not None


def test_an_alarm_does_not_stop() -> None:
    alarm = Alarm(100.0)
    rings_after(alarm, [True] * 10)
    for _ in range(1000):
        alarm.learn(False, PROMISED)
    assert alarm.rings


def test_without_a_disagreement_there_is_no_evidence() -> None:
    alarm = Alarm(100.0)
    assert rings_after(alarm, [False] * 5000, 0.005) is None
    assert alarm.evidence <= 1.0


def test_an_alarm_threshold_that_would_ring_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold 1\.0 is out of range"):
        Alarm(1.0)


def test_the_auditor_keeps_exits_and_promises_apart() -> None:
    auditor = Auditor(num_exits=3, false_alarm_every=1000.0)
    for _ in range(50):
        auditor.learn(Comparison(1, True, Promise(0.01, certified=True)))
        auditor.learn(Comparison(2, False, Promise(0.05, certified=True)))
        auditor.learn(Comparison(3, False, Promise(0.05, certified=True)))
        auditor.learn(Comparison(1, False, Promise(0.2, certified=False)))
        auditor.learn(Comparison(2, False, None))
    assert [(each.audited, each.disagreed) for each in auditor.exits] == [(100, 50), (100, 0)]
    assert auditor.broken(Promise(0.01, certified=True))
    assert not auditor.broken(Promise(0.05, certified=True))
    assert not auditor.broken(Promise(0.01, certified=False))
    assert not auditor.broken(None)
    assert not auditor.alarms[0.0].rings
    assert auditor.bounds(1)[0] > 0.3
    assert auditor.bounds(2)[0] == 0.0


def test_where_nothing_is_promised_no_alarm_is_kept() -> None:
    auditor = Auditor(num_exits=2, false_alarm_every=1000.0)
    assert auditor.learn(Comparison(1, True, None)) is None
    assert auditor.learn(Comparison(1, True, Promise(1.0, certified=False))) is None
    assert auditor.alarms == {}


def stats(ticket: int) -> Comparison:
    return Comparison(1, False, None, ticket)


def test_arrival_order_gives_each_ticket_once_and_in_order() -> None:
    random = np.random.default_rng(4)
    arrivals = ArrivalOrder()
    given = [
        each.ticket for ticket in random.permutation(np.arange(1, 501)) for each in arrivals.add(stats(int(ticket)))
    ]
    assert given == list(range(1, 501))


def test_a_ticket_that_never_comes_does_not_hold_up_the_others_for_ever() -> None:
    arrivals = ArrivalOrder()
    given = [each.ticket for ticket in range(2, MAX_WAITING + 10) for each in arrivals.add(stats(ticket))]
    assert given == list(range(2, MAX_WAITING + 10))


def test_bunches_of_early_leavers_ring_no_alarm_where_the_promise_is_kept() -> None:
    # One in ten leaves early and one in ten of those disagrees, which is what was promised; batches of 32 of them.
    random = np.random.default_rng(5)
    early_N = random.random(60_000) < 0.1
    disagrees_N = early_N & (random.random(60_000) < 0.1)
    known_at_N = np.where(early_N, np.cumsum(early_N) // 32 * 320 + 330, np.arange(60_000))
    order = np.argsort(known_at_N, kind="stable")

    def rings(in_order: bool) -> bool:
        alarm, arrivals = Alarm(1e6), ArrivalOrder()
        for at in order:
            comparison = Comparison(1, bool(disagrees_N[at]), Promise(PROMISED, True), int(at) + 1)
            for each in arrivals.add(comparison) if in_order else [comparison]:
                alarm.learn(each.disagreed, PROMISED)
        return alarm.rings

    assert not rings(in_order=True)
    assert rings(in_order=False)
