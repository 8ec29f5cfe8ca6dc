"""Pictures in memory that a frontend and the engine process both see, so that none is sent through a socket.

A frontend owns a segment of equal slots: it writes a picture into a free one and names the slot to the engine process,
which reads the picture in place. The slot is free again when the engine process has told what became of it.

The memory is an anonymous file (memfd) that the supervisor makes and both inherit. It has no name that could outlive a
crash, and is not bounded by the size of /dev/shm, which is 64 MB in many containers. Its pages exist only once written
to, and the slot freed last is the next to be used, so a segment weighs as much as was ever in flight at once.

The engine may still read a slot whose sample was given up and which has been written anew. That does no harm: the
result of such a sample is thrown away, and batch-mates do not depend on each other.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from offramp.models.bundle import Bundle


@dataclass(frozen=True)
class Layout:
    """What both ends must agree on: how a segment is divided, and which models are meant by their numbers.

    digest: of all that is known of the models, weights included where they come from a file. A bundle that was replaced
    on disk while the server ran must not be half old and half new.
    """

    num_slots: int
    slot_bytes: int
    digest: bytes

    @classmethod
    def of(cls, bundles: Sequence[Bundle], max_samples: int) -> Layout:
        """For models in the order served, with at most `max_samples` pictures each in flight."""
        facts = [
            [
                *(one.name, one.version, one.labels, one.threshold, one.digest),
                *(asdict(part) for part in (one.config, one.preprocessing, one.calibration)),
            ]
            for one in bundles
        ]
        digest = hashlib.sha256(json.dumps(facts).encode()).digest()
        slot_bytes = max(picture_bytes(one.config.input_size) for one in bundles)
        return cls(max_samples * len(bundles), slot_bytes, digest)


def picture_bytes(size: int) -> int:
    """Bytes of a uint8 (size, size, 3) picture."""
    return size * size * 3


class Segment:
    """One frontend's slots, mapped into this process. memory_fd: the anonymous file, made larger where it is short."""

    def __init__(self, memory_fd: int, layout: Layout) -> None:
        size_bytes = layout.num_slots * layout.slot_bytes
        if os.fstat(memory_fd).st_size < size_bytes:
            os.ftruncate(memory_fd, size_bytes)
        # Unmapped when the last array over it is gone.
        memory = mmap.mmap(memory_fd, size_bytes)
        self._bytes_NB = np.frombuffer(memory, np.uint8).reshape(layout.num_slots, layout.slot_bytes)

    def pictures(self, size: int) -> npt.NDArray[np.uint8]:
        """All slots as (N, size, size, 3) pictures; the slots of a larger model's segment are only used in part."""
        rows_NB = self._bytes_NB[:, : picture_bytes(size)]
        shape, strides = (len(rows_NB), size, size, 3), (rows_NB.strides[0], size * 3, 3, 1)
        return np.lib.stride_tricks.as_strided(rows_NB, shape, strides)


class FreeSlots:
    """Which slots may be written to. No slot is taken twice before it was given back."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots - 1, -1, -1))
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """So many slots; None, and none taken, where there are not enough."""
        if count > len(self._free):
            return None
        slots = [self._free.pop() for _ in range(count)]
        self._taken.update(slots)
        return slots

    def give_back(self, slot: int) -> None:
        """The slot is free again. Raises KeyError for a slot that nobody has."""
        self._taken.remove(slot)
        self._free.append(slot)
