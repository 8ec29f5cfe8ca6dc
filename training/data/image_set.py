"""Labelled pictures: held in memory, or decoded on demand when they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.preprocess import Preprocessing
from training.data.decoding import decode_picture
from training.data.errors import DataError
from training.data.names import Names

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

STAT_THREADS = 8
STAT_CHUNK = 1_000


def check_labels(labels_N: npt.NDArray[Any], count: int, class_names: tuple[str, ...]) -> None:
    """Raises DataError unless there is one int64 label a picture, each an index into different class names."""
    if labels_N.dtype != np.int64 or labels_N.shape != (count,):
        raise DataError(
            f"labels must be int64 of shape ({count},), one a picture; got {labels_N.dtype} {labels_N.shape}"
        )
    if len(set(class_names)) != len(class_names):
        raise DataError(f"class names must differ from one another; got {class_names}")
    if count and not 0 <= labels_N.min() <= labels_N.max() < len(class_names):
        raise DataError(
            f"labels must lie in 0..{len(class_names) - 1} (there are {len(class_names)} class names); "
            f"got {labels_N.min()}..{labels_N.max()}"
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures in memory, all of one size.

    images_NHWC: uint8, RGB, made C-contiguous. labels_N: int64, indices into class_names.
    Raises DataError where shapes, types or labels do not fit together.
    """

    images_NHWC: UInt8Array
    labels_N: Int64Array
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        images = self.images_NHWC
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"pictures must be uint8 of shape (N, H, W, 3); got {images.dtype} {images.shape}")
        check_labels(self.labels_N, len(images), self.class_names)
        # torch shares this memory, which has to be contiguous and, for torch, writable.
        object.__setattr__(self, "images_NHWC", np.require(images, requirements=["C", "W"]))
        object.__setattr__(self, "labels_N", np.require(self.labels_N, requirements=["C", "W"]))

    def __len__(self) -> int:
        return len(self.labels_N)

    def subset(self, indices: Int64Array) -> ImageSet:
        """The pictures at `indices`, in that order (a copy)."""
        return ImageSet(self.images_NHWC[indices], self.labels_N[indices], self.class_names)

    def fingerprint(self) -> str:
        """sha256 (hex) over shape, pixels and labels: equal on every machine for equal content."""
        digest = hashlib.sha256(json.dumps(self.images_NHWC.shape).encode())
        digest.update(self.images_NHWC.data)
        digest.update(self.labels_N.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class FolderSet:
    """Pictures decoded on demand, for folders too large for memory.

    names: file names relative to root, with forward slashes, kept as Names. labels_N: int64, indices into class_names.
    Indexing decodes one file, so a torch DataLoader's workers can share the work.
    """

    root: Path
    names: Sequence[str]
    labels_N: Int64Array
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        check_labels(self.labels_N, len(self.names), self.class_names)
        object.__setattr__(self, "names", self.names if isinstance(self.names, Names) else Names(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[UInt8Array, int]:
        """(uint8 picture of shape (size, size, 3), label). Raises DataError naming a file that is corrupt."""
        return decode_picture(self.root / self.names[index], self.preprocessing), int(self.labels_N[index])

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.root / name for name in self.names)

    def subset(self, indices: Int64Array) -> FolderSet:
        """The pictures at `indices`, in that order."""
        names = Names(self.names[i] for i in indices.tolist())
        return replace(self, names=names, labels_N=self.labels_N[indices])

    def fingerprint(self) -> str:
        """sha256 (hex) over relative names, file sizes and labels.

        Pixels are not read, as that would cost a pass over a folder chosen for being too large: a file
        replaced by another of equal length goes unnoticed.
        """
        digest = hashlib.sha256()
        for name, size_bytes, label in zip(self.names, self._sizes_bytes(), self.labels_N.tolist(), strict=True):
            digest.update(json.dumps([name, size_bytes, label]).encode() + b"\n")
        return digest.hexdigest()

    def _sizes_bytes(self) -> Iterator[int]:
        root = f"{self.root}/"

        def sizes(start: int) -> list[int]:
            return [os.stat(root + name).st_size for name in self.names[start : start + STAT_CHUNK]]  # noqa: PTH116

        # Side by side, as each question to a network mount is a wait.
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            for found in pool.map(sizes, range(0, len(self), STAT_CHUNK)):
                yield from found
