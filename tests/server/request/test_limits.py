"""Limits of one client: unanswered requests, compute, and its share of the deep work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from offramp.server.request.accounts import GROUP_SIZE, Accounts
from offramp.server.request.client_limits import HALF_LIFE_S, ClientLedger, ClientLimits, Cost, LimitReached


class Clock:
    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spend(ledger: ClientLedger, client: str, spent: float, deep: float = 0.0) -> None:
    """One request from beginning to end."""
    with ledger.request(client) as reservation:
        reservation.reserve(Cost(spent), contended=False)
        reservation.spend(Cost(spent, deep))


def refused(ledger: ClientLedger, client: str, worst: Cost, contended: bool = False) -> LimitReached | None:
    """The error for a request that reserves so much, and then needs nothing of it."""
    try:
        with ledger.request(client) as reservation:
            reservation.reserve(worst, contended)
    except LimitReached as error:
        return error
    return None


def test_without_limits_no_request_is_refused() -> None:
    ledger = ClientLedger(ClientLimits())
    for _ in range(100):
        spend(ledger, "a", 1e12, deep=1e12)
    assert refused(ledger, "a", Cost(1e12, 1e12 / 2), contended=True) is None


def test_unanswered_requests_are_counted_by_client(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(max_inflight=1), clock=clock)
    with ledger.request("a"):
        error = refused(ledger, "a", Cost())
        assert error is not None
        assert (error.limit, error.fields) == ("max_inflight", {"limit_requests": 1})
        assert refused(ledger, "b", Cost()) is None
    assert refused(ledger, "a", Cost()) is None


def test_a_request_needs_room_for_its_worst_case(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=2.0), clock=clock)
    spend(ledger, "a", 150.0)
    assert refused(ledger, "a", Cost(50.0)) is None
    error = refused(ledger, "a", Cost(100.0))
    assert error is not None
    assert (error.limit, error.retry_after_s) == ("compute_per_s", 0.5)
    clock.now_s = 0.5
    assert refused(ledger, "a", Cost(100.0)) is None


def test_a_client_that_cannot_pay_for_the_least_is_refused_before_its_upload(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0), clock=clock)
    spend(ledger, "a", 100.0)
    with pytest.raises(LimitReached, match="billion multiply-adds a second"), ledger.request("a", Cost(1.0)):
        pass


def test_the_part_of_a_reservation_that_was_not_needed_is_returned(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=2.0), clock=clock)
    for _ in range(10):
        with ledger.request("a") as reservation:
            reservation.reserve(Cost(100.0), contended=False)
            reservation.spend(Cost(10.0))
    assert refused(ledger, "a", Cost(100.0)) is None
    assert refused(ledger, "a", Cost(101.0)) is not None


def test_while_it_is_unanswered_a_request_holds_its_worst_case(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0), clock=clock)
    with ledger.request("a") as reservation:
        reservation.reserve(Cost(100.0), contended=False)
        assert refused(ledger, "a", Cost(1.0)) is not None
    assert refused(ledger, "a", Cost(100.0)) is None


def test_a_request_larger_than_the_burst_is_admitted_and_paid_off(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=100.0, burst_s=1.0), clock=clock)
    spend(ledger, "a", 1000.0)
    clock.now_s = 1.0
    error = refused(ledger, "a", Cost(1000.0))
    assert error is not None
    assert error.retry_after_s == 8.0


def test_a_client_with_most_of_the_deep_work_is_refused_while_others_wait(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5), clock=clock)
    spend(ledger, "deep", 100.0, deep=70.0)
    spend(ledger, "shallow", 30.0)
    assert refused(ledger, "shallow", Cost(100.0, 70.0), contended=True) is None
    assert refused(ledger, "deep", Cost(100.0, 70.0), contended=False) is None
    error = refused(ledger, "deep", Cost(100.0, 70.0), contended=True)
    assert error is not None
    assert (error.limit, error.fields) == ("deep_share", {"limit_share": 0.5})


def test_a_request_without_deep_work_is_not_refused(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5), clock=clock)
    spend(ledger, "deep", 100.0, deep=70.0)
    spend(ledger, "shallow", 30.0)
    assert refused(ledger, "deep", Cost(30.0, 0.0), contended=True) is None


def test_a_client_alone_may_do_all_the_deep_work(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(deep_share=0.5), clock=clock)
    for _ in range(10):
        spend(ledger, "alone", 100.0, deep=70.0)
    assert refused(ledger, "alone", Cost(100.0, 70.0), contended=True) is None


def test_old_deep_work_is_forgotten(clock: Clock) -> None:
    # Shallow work of others is enough for that: it counts as work.
    ledger = ClientLedger(ClientLimits(deep_share=0.5), clock=clock)
    spend(ledger, "early", 100.0, deep=70.0)
    clock.now_s = 3 * HALF_LIFE_S
    spend(ledger, "late", 30.0)
    assert refused(ledger, "early", Cost(100.0, 70.0), contended=True) is None


def test_a_client_without_debt_is_forgotten_at_once(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0), clock=clock)
    assert refused(ledger, "even", Cost(100.0)) is None
    assert ledger.accounts.find("even") is None
    spend(ledger, "in debt", 10.0)
    assert ledger.accounts.find("in debt") is not None
    clock.now_s = 10.0
    assert refused(ledger, "in debt", Cost(10.0)) is None
    assert ledger.accounts.find("in debt") is None


def test_in_a_full_group_the_idle_client_with_the_least_debt_is_forgotten(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0), Accounts(num_groups=1), clock)
    with ledger.request("waits"):
        for number in range(1, GROUP_SIZE):
            spend(ledger, str(number), 10.0 * number)
        spend(ledger, "one more", 50.0)
        remembered = [
            name for name in (*map(str, range(1, GROUP_SIZE)), "one more", "waits") if ledger.accounts.find(name)
        ]
    assert remembered == ["2", "3", "4", "5", "6", "7", "one more", "waits"]


def test_a_client_without_a_row_is_served_without_limits(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(max_inflight=1), Accounts(num_groups=1), clock)
    with ExitStack() as stack:
        for number in range(GROUP_SIZE):
            stack.enter_context(ledger.request(str(number)))
        with ledger.request("one more"):
            assert refused(ledger, "one more", Cost()) is None
        assert refused(ledger, "0", Cost()) is not None


@pytest.fixture
def frontends(clock: Clock) -> Iterator[tuple[ClientLedger, ClientLedger]]:
    """The ledgers of two processes of one server."""
    fd = os.memfd_create("test")
    limits = ClientLimits(max_inflight=2, compute_per_s=100.0, burst_s=2.0, deep_share=0.5)
    yield ClientLedger(limits, Accounts(fd, 2, 0), clock), ClientLedger(limits, Accounts(fd, 2, 1), clock)
    os.close(fd)


def test_limits_hold_over_all_processes(frontends: tuple[ClientLedger, ClientLedger]) -> None:
    one, other = frontends
    with one.request("a"), other.request("a"):
        assert [refused(ledger, "a", Cost()) is None for ledger in frontends] == [False, False]
    assert refused(other, "a", Cost()) is None
    spend(one, "a", 150.0, deep=100.0)
    for ledger in frontends:
        error = refused(ledger, "a", Cost(100.0))
        assert error is not None
        assert (error.limit, error.retry_after_s) == ("compute_per_s", 0.5)
    spend(other, "b", 20.0)
    error = refused(other, "a", Cost(10.0, 5.0), contended=True)
    assert error is not None
    assert error.limit == "deep_share"
    assert refused(one, "b", Cost(10.0, 5.0), contended=True) is None


def test_requests_of_a_dead_process_are_cleared_by_its_successor(clock: Clock) -> None:
    fd = os.memfd_create("test")
    limits = ClientLimits(max_inflight=2)
    alive = ClientLedger(limits, Accounts(fd, 2, 1), clock)
    dead = ClientLedger(limits, Accounts(fd, 2, 0), clock).request("a")
    with dead, alive.request("a"):
        assert refused(alive, "a", Cost()) is not None
        Accounts(fd, 2, 0)
        assert refused(alive, "a", Cost()) is None
    os.close(fd)


def test_a_stopped_process_that_holds_the_lock_stops_no_other(clock: Clock) -> None:
    fd = os.memfd_create("test")
    accounts = Accounts(fd, 2, 1)
    code = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(fd)]
    with subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        ledger = ClientLedger(ClientLimits(max_inflight=1), accounts, clock)
        with ledger.request("a"):
            assert refused(ledger, "a", Cost()) is not None
        holder.kill()
    with ledger.request("a"), pytest.raises(LimitReached), ledger.request("a"):
        pass
    os.close(fd)


def test_without_limits_no_client_is_remembered() -> None:
    ledger = ClientLedger(ClientLimits())
    for number in range(100):
        spend(ledger, str(number), 100.0, deep=70.0)
    assert not any(ledger.accounts.find(str(number)) for number in range(100))


def test_time_that_seems_to_go_back_is_not_earned_twice(clock: Clock) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=100.0), clock=clock)
    clock.now_s = 50.0
    spend(ledger, "a", 100.0)
    for now_s in (40.0, 50.0, 40.0, 50.0):
        clock.now_s = now_s
        assert refused(ledger, "a", Cost(1.0)) is not None
