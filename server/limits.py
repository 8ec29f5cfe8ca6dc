"""What one client may ask for: unanswered requests, compute, and its share of the deep work. Pure: no clock, no locks.

Compute is counted in multiply-adds. A request is taken in as if every picture went as deep as its contract allows, and
what it did not need is given back with the answer: whoever sends pictures made to go deep pays for that, and nobody
is let in on the hope that his pictures are easy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

# Clients that are remembered before it is seen whose account has come even since.
REMEMBERED = 4096
# After so many seconds work counts half.
HALF_LIFE_S = 10.0
# Of all the work done lately: who leaves less than this to others is alone; whose deep work is less is forgotten.
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
    """What a request has cost; set by whoever knows."""

    spent: Cost = Cost()


@dataclass
class _Lately:
    """Sums that halve every HALF_LIFE_S."""

    total: float = 0.0
    deep: float = 0.0
    seen_s: float = -math.inf

    def add(self, cost: Cost, now_s: float) -> None:
        self.refresh(now_s)
        self.total += cost.total
        self.deep += cost.deep

    def refresh(self, now_s: float) -> None:
        kept = 0.5 ** (max(0.0, now_s - self.seen_s) / HALF_LIFE_S)
        self.total, self.deep, self.seen_s = self.total * kept, self.deep * kept, max(self.seen_s, now_s)


class _Client:
    __slots__ = ("compute", "held", "inflight", "lately", "refilled_s")

    def __init__(self, compute: float, now_s: float) -> None:
        self.inflight, self.held, self.compute, self.refilled_s = 0, 0, compute, now_s
        self.lately = _Lately()


class ClientLedger:
    """The accounts of all clients of one process. Whoever has nothing unanswered and owes nothing is forgotten.

    Without limits there are none.
    """

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._counts = limits.any
        self._burst = limits.compute_per_s * limits.burst_s
        self._clients: dict[str, _Client] = {}
        self._all = _Lately()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._clients)

    def too_many(self, client: str) -> Refusal | None:
        """Why one more request is refused, whatever it asks for; None where it is not."""
        limit, account = self._limits.max_inflight, self._clients.get(client)
        full = limit and account is not None and account.inflight >= limit
        return Refusal("max_inflight", 1.0) if full else None

    def too_much(self, client: str, worst: Cost, now_s: float, contended: bool) -> Refusal | None:
        """Why a request that may cost `worst` is refused now; None where it is not.

        contended: whether requests wait for the work at hand. A request larger than the whole burst is taken in where
        the burst is there, and paid off.
        """
        limits, account = self._limits, self._clients.get(client)
        if account is None:
            return None
        self._refill(account, now_s)
        wanted = min(worst.total, self._burst)
        if limits.compute_per_s and account.compute < wanted:
            return Refusal("compute_per_s", (wanted - account.compute) / limits.compute_per_s)
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
        account = self._account(client, now_s)
        account.inflight += 1
        try:
            yield
        finally:
            account.inflight -= 1
            self._forget(client, now_s)

    @contextmanager
    def _charged(self, client: str, worst: Cost, clock: Callable[[], float]) -> Iterator[Charge]:
        account = self._account(client, clock())
        account.compute -= worst.total
        account.held += 1
        charge = Charge()
        try:
            yield charge
        finally:
            now_s = clock()
            account.held -= 1
            self._refill(account, now_s)
            account.compute += worst.total - charge.spent.total
            for lately in (account.lately, self._all):
                lately.add(charge.spent, now_s)
            self._forget(client, now_s)

    def _account(self, client: str, now_s: float) -> _Client:
        account = self._clients.get(client)
        if account is None:
            if len(self._clients) >= REMEMBERED:
                # Whoever has asked nothing for long has paid by now.
                for other in list(self._clients):
                    self._forget(other, now_s)
            account = self._clients[client] = _Client(self._burst, now_s)
        self._refill(account, now_s)
        return account

    def _refill(self, account: _Client, now_s: float) -> None:
        earned = max(0.0, now_s - account.refilled_s) * self._limits.compute_per_s
        account.refilled_s = max(account.refilled_s, now_s)
        # Without a limit of compute nobody owes any.
        account.compute = min(self._burst, account.compute + earned) if self._limits.compute_per_s else 0.0

    def _takes_too_much(self, account: _Client, now_s: float) -> bool:
        """Of all that was done lately, while others have anything done at all."""
        account.lately.refresh(now_s)
        self._all.refresh(now_s)
        others = self._all.total - account.lately.total
        return others > ALONE * self._all.total and account.lately.deep > self._limits.deep_share * self._all.total

    def _forget(self, client: str, now_s: float) -> None:
        """Where its account is as a new one's would be."""
        account = self._clients.get(client)
        if account is None or account.inflight or account.held:
            return
        self._refill(account, now_s)
        account.lately.refresh(now_s)
        remembered = self._limits.deep_share < 1.0 and account.lately.deep > FORGOTTEN * self._all.total
        if account.compute >= self._burst and not remembered:
            del self._clients[client]
