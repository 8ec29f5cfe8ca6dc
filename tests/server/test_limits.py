"""Limits of one client: unanswered requests, compute, and its share of the deep work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.accounts import GROUP_SIZE, Accounts
from server.limits import HALF_LIFE_S, ClientLedger, ClientLimits, Cost, Refusal


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


def test_a_client_that_owes_nothing_is_forgotten_at_once() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0))
    spend(ledger, "even", 100.0, 0.0, 0.0)
    assert ledger.accounts.find("even") is None
    spend(ledger, "in debt", 10.0, 10.0, 0.0)
    assert ledger.accounts.find("in debt") is not None
    spend(ledger, "in debt", 10.0, 0.0, 10.0)
    assert ledger.accounts.find("in debt") is None


def test_where_there_is_no_room_the_idle_client_that_owes_least_is_forgotten() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0), Accounts(num_groups=1))
    with ledger.place("waits", 0.0):
        for number in range(1, GROUP_SIZE):
            spend(ledger, str(number), 10.0 * number, 10.0 * number, 0.0)
        spend(ledger, "one more", 50.0, 50.0, 0.0)
        remembered = [
            name for name in (*map(str, range(1, GROUP_SIZE)), "one more", "waits") if ledger.accounts.find(name)
        ]
    assert remembered == ["2", "3", "4", "5", "6", "7", "one more", "waits"]


def test_a_client_beyond_the_room_is_served_without_limits() -> None:
    ledger = ClientLedger(ClientLimits(max_inflight=1), Accounts(num_groups=1))
    with ExitStack() as stack:
        for number in range(GROUP_SIZE):
            stack.enter_context(ledger.place(str(number), 0.0))
        with ledger.place("one more", 0.0):
            assert ledger.too_many("one more") is None
        assert ledger.too_many("0") is not None


@pytest.fixture
def frontends() -> Iterator[tuple[ClientLedger, ClientLedger]]:
    """The ledgers of two processes of one server."""
    fd = os.memfd_create("test")
    limits = ClientLimits(max_inflight=2, compute_per_s=100.0, burst_s=2.0, deep_share=0.5)
    yield ClientLedger(limits, Accounts(fd, 2, 0)), ClientLedger(limits, Accounts(fd, 2, 1))
    os.close(fd)


def test_limits_hold_over_all_processes(frontends) -> None:
    one, other = frontends
    with one.place("a", 0.0), other.place("a", 0.0):
        assert [ledger.too_many("a") is None for ledger in frontends] == [False, False]
    assert other.too_many("a") is None
    spend(one, "a", 150.0, 150.0, 0.0, deep=100.0)
    for ledger in frontends:
        refusal = ledger.too_much("a", Cost(100.0), 0.0, contended=False)
        assert refusal == Refusal("compute_per_s", 0.5)
    spend(other, "b", 20.0, 20.0, 0.0)
    assert other.too_much("a", Cost(10.0, 5.0), 0.0, contended=True) == Refusal("deep_share", 1.0)
    assert one.too_much("b", Cost(10.0, 5.0), 0.0, contended=True) is None


def test_what_a_dead_process_left_unanswered_is_cleared_by_its_successor() -> None:
    fd = os.memfd_create("test")
    limits = ClientLimits(max_inflight=2)
    alive = ClientLedger(limits, Accounts(fd, 2, 1))
    dead = ClientLedger(limits, Accounts(fd, 2, 0)).place("a", 0.0)
    with dead, alive.place("a", 0.0):
        assert alive.too_many("a") is not None
        Accounts(fd, 2, 0)
        assert alive.too_many("a") is None
    os.close(fd)


def test_without_limits_nobody_is_remembered() -> None:
    ledger = ClientLedger(ClientLimits())
    for number in range(100):
        spend(ledger, str(number), 100.0, 100.0, 0.0, deep=70.0)
    assert not any(ledger.accounts.find(str(number)) for number in range(100))


def test_time_that_seems_to_go_back_is_not_earned_twice() -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0))
    spend(ledger, "a", 100.0, 100.0, 50.0)
    for now_s in (40.0, 50.0, 40.0, 50.0):
        assert ledger.too_much("a", Cost(1.0), now_s, contended=False) is not None
