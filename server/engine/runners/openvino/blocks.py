"""Blocks: the memory that steps write into, used again once nobody refers to what was written.

The system takes back the pages of a large array that is freed, and handing out new ones costs as much time as computing
a good part of what goes into them: for ResNet-50 at 224 pixels, a batch of 32 leaves 50 MB behind its first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Memory(NamedTuple):
    """Features (B, H, W, C) and accumulated logits (B, classes), of the same rows.

    views: a library's own names for the first so many rows. They are kept with the memory, since a step of one sample
    notices when they are made anew for it.
    """

    features_BHWC: npt.NDArray[Any]
    accumulated_BC: npt.NDArray[np.float32]
    views: dict[int, Any]

    def like(self, rows: int) -> Memory:
        """More of the kind, filled with 0."""
        features_BHWC, accumulated_BC = (np.zeros((rows, *one.shape[1:]), one.dtype) for one in self[:2])
        return Memory(features_BHWC, accumulated_BC, {})


class Block:
    """What one step leaves behind, in memory of at least its size.

    Rows from the step's batch size on hold whatever was there before.
    """

    __slots__ = ("_pool", "memory")

    def __init__(self, memory: Memory, pool: BlockPool | None = None) -> None:
        self.memory, self._pool = memory, pool

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.take_back(self.memory)

    def __len__(self) -> int:
        return len(self.memory.features_BHWC)

    def fill(self, rows: Sequence[tuple[Block, int]]) -> None:
        """Copy rows of other blocks to the first ones of this."""
        count, (first, _), into = len(rows), rows[0], self.memory
        if all(block is first for block, _ in rows):
            chosen = [row for _, row in rows]
            # With "raise", numpy would write elsewhere first.
            first.memory.features_BHWC.take(chosen, axis=0, out=into.features_BHWC[:count], mode="clip")
            first.memory.accumulated_BC.take(chosen, axis=0, out=into.accumulated_BC[:count], mode="clip")
            return
        np.stack([block.memory.features_BHWC[row] for block, row in rows], out=into.features_BHWC[:count])
        np.stack([block.memory.accumulated_BC[row] for block, row in rows], out=into.accumulated_BC[:count])


class BlockPool:
    """Blocks of one stage, for steps of different sizes.

    features_shape, classes: of a row. feature_type: numpy's. spare_rows: most rows that are kept for later when the
    next block is asked for; may be changed at any time. Blocks may be let go of on any thread; one thread alone asks
    for them.
    """

    def __init__(
        self, features_shape: tuple[int, ...], feature_type: type[np.generic], classes: int, spare_rows: int
    ) -> None:
        self._features_shape, self._type, self._classes = features_shape, feature_type, classes
        self.spare_rows = spare_rows
        self._spare: list[Memory] = []

    def block(self, rows: int) -> Block:
        """One of at least `rows` rows, and less than twice as many."""
        # The oldest go first: sizes that nobody asks for any more. Whoever gives one back meanwhile puts it at the end.
        while sum(len(memory.features_BHWC) for memory in self._spare) > self.spare_rows:
            self._spare.pop(0)
        fitting = [
            (len(memory.features_BHWC), at)
            for at, memory in enumerate(self._spare)
            if rows <= len(memory.features_BHWC) < 2 * rows
        ]
        if fitting:
            return Block(self._spare.pop(min(fitting)[1]), self)
        features_BHWC = np.empty((rows, *self._features_shape), self._type)
        return Block(Memory(features_BHWC, np.empty((rows, self._classes), np.float32), {}), self)

    def take_back(self, memory: Memory) -> None:
        """A block's, to which nobody refers any more."""
        self._spare.append(memory)
