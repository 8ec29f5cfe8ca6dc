"""Limits of one client: its unanswered requests, its compute, and its share of the deep work.

Compute is counted in multiply-adds. A request reserves the cost of all its pictures at the deepest exit of its
contract. The part it did not need is returned with the answer. So a client with pictures made to go deep pays for them,
and no request is admitted in the hope that its pictures are easy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from offramp.server.request.accounts import Account, Accounts

# Half-life of recent work.
HALF_LIFE_S = 10.0
# A client is alone if others did less than this share of the recent work.
ALONE_BELOW_SHARE = 0.001
# A client's deep work is forgotten below this share of the recent work.
FORGET_BELOW_SHARE = 0.001


@dataclass(frozen=True)
class ClientLimits:
    """Limits of each client; 0 is no limit.

    max_inflight: unanswered requests. compute_per_s: multiply-adds a second. burst_s: seconds of unused compute that a
    client keeps for later. deep_share: share of all recent work that one client may cause beyond exit 1 while others
    wait; 1 is no limit.
    """

    max_inflight: int = 0
    compute_per_s: float = 0.0
    burst_s: float = 10.0
    deep_share: float = 1.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return bool(self.max_inflight or self.compute_per_s or self.deep_share < 1.0)


class LimitReached(Exception):
    """The client has reached a limit. limit: a field of ClientLimits. fields: for the answer."""

    def __init__(self, limit: str, message: str, retry_after_s: float, **fields: Any) -> None:
        super().__init__(message)
        self.limit, self.retry_after_s, self.fields = limit, retry_after_s, fields


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a request, and the part beyond exit 1."""

    total: float = 0.0
    deep: float = 0.0

    def times(self, count: int) -> Cost:
        """The cost of so many pictures."""
        return Cost(self.total * count, self.deep * count)


FREE = Cost()


class ClientLedger:
    """The accounts of all clients. Idle clients without debt are forgotten.

    accounts: shared with the other processes of the server. Without limits they stay empty.
    """

    def __init__(
        self,
        limits: ClientLimits,
        accounts: Accounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.accounts = Accounts() if accounts is None else accounts
        self.clock = clock
        self.burst = limits.compute_per_s * limits.burst_s

    def request(self, client: str, minimum: Cost = FREE) -> AbstractContextManager[Reservation]:
        """One unanswered request of a client. minimum: its minimum cost. Raises LimitReached."""
        return self._request(client, minimum) if self.limits.is_limited else nullcontext(Reservation(self))

    @contextmanager
    def _request(self, client: str, minimum: Cost) -> Iterator[Reservation]:
        with self.accounts.lock:
            account = self.accounts.open(client)
            self.refill(account)
            limit = self.limits.max_inflight
            if limit and account.requests >= limit:
                message = f"you have {limit} unanswered requests, which is the limit: wait for one of them"
                raise LimitReached("max_inflight", message, 1.0, limit_requests=limit)
            self.check_compute(account, minimum)
            account.add_request(1)
        reservation = Reservation(self, account)
        try:
            yield reservation
        finally:
            with self.accounts.lock:
                reservation.settle(account)
                account.add_request(-1)
                self._forget(account)

    def refill(self, account: Account) -> None:
        """Pay the debt off by the compute since the last time."""
        now_s = self.clock()
        earned = max(0.0, now_s - account.refilled_s) * self.limits.compute_per_s
        account.refilled_s = max(account.refilled_s, now_s)
        account.debt = max(0.0, account.debt - earned)

    def check_compute(self, account: Account, cost: Cost) -> None:
        """Raises LimitReached. A request larger than the whole burst needs a full burst, and is paid off later."""
        missing = min(cost.total, self.burst) - (self.burst - account.debt)
        if not self.limits.compute_per_s or missing <= 0:
            return
        retry_after_s, allowed = missing / self.limits.compute_per_s, self.limits.compute_per_s
        message = (
            f"you may use {allowed / 1e9:g} billion multiply-adds a second, and have none left: try again in "
            f"{max(1, math.ceil(retry_after_s))} s"
        )
        raise LimitReached("compute_per_s", message, retry_after_s, limit_multiply_adds_per_s=allowed)

    def check_share(self, account: Account) -> None:
        """Raises LimitReached if the client's deep work is above its share of all recent work, and it is not alone."""
        all_clients, share = self.accounts.all_clients, self.limits.deep_share
        self.decay(account)
        self.decay(all_clients)
        others = all_clients.total - account.total
        if others > ALONE_BELOW_SHARE * all_clients.total and account.deep > share * all_clients.total:
            message = (
                f"others wait, and more than {share:.0%} of the recent work was yours beyond exit 1: try again in a "
                "moment"
            )
            raise LimitReached("deep_share", message, 1.0, limit_share=share)

    def decay(self, account: Account) -> None:
        """Halve the sums of recent work every HALF_LIFE_S."""
        now_s = self.clock()
        left = 0.5 ** (max(0.0, now_s - account.seen_s) / HALF_LIFE_S)
        account.total, account.deep = account.total * left, account.deep * left
        account.seen_s = max(account.seen_s, now_s)

    def _forget(self, account: Account) -> None:
        """Free the row of a client without requests, debt and recent deep work."""
        if not account.idle:
            return
        self.refill(account)
        self.decay(account)
        remembered = (
            self.limits.deep_share < 1.0 and account.deep > FORGET_BELOW_SHARE * self.accounts.all_clients.total
        )
        if not account.debt and not remembered:
            account.clear()


class Reservation:
    """The cost of one request. account: None for no limits."""

    def __init__(self, ledger: ClientLedger, account: Account | None = None) -> None:
        self._ledger, self._account = ledger, account
        self._held = self._spent = FREE

    def reserve(self, worst: Cost, contended: bool) -> None:
        """Hold the worst cost. contended: whether other requests wait. Raises LimitReached."""
        ledger, account = self._ledger, self._account
        if account is None:
            return
        with ledger.accounts.lock:
            ledger.refill(account)
            ledger.check_compute(account, worst)
            if contended and worst.deep and ledger.limits.deep_share < 1.0:
                ledger.check_share(account)
            self._hold(account, worst)

    def spend(self, cost: Cost) -> None:
        """Set the cost of the answers; the rest of the reserved cost is returned at the end."""
        self._spent = cost

    def settle(self, account: Account) -> None:
        """Return the cost that was reserved and not spent, and add the spent cost to the recent work."""
        ledger = self._ledger
        ledger.refill(account)
        self._hold(account, self._spent)
        for recent in (account, ledger.accounts.all_clients):
            ledger.decay(recent)
            recent.total += self._spent.total
            recent.deep += self._spent.deep

    def _hold(self, account: Account, cost: Cost) -> None:
        # Without a limit on compute there is no debt.
        if self._ledger.limits.compute_per_s:
            account.debt += cost.total - self._held.total
        self._held = cost
