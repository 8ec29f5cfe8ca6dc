"""What one client may ask for: unanswered requests, compute, and its share of the deep work. Pure: no clock.

Compute is counted in multiply-adds. A request is taken in as if every picture went as deep as its contract allows, and
what it did not need is given back with the answer: a client that sends pictures made to go deep pays for that, and no
request is taken in on the hope that its pictures are easy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from server.accounts import Account, Accounts

# After so many seconds work counts half.
HALF_LIFE_S = 10.0
# Shares of all recent work: a client that leaves less to others is alone; one with less deep work is forgotten.
ALONE, FORGOTTEN = 0.001, 0.001


@dataclass(frozen=True)
class ClientLimits:
    """Of each client; 0 is no limit.

    max_inflight: unanswered requests. compute_per_s: multiply-adds a second. burst_s: seconds of that which may be
    saved up. deep_share: of all the work done lately, what one client may cause beyond exit 1 while others wait; 1 is
    no limit.
    """

    max_inflight: int = 0
    compute_per_s: float = 0.0
    burst_s: float = 10.0
    deep_share: float = 1.0

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.max_inflight or self.compute_per_s or self.deep_share < 1.0)


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken in, and when it may be. limit: the name of the field of ClientLimits."""

    limit: str
    retry_after_s: float


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a request: all, and those of them beyond exit 1."""

    total: float = 0.0
    deep: float = 0.0


@dataclass
class Charge:
    """What a request has cost; set once that is known."""

    spent: Cost = Cost()


class ClientLedger:
    """The limits of all clients. A client that has nothing unanswered and owes nothing is forgotten.

    accounts: shared with the other processes of the server. Without limits they stay empty.
    """

    def __init__(self, limits: ClientLimits, accounts: Accounts | None = None) -> None:
        self._limits = limits
        self._counts = limits.any
        self._burst = limits.compute_per_s * limits.burst_s
        self.accounts = Accounts() if accounts is None else accounts

    def too_many(self, client: str) -> Refusal | None:
        """Why one more request is refused, whatever it asks for; None where it is not."""
        limit = self._limits.max_inflight
        if not limit:
            return None
        with self.accounts.lock:
            account = self.accounts.find(client)
            full = account is not None and account.requests >= limit
        return Refusal("max_inflight", 1.0) if full else None

    def too_much(self, client: str, worst: Cost, now_s: float, contended: bool) -> Refusal | None:
        """Why a request that may cost `worst` is refused now; None where it is not.

        contended: whether requests wait for the work at hand. A request larger than the whole burst is taken in where
        the burst is there, and paid off.
        """
        if not self._counts:
            return None
        limits = self._limits
        with self.accounts.lock:
            account = self.accounts.find(client)
            if account is None:
                return None
            self._refill(account, now_s)
            missing = min(worst.total, self._burst) - (self._burst - account.debt)
            if limits.compute_per_s and missing > 0:
                return Refusal("compute_per_s", missing / limits.compute_per_s)
            if contended and worst.deep and limits.deep_share < 1.0 and self._takes_too_much(account, now_s):
                return Refusal("deep_share", 1.0)
        return None

    def place(self, client: str, now_s: float) -> AbstractContextManager[None]:
        """One unanswered request."""
        return self._place(client, now_s) if self._counts else nullcontext()

    def charged(self, client: str, worst: Cost, clock: Callable[[], float]) -> AbstractContextManager[Charge]:
        """Hold `worst` of a client's account; in the end what its Charge says was spent stays away."""
        return self._charged(client, worst, clock) if self._counts else nullcontext(Charge())

    @contextmanager
    def _place(self, client: str, now_s: float) -> Iterator[None]:
        with self.accounts.lock:
            account = self.accounts.open(client)
            account.add_request(1)
        try:
            yield
        finally:
            with self.accounts.lock:
                account.add_request(-1)
                self._forget(account, now_s)

    @contextmanager
    def _charged(self, client: str, worst: Cost, clock: Callable[[], float]) -> Iterator[Charge]:
        self._charge(client, worst.total, Cost(), clock())
        charge = Charge()
        try:
            yield charge
        finally:
            self._charge(client, charge.spent.total - worst.total, charge.spent, clock())

    def _charge(self, client: str, change: float, spent: Cost, now_s: float) -> None:
        with self.accounts.lock:
            account = self.accounts.open(client)
            self._refill(account, now_s)
            # Without a limit of compute there is no debt.
            account.debt += change if self._limits.compute_per_s else 0.0
            for recent in (account, self.accounts.everybody):
                _refresh(recent, now_s)
                recent.total += spent.total
                recent.deep += spent.deep
            self._forget(account, now_s)

    def _refill(self, account: Account, now_s: float) -> None:
        earned = max(0.0, now_s - account.refilled_s) * self._limits.compute_per_s
        account.refilled_s = max(account.refilled_s, now_s)
        account.debt = max(0.0, account.debt - earned)

    def _takes_too_much(self, account: Account, now_s: float) -> bool:
        """Whether its deep work is above its share of all recent work, while others have work done too."""
        everybody = self.accounts.everybody
        _refresh(account, now_s)
        _refresh(everybody, now_s)
        others = everybody.total - account.total
        return others > ALONE * everybody.total and account.deep > self._limits.deep_share * everybody.total

    def _forget(self, account: Account, now_s: float) -> None:
        """Free its row where it is as a new one would be."""
        if not account.idle:
            return
        self._refill(account, now_s)
        _refresh(account, now_s)
        remembered = self._limits.deep_share < 1.0 and account.deep > FORGOTTEN * self.accounts.everybody.total
        if not account.debt and not remembered:
            account.clear()


def _refresh(account: Account, now_s: float) -> None:
    """Halve the sums of recent work every HALF_LIFE_S."""
    left = 0.5 ** (max(0.0, now_s - account.seen_s) / HALF_LIFE_S)
    account.total, account.deep, account.seen_s = account.total * left, account.deep * left, max(account.seen_s, now_s)
