"""Blocks: the memory that steps write into. A block is used again when no state refers to it.

The system takes back the pages of a large freed array, and new pages cost much of the time of the step itself: for
ResNet-50 at 224 pixels, the first stage writes 50 MB for a batch of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Memory(NamedTuple):
    """Features (B, H, W, C) and accumulated logits (B, classes) of the same samples.

    views: the runner's tensors over the first rows, by number of rows. A step of one sample takes longer without them.
    """

    features_BHWC: npt.NDArray[Any]
    accumulated_BC: npt.NDArray[np.float32]
    views: dict[int, Any]

    def like(self, rows: int) -> Memory:
        """New memory for rows of the same shapes, filled with 0."""
        features_BHWC, accumulated_BC = (np.zeros((rows, *array.shape[1:]), array.dtype) for array in self[:2])
        return Memory(features_BHWC, accumulated_BC, {})


class Block:
    """The output of one step for the next stage. Rows after the step's batch hold old data."""

    __slots__ = ("_pool", "memory")

    def __init__(self, memory: Memory, pool: BlockPool | None = None) -> None:
        self.memory, self._pool = memory, pool

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.take_back(self.memory)

    def __len__(self) -> int:
        return len(self.memory.features_BHWC)

    def fill(self, rows: Sequence[tuple[Block, int]]) -> None:
        """Copy rows of other blocks to the first rows of this block."""
        count, (first, _), into = len(rows), rows[0], self.memory
        if all(block is first for block, _ in rows):
            chosen = [row for _, row in rows]
            # With mode="raise", numpy would write to a buffer first.
            first.memory.features_BHWC.take(chosen, axis=0, out=into.features_BHWC[:count], mode="clip")
            first.memory.accumulated_BC.take(chosen, axis=0, out=into.accumulated_BC[:count], mode="clip")
            return
        np.stack([block.memory.features_BHWC[row] for block, row in rows], out=into.features_BHWC[:count])
        np.stack([block.memory.accumulated_BC[row] for block, row in rows], out=into.accumulated_BC[:count])


class BlockPool:
    """Blocks of one stage, for steps of different sizes.

    features_shape, classes: of a row. feature_type: numpy's. spare_rows: most unused rows that stay in memory; may
    change at any time. Blocks may be freed on any thread; only one thread asks for them.
    """

    def __init__(
        self, features_shape: tuple[int, ...], feature_type: type[np.generic], classes: int, spare_rows: int
    ) -> None:
        self._features_shape, self._type, self._classes = features_shape, feature_type, classes
        self.spare_rows = spare_rows
        self._spare: list[Memory] = []

    def block(self, rows: int) -> Block:
        """A block of at least `rows` rows, and fewer than twice as many."""
        # The oldest memory is freed first. Another thread may append meanwhile.
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
        """Keep the memory of a freed block for a later one."""
        self._spare.append(memory)
