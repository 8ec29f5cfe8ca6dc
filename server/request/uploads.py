"""Memory for request bodies: a budget for all requests, of which no client holds more than it leaves free. Pure.

A body reserves the bytes that have arrived, never those that it announces: a client that announces bodies and does not
send them holds nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

# Larger bodies leave the last part of the budget to smaller ones.
SMALL_BODY_BYTES = 64 * 1024
LARGE_BODIES_SHARE = 7 / 8


class UploadBudget:
    """Counts the bytes of bodies in memory, `held_bytes`. total_bytes: the most of all clients together.

    A client holds at most as many bytes as it leaves free. So a client alone holds half of the budget, the next one
    half of the rest, and a few clients cannot fill it.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self.held_bytes = 0
        self._by_client: Counter[str] = Counter()

    def fits(self, client: str, size_bytes: int, is_small: bool = True) -> bool:
        """Whether there is room for more bytes of a client. is_small: they belong to a small body."""
        total = self.held_bytes + size_bytes
        if not is_small and total > LARGE_BODIES_SHARE * self._total_bytes:
            return False
        return self._by_client[client] + size_bytes <= self._total_bytes - total

    def take(self, client: str, size_bytes: int, is_small: bool = True) -> bool:
        """Reserve more for a client; returns False if the budget has no room."""
        if not self.fits(client, size_bytes, is_small):
            return False
        self.held_bytes += size_bytes
        self._by_client[client] += size_bytes
        return True

    def give_back(self, client: str, size_bytes: int) -> None:
        """Return bytes of a client."""
        self.held_bytes -= size_bytes
        self._by_client[client] -= size_bytes
        if not self._by_client[client]:
            del self._by_client[client]


@dataclass
class Upload:
    """The memory of one request's body. weight: bytes in memory for each byte of the body."""

    budget: UploadBudget
    client: str
    weight: int = 1
    size_bytes: int = 0
    announced_bytes: int = 0

    def announce(self, body_bytes: int) -> bool:
        """Set the size that the body will have. Returns False if there is no room for it now. Reserves nothing."""
        self.announced_bytes = body_bytes
        return self.budget.fits(self.client, body_bytes * self.weight, self._is_small(body_bytes))

    def grow(self, body_bytes: int) -> bool:
        """Reserve room for so many bytes of the body in all; returns False if there is none."""
        more = max(0, body_bytes * self.weight - self.size_bytes)
        if more and not self.budget.take(self.client, more, self._is_small(body_bytes)):
            return False
        self.size_bytes += more
        return True

    def release(self) -> None:
        """Return the memory: the body is freed."""
        if self.size_bytes:
            self.budget.give_back(self.client, self.size_bytes)
        self.size_bytes = 0

    def _is_small(self, body_bytes: int) -> bool:
        return max(body_bytes, self.announced_bytes) <= SMALL_BODY_BYTES
