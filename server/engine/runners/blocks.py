"""Blocks: the memory that steps write into, used again once nobody refers to what was written.

The system takes back the pages of a large array that is freed, and handing out new ones costs as much time as computing
a good part of what goes into them: for ResNet-50 at 224 pixels, a batch of 32 leaves 50 MB behind its first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Block:
    """What one step leaves behind: features (B, H, W, C) and accumulated logits (B, classes).

    Rows from the step's batch size on hold whatever was there before.
    """

    __slots__ = ("_pool", "accumulated_BC", "features_BHWC")

    def __init__(
        self,
        features_BHWC: npt.NDArray[Any],
        accumulated_BC: npt.NDArray[np.float32],
        pool: BlockPool | None = None,
    ) -> None:
        self.features_BHWC, self.accumulated_BC, self._pool = features_BHWC, accumulated_BC, pool

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.take_back(self.features_BHWC, self.accumulated_BC)

    def __len__(self) -> int:
        return len(self.features_BHWC)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """Features and accumulated logits."""
        return self.features_BHWC, self.accumulated_BC

    def fill(self, rows: Sequence[tuple[Block, int]]) -> None:
        """Copy rows of other blocks to the first ones of this."""
        count, (first, _) = len(rows), rows[0]
        if all(block is first for block, _ in rows):
            chosen = [row for _, row in rows]
            # With "raise", numpy would write elsewhere first.
            first.features_BHWC.take(chosen, axis=0, out=self.features_BHWC[:count], mode="clip")
            first.accumulated_BC.take(chosen, axis=0, out=self.accumulated_BC[:count], mode="clip")
            return
        np.stack([block.features_BHWC[row] for block, row in rows], out=self.features_BHWC[:count])
        np.stack([block.accumulated_BC[row] for block, row in rows], out=self.accumulated_BC[:count])


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
        self._spare: list[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]] = []

    def block(self, rows: int) -> Block:
        """One of at least `rows` rows, and less than twice as many."""
        # The oldest go first: sizes that nobody asks for any more. Whoever gives one back meanwhile puts it at the end.
        while sum(len(features_BHWC) for features_BHWC, _ in self._spare) > self.spare_rows:
            self._spare.pop(0)
        fitting = [
            (len(features_BHWC), at)
            for at, (features_BHWC, _) in enumerate(self._spare)
            if rows <= len(features_BHWC) < 2 * rows
        ]
        if fitting:
            return Block(*self._spare.pop(min(fitting)[1]), self)
        features_BHWC = np.empty((rows, *self._features_shape), self._type)
        return Block(features_BHWC, np.empty((rows, self._classes), np.float32), self)

    def take_back(self, features_BHWC: npt.NDArray[Any], accumulated_BC: npt.NDArray[np.float32]) -> None:
        """A block's arrays, which nobody refers to any more."""
        self._spare.append((features_BHWC, accumulated_BC))
