"""Slots: who holds which row of the tensors that lie between two stages. Counts rows, touches no tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from offramp.server.engine.errors import EngineError

# The row that pads a batch: written by every step, read by nobody.
PADDING_ROW = 0


class OutOfSlots(EngineError):
    """More samples are held between two stages than there are slots."""


class Slot:
    """A row that one sample holds until this object is gone.

    So it cannot be forgotten: the thread that drops a sample gives its row back with it.
    """

    __slots__ = ("_free", "row")

    def __init__(self, row: int, free: deque[int]) -> None:
        self.row = row
        self._free = free

    def __del__(self) -> None:
        # Atomic and without a lock: it may run in any thread, also in the midst of `take`.
        self._free.append(self.row)

    def __repr__(self) -> str:
        return f"Slot({self.row})"


class SlotPool:
    """The rows 1..capacity after one stage. One thread takes; any thread may let go.

    max_samples, max_batch_size: what makes the capacity. Each sample in flight holds one slot at most, and a step
    needs room for its whole batch before it is known who goes on.
    """

    def __init__(self, stage: int, max_samples: int, max_batch_size: int) -> None:
        self.stage = stage
        self.capacity = max_samples + max_batch_size
        self._max_samples = max_samples
        self._free = deque(range(1, self.capacity + 1))

    def __repr__(self) -> str:
        return f"SlotPool(after stage {self.stage}: {len(self._free)} of {self.capacity} free)"

    @property
    def free_rows(self) -> tuple[int, ...]:
        """Rows that nobody holds."""
        return tuple(self._free)

    def take(self, count: int) -> list[Slot]:
        """So many slots, all or none. Raises OutOfSlots, which names the setting."""
        free = self._free
        if len(free) < count:
            raise OutOfSlots(
                f"{count} slots after stage {self.stage} are out of range: {len(free)} of {self.capacity} are free; "
                f"this runner was made for {self._max_samples} samples in flight: give a smaller --max-queue"
            )
        # The rows used last are the likeliest to be in the device's cache.
        return [Slot(free.pop(), free) for _ in range(count)]

    def owns(self, slots: Sequence[object]) -> bool:
        """Whether every one of them is a slot of this pool, and not something else."""
        free = self._free
        return all(isinstance(slot, Slot) and slot._free is free for slot in slots)
