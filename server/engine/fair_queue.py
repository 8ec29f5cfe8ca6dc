"""A queue in which clients take turns. Pure: no clock, no locks."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served for each client; among clients, one item a turn.

    A client with one item waits for one turn of each other client, however many items they have. With one client it
    is a plain queue. Round-robin queueing: Nagle, "On Packet Switches with Infinite Storage", RFC 970.
    """

    def __init__(self) -> None:
        # In the order of their turns; a client without items has no queue.
        self._queues: OrderedDict[str, deque[Item]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def num_clients(self) -> int:
        """Clients with at least one item."""
        return len(self._queues)

    def ahead(self, client: str) -> int:
        """Upper bound on the items that leave before a new one of this client."""
        turns, others = len(self._queues.get(client, ())) + 1, self.num_clients - (client in self._queues)
        return min(self._size, turns * others + turns - 1)

    def append(self, client: str, item: Item) -> None:
        """Add an item after all others of its client."""
        self._queues.setdefault(client, deque()).append(item)
        self._size += 1

    def popleft(self) -> Item:
        """Remove the first item of the client whose turn it is. Raises KeyError if there is none."""
        client, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[client] = queue
        self._size -= 1
        return item
