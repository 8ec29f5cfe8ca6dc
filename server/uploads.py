"""Memory for request bodies: what all requests hold together, and what one client may hold. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

# Largest part of the budget that one client may hold.
CLIENT_SHARE = 0.5


class UploadBudget:
    """Counts the bytes of bodies in memory. total_bytes: of all clients together."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._held_bytes = 0
        self._by_client: Counter[str] = Counter()

    @property
    def held_bytes(self) -> int:
        """What is held now."""
        return self._held_bytes

    def take(self, client: str, size_bytes: int) -> bool:
        """Hold more for a client; False where there is no room for it."""
        total, own = self._held_bytes + size_bytes, self._by_client[client] + size_bytes
        if total > self._total_bytes or own > CLIENT_SHARE * self._total_bytes:
            if not self._by_client[client]:
                del self._by_client[client]
            return False
        self._held_bytes, self._by_client[client] = total, own
        return True

    def give_back(self, client: str, size_bytes: int) -> None:
        """Hold so much less for a client."""
        self._held_bytes -= size_bytes
        self._by_client[client] -= size_bytes
        if not self._by_client[client]:
            del self._by_client[client]


@dataclass
class Upload:
    """The memory of one request's body. weight: bytes that are held at once for a byte of the body."""

    budget: UploadBudget
    client: str
    weight: int = 1
    size_bytes: int = 0

    def grow(self, body_bytes: int) -> bool:
        """Make room for a body of so many bytes; False where there is none."""
        more = max(0, body_bytes * self.weight - self.size_bytes)
        if more and not self.budget.take(self.client, more):
            return False
        self.size_bytes += more
        return True

    def release(self) -> None:
        """The body is gone."""
        if self.size_bytes:
            self.budget.give_back(self.client, self.size_bytes)
        self.size_bytes = 0
