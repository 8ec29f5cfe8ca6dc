"""What one client may ask for: unanswered requests, compute, and its share of the deep work. Pure: no clock, no locks.

Compute is counted in multiply-adds. A request is taken in as if every picture went as deep as its contract allows, and
what it did not need is given back with the answer: whoever sends pictures made to go deep pays for that, and nobody
is let in on the hope that his pictures are easy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Clients that are remembered before those of whom there is nothing to remember are forgotten.
REMEMBERED = 4096
# After so many seconds the deep work of a client counts half.
HALF_LIFE_S = 10.0


@dataclass(frozen=True)
class ClientLimits:
    """Of each client; 0 is no limit.

    max_inflight: unanswered requests. compute_per_s: multiply-adds a second. burst_s: seconds of that which may be
    saved up. deep_share: of the work beyond exit 1, where others want some of it too, in (0, 1].
    """

    max_inflight: int = 0
    compute_per_s: float = 0.0
    burst_s: float = 10.0
    deep_share: float = 1.0


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken in, and when it may be. limit: the name of the field of ClientLimits."""

    limit: str
    retry_after_s: float


@dataclass
class Charge:
    """Multiply-adds spent on one request, and those of them beyond exit 1; set by whoever knows."""

    spent: float = 0.0
    deep: float = 0.0


@dataclass
class _Recent:
    """What was done lately: sums that halve every HALF_LIFE_S."""

    deep: float = 0.0
    requests: float = 0.0
    seen_s: float = -math.inf

    def refresh(self, now_s: float) -> None:
        """Let time pass."""
        kept = 0.5 ** (max(0.0, now_s - self.seen_s) / HALF_LIFE_S)
        self.deep, self.requests, self.seen_s = self.deep * kept, self.requests * kept, now_s


class _Client:
    __slots__ = ("compute", "held", "inflight", "recent", "refilled_s")

    def __init__(self, compute: float, now_s: float) -> None:
        self.inflight, self.held, self.compute, self.refilled_s = 0, 0, compute, now_s
        self.recent = _Recent()


class ClientLedger:
    """The accounts of all clients of one process."""

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._burst = limits.compute_per_s * limits.burst_s
        self._clients: dict[str, _Client] = {}
        self._all = _Recent()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._clients)

    def too_many(self, client: str, now_s: float) -> Refusal | None:
        """Why one more request is refused, whatever it asks for; None where it is not."""
        limit = self._limits.max_inflight
        full = limit and self._account(client, now_s).inflight >= limit
        return Refusal("max_inflight", 1.0) if full else None

    def too_much(self, client: str, worst: float, now_s: float, contended: bool) -> Refusal | None:
        """Why a request that may cost `worst` multiply-adds is refused now; None where it is not.

        contended: whether requests wait for the work at hand. A request larger than the whole burst is taken in where
        the burst is there, and paid off.
        """
        limits, account = self._limits, self._account(client, now_s)
        wanted = min(worst, self._burst)
        if limits.compute_per_s and account.compute < wanted:
            return Refusal("compute_per_s", (wanted - account.compute) / limits.compute_per_s)
        if contended and limits.deep_share < 1.0 and self._takes_too_much(account, now_s):
            return Refusal("deep_share", 1.0)
        return None

    @contextmanager
    def place(self, client: str, now_s: float) -> Iterator[None]:
        """One unanswered request."""
        account = self._account(client, now_s)
        account.inflight += 1
        for recent in (account.recent, self._all):
            recent.refresh(now_s)
            recent.requests += 1.0
        try:
            yield
        finally:
            account.inflight -= 1

    @contextmanager
    def charged(self, client: str, worst: float, now_s: float) -> Iterator[Charge]:
        """Hold `worst` multiply-adds of a client's account; in the end what its Charge says was spent stays away."""
        account = self._account(client, now_s)
        account.compute -= worst
        account.held += 1
        charge = Charge()
        try:
            yield charge
        finally:
            account.held -= 1
            account.compute += worst - charge.spent
            account.recent.deep += charge.deep
            self._all.deep += charge.deep

    def _account(self, client: str, now_s: float) -> _Client:
        account = self._clients.get(client)
        if account is None:
            if len(self._clients) >= REMEMBERED:
                self._forget(now_s)
            account = self._clients[client] = _Client(self._burst, now_s)
        self._refill(account, now_s)
        return account

    def _refill(self, account: _Client, now_s: float) -> None:
        earned = max(0.0, now_s - account.refilled_s) * self._limits.compute_per_s
        account.compute, account.refilled_s = min(self._burst, account.compute + earned), now_s

    def _takes_too_much(self, account: _Client, now_s: float) -> bool:
        account.recent.refresh(now_s)
        self._all.refresh(now_s)
        others_ask = self._all.requests - account.recent.requests >= 1.0
        return others_ask and account.recent.deep > self._limits.deep_share * self._all.deep

    def _forget(self, now_s: float) -> None:
        """Let go of those whose account is as a new one's would be, but for what they did lately."""
        for name, account in list(self._clients.items()):
            self._refill(account, now_s)
            if not (account.inflight or account.held) and account.compute >= self._burst:
                del self._clients[name]
