"""File names by the million, in two blocks of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class Names(Sequence[str]):
    """Texts, such as file names, joined in one buffer.

    A tuple of texts would be copied into every decoding process, page by page, as each count of references is
    written to; two blocks stay shared after a fork, and cross to a spawned process as they are.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.buffer = b"".join(encoded)
        self.ends_N: npt.NDArray[np.int64] = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @classmethod
    def from_blocks(cls, buffer: bytes, ends_N: npt.NDArray[np.int64]) -> Names:
        """From the joined names in UTF-8 and where in it each ends."""
        names = cls()
        names.buffer, names.ends_N = buffer, ends_N
        return names

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """All names of `parts`, one part after the other."""
        starts = np.cumsum([0, *(len(part.buffer) for part in parts)])
        ends = [part.ends_N + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls.from_blocks(b"".join(part.buffer for part in parts), np.concatenate([np.empty(0, np.int64), *ends]))

    def __len__(self) -> int:
        return len(self.ends_N)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return Names(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]
        start = int(self.ends_N[place - 1]) if place else 0
        return os.fsdecode(self.buffer[start : int(self.ends_N[place])])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends_N.tolist():
            yield os.fsdecode(self.buffer[start:end])
            start = end

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return self.buffer == other.buffer and np.array_equal(self.ends_N, other.ends_N)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} names>"
