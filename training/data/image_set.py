"""Labelled pictures: held in memory, or decoded on demand when they do not fit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.preprocess import Preprocessing
from training.data.decoding import decode_picture
from training.data.errors import DataError

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


def _check_labels(labels_N: npt.NDArray[Any], count: int, class_names: tuple[str, ...]) -> None:
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
        _check_labels(self.labels_N, len(images), self.class_names)
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

    names: file names relative to root, with forward slashes. labels_N: int64, indices into class_names.
    Indexing decodes one file, so a torch DataLoader's workers can share the work.
    """

    root: Path
    names: tuple[str, ...]
    labels_N: Int64Array
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        _check_labels(self.labels_N, len(self.names), self.class_names)

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
        names = tuple(self.names[i] for i in indices)
        return replace(self, names=names, labels_N=self.labels_N[indices])

    def fingerprint(self) -> str:
        """sha256 (hex) over relative names, file sizes and labels.

        Pixels are not read, as that would cost a pass over a folder chosen for being too large: a file
        replaced by another of equal length goes unnoticed.
        """
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels_N, strict=True):
            size_bytes = (self.root / name).stat().st_size
            digest.update(json.dumps([name, size_bytes, int(label)]).encode() + b"\n")
        return digest.hexdigest()
