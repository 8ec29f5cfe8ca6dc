"""Pictures in memory that a frontend and the engine process share, so that no picture goes through a socket.

A frontend owns a segment of equal slots. It writes a picture into a free slot and sends the slot's number; the engine
process reads the picture in place. The slot is free again when the engine process has sent the outcome.

The memory is an anonymous file (memfd) that the supervisor creates and both processes inherit. It has no name that
could outlive a crash, and the size of /dev/shm, which is 64 MB in many containers, does not limit it. A page takes
memory once it is written to.

A frontend may write a new picture into a slot while the engine still reads it for a sample that was given up. This does
no harm: the result of that sample is dropped, and samples of a batch do not depend on each other.
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
    """How a segment is divided, the same in all processes. sizes: width of each model's pictures, in the order served.

    digest: of all facts of the models, and of their weights where these come from a file. It differs where a bundle was
    replaced on disk while the server ran.
    """

    num_slots: int
    sizes: tuple[int, ...]
    digest: bytes = b""

    @classmethod
    def of(cls, bundles: Sequence[Bundle], max_samples: int) -> Layout:
        """The layout for models in the order served. max_samples: pictures of each model in flight."""
        facts = [
            [
                *(bundle.name, bundle.version, bundle.labels, bundle.threshold, bundle.digest),
                *(asdict(part) for part in (bundle.config, bundle.preprocessing, bundle.calibration)),
            ]
            for bundle in bundles
        ]
        digest = hashlib.sha256(json.dumps(facts).encode()).digest()
        return cls(max_samples * len(bundles), tuple(bundle.config.input_size for bundle in bundles), digest)

    def map(self, memory_fd: int) -> list[npt.NDArray[np.uint8]]:
        """Map a segment into this process: for each model, all slots as (N, size, size, 3) pictures.

        memory_fd: the anonymous file; it grows to the size of the segment.
        """
        slot_bytes = max(self.sizes) ** 2 * 3
        size_bytes = self.num_slots * slot_bytes
        if os.fstat(memory_fd).st_size < size_bytes:
            os.ftruncate(memory_fd, size_bytes)
        # Unmapped when the last array over it is gone.
        memory = mmap.mmap(memory_fd, size_bytes)
        return [
            np.ndarray((self.num_slots, size, size, 3), np.uint8, memory, strides=(slot_bytes, 3 * size, 3, 1))
            for size in self.sizes
        ]
