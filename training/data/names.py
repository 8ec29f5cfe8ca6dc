"""File names by the million, in two blocks of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


class Names:
    """File names, joined in one buffer.

    A decoding process that is forked would copy a tuple of texts page by page, because each read of a text writes its
    reference count. Two blocks stay shared, and they cross to a spawned process as they are.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.buffer = b"".join(encoded)
        self.ends_N: npt.NDArray[np.int64] = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends_N)

    def __getitem__(self, index: int) -> str:
        place = range(len(self))[index]
        start = int(self.ends_N[place - 1]) if place else 0
        return os.fsdecode(self.buffer[start : int(self.ends_N[place])])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return self.buffer == other.buffer and np.array_equal(self.ends_N, other.ends_N)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} names>"
