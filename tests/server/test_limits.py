"""Limits of one client: unanswered requests, compute, and its share of the deep work."""

from __future__ import annotations

from server.limits import HALF_LIFE_S, REMEMBERED, ClientLedger, ClientLimits, Cost


def spend(ledger: ClientLedger, client: str, worst: float, spent: float, now_s: float, deep: float = 0.0) -> None:
    """One request from beginning to end."""
    with ledger.place(client, now_s), ledger.charged(client, Cost(worst), lambda: now_s) as charge:
        charge.spent = Cost(spent, deep)


def test_without_limits_nobody_is_refused() -> None:
    ledger = ClientLedger(ClientLimits())
    for _ in range(100):
        spend(ledger, "a", 1e12, 1e12, 0.0, deep=1e12)
    assert ledger.too_much("a", Cost(1e12, 1e12 / 2), 0.0, contended=True) is None


def test_unanswered_requests_are_counted_by_client() -> None:
    ledger = ClientLedger(ClientLimits(max_inflight=1))
    with ledger.place("a", 0.0):
        refusal = ledger.too_many("a")
        assert refusal is not None
        assert refusal.limit == "max_inflight"
        assert ledger.too_many("b") is None
    assert ledger.too_many("a") is None


def test_a_request_needs_room_for_its_worst_case() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=2.0))
    spend(ledger, "a", 150.0, 150.0, 0.0)
    assert ledger.too_much("a", Cost(50.0, 50.0 / 2), 0.0, contended=False) is None
    refusal = ledger.too_much("a", Cost(100.0, 100.0 / 2), 0.0, contended=False)
    assert refusal is not None
    assert refusal.limit == "compute_per_s"
    assert refusal.retry_after_s == 0.5
    assert ledger.too_much("a", Cost(100.0, 100.0 / 2), 0.5, contended=False) is None


def test_what_was_not_needed_is_given_back() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=2.0))
    for _ in range(19):
        spend(ledger, "a", 100.0, 10.0, 0.0)
    assert ledger.too_much("a", Cost(10.0, 10.0 / 2), 0.0, contended=False) is None
    assert ledger.too_much("a", Cost(100.0, 100.0 / 2), 0.0, contended=False) is not None


def test_while_it_is_unanswered_a_request_holds_its_worst_case() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0))
    with ledger.charged("a", Cost(100.0), lambda: 0.0):
        assert ledger.too_much("a", Cost(1.0, 1.0 / 2), 0.0, contended=False) is not None
    assert ledger.too_much("a", Cost(100.0, 100.0 / 2), 0.0, contended=False) is None


def test_a_request_larger_than_the_burst_is_taken_in_and_paid_off() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0))
    assert ledger.too_much("a", Cost(1000.0, 1000.0 / 2), 0.0, contended=False) is None
    spend(ledger, "a", 1000.0, 1000.0, 0.0)
    refusal = ledger.too_much("a", Cost(1000.0, 1000.0 / 2), 1.0, contended=False)
    assert refusal is not None
    assert refusal.retry_after_s == 9.0


def test_who_does_most_of_the_deep_work_waits_while_others_do() -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    spend(ledger, "deep", 100.0, 100.0, 0.0, deep=70.0)
    spend(ledger, "shallow", 100.0, 30.0, 0.0)
    assert ledger.too_much("shallow", Cost(100.0, 70.0), 0.0, contended=True) is None
    assert ledger.too_much("deep", Cost(100.0, 70.0), 0.0, contended=False) is None
    refusal = ledger.too_much("deep", Cost(100.0, 70.0), 0.0, contended=True)
    assert refusal is not None
    assert refusal.limit == "deep_share"


def test_who_asks_for_less_depth_need_not_wait() -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    spend(ledger, "deep", 100.0, 100.0, 0.0, deep=70.0)
    spend(ledger, "shallow", 100.0, 30.0, 0.0)
    assert ledger.too_much("deep", Cost(30.0, 0.0), 0.0, contended=True) is None


def test_nobody_is_held_back_for_nobody() -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    for _ in range(10):
        spend(ledger, "alone", 100.0, 100.0, 0.0, deep=70.0)
    assert ledger.too_much("alone", Cost(100.0, 70.0), 0.0, contended=True) is None


def test_nobody_is_locked_out_for_what_was_long_ago() -> None:
    # Nor by others' shallow work alone: it counts as work.
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    spend(ledger, "early", 100.0, 100.0, 0.0, deep=70.0)
    later_s = 3 * HALF_LIFE_S
    spend(ledger, "late", 30.0, 30.0, later_s)
    assert ledger.too_much("early", Cost(100.0, 70.0), later_s, contended=True) is None


def test_whoever_owes_nothing_is_forgotten_at_once_and_others_once_they_have_paid() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0))
    spend(ledger, "even", 100.0, 0.0, 0.0)
    assert len(ledger) == 0
    for number in range(REMEMBERED):
        spend(ledger, str(number), 10.0, 10.0, 0.0)
    assert len(ledger) == REMEMBERED
    spend(ledger, "one more", 10.0, 10.0, 5.0)
    assert len(ledger) == REMEMBERED + 1
    spend(ledger, "later", 10.0, 10.0, 11.0)
    assert len(ledger) == 2


def test_without_limits_nobody_is_remembered() -> None:
    ledger = ClientLedger(ClientLimits())
    for number in range(100):
        spend(ledger, str(number), 100.0, 100.0, 0.0, deep=70.0)
    assert len(ledger) == 0


def test_time_that_seems_to_go_back_is_not_earned_twice() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0))
    spend(ledger, "a", 100.0, 100.0, 50.0)
    for now_s in (40.0, 50.0, 40.0, 50.0):
        assert ledger.too_much("a", Cost(1.0), now_s, contended=False) is not None
