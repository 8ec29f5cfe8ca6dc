"""Limits of one client: unanswered requests, compute, and its share of the deep work."""

from __future__ import annotations

from server.limits import HALF_LIFE_S, REMEMBERED, ClientLedger, ClientLimits


def spend(ledger: ClientLedger, client: str, worst: float, spent: float, now_s: float, deep: float = 0.0) -> None:
    """One request from beginning to end."""
    with ledger.place(client, now_s), ledger.charged(client, worst, now_s) as charge:
        charge.spent, charge.deep = spent, deep


def test_without_limits_nobody_is_refused() -> None:
    ledger = ClientLedger(ClientLimits())
    for _ in range(100):
        spend(ledger, "a", 1e12, 1e12, 0.0, deep=1e12)
    assert ledger.too_much("a", 1e12, 0.0, contended=True) is None


def test_unanswered_requests_are_counted_by_client() -> None:
    ledger = ClientLedger(ClientLimits(max_inflight=1))
    with ledger.place("a", 0.0):
        refusal = ledger.too_many("a", 0.0)
        assert refusal is not None
        assert refusal.limit == "max_inflight"
        assert ledger.too_many("b", 0.0) is None
    assert ledger.too_many("a", 0.0) is None


def test_a_request_needs_room_for_its_worst_case() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=2.0))
    spend(ledger, "a", 150.0, 150.0, 0.0)
    assert ledger.too_much("a", 50.0, 0.0, contended=False) is None
    refusal = ledger.too_much("a", 100.0, 0.0, contended=False)
    assert refusal is not None
    assert refusal.limit == "compute_per_s"
    assert refusal.retry_after_s == 0.5
    assert ledger.too_much("a", 100.0, 0.5, contended=False) is None


def test_what_was_not_needed_is_given_back() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=2.0))
    for _ in range(19):
        spend(ledger, "a", 100.0, 10.0, 0.0)
    assert ledger.too_much("a", 10.0, 0.0, contended=False) is None
    assert ledger.too_much("a", 100.0, 0.0, contended=False) is not None


def test_while_it_is_unanswered_a_request_holds_its_worst_case() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0))
    with ledger.charged("a", 100.0, 0.0):
        assert ledger.too_much("a", 1.0, 0.0, contended=False) is not None
    assert ledger.too_much("a", 100.0, 0.0, contended=False) is None


def test_a_request_larger_than_the_burst_is_taken_in_and_paid_off() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0))
    assert ledger.too_much("a", 1000.0, 0.0, contended=False) is None
    spend(ledger, "a", 1000.0, 1000.0, 0.0)
    refusal = ledger.too_much("a", 1000.0, 1.0, contended=False)
    assert refusal is not None
    assert refusal.retry_after_s == 9.0


def test_who_does_most_of_the_deep_work_waits_while_others_do() -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    spend(ledger, "deep", 100.0, 100.0, 0.0, deep=70.0)
    for _ in range(3):
        spend(ledger, "shallow", 100.0, 30.0, 0.0)
    assert ledger.too_much("shallow", 100.0, 0.0, contended=True) is None
    assert ledger.too_much("deep", 100.0, 0.0, contended=False) is None
    refusal = ledger.too_much("deep", 100.0, 0.0, contended=True)
    assert refusal is not None
    assert refusal.limit == "deep_share"


def test_nobody_is_held_back_for_nobody() -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    for _ in range(10):
        spend(ledger, "alone", 100.0, 100.0, 0.0, deep=70.0)
    assert ledger.too_much("alone", 100.0, 0.0, contended=True) is None


def test_deep_work_is_forgotten_with_time() -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5))
    spend(ledger, "early", 100.0, 100.0, 0.0, deep=70.0)
    later_s = 5 * HALF_LIFE_S
    for _ in range(3):
        spend(ledger, "late", 100.0, 100.0, later_s, deep=7.0)
    assert ledger.too_much("early", 100.0, later_s, contended=True) is None


def test_clients_who_owe_nothing_are_forgotten() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=1.0))
    spend(ledger, "debtor", 100.0, 100.0, 0.0)
    for number in range(3 * REMEMBERED):
        assert ledger.too_much(str(number), 1.0, 0.0, contended=False) is None
    assert len(ledger) <= REMEMBERED
    assert ledger.too_much("debtor", 1.0, 0.0, contended=False) is not None
