"""Labelled pictures: in memory (`ImageSet`), or decoded on demand (`FolderSet`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from offramp.models.pictures.folder import printable
from offramp.models.pictures.picture import DECODE_ERRORS, open_image
from offramp.models.preprocess import Preprocessing

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

STAT_THREADS, STAT_CHUNK = 8, 1_000


class DataError(ValueError):
    """Pictures or labels that cannot be used. The message names the file or value, and the fix."""


def _check_labels(labels_N: npt.NDArray[Any], count: int, class_names: tuple[str, ...]) -> None:
    """Raise DataError unless each of `count` pictures has one int64 label, the index of a class name."""
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


def read_file(path: Path) -> bytes:
    """The content of a file. Raises DataError that names the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{printable(path)}: cannot be read ({error.strerror}); bring the file back or remove its name"
        ) from error


def decode_picture(path: Path, preprocessing: Preprocessing) -> UInt8Array:
    """Decode and preprocess one file to uint8 of shape (size, size, 3).

    Raises DataError that names the file when it is missing, truncated or not a picture.
    """
    content = read_file(path)
    try:
        with open_image(content) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise DataError(
            f"{printable(path)}: cannot be decoded ({type(error).__name__}: {error}); replace or remove this file"
        ) from error


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures in memory, all of one size.

    images_NHWC: uint8, RGB; made C-contiguous.
    labels_N: int64, indices into class_names.
    Raises DataError when shapes, types or labels do not fit together.
    """

    images_NHWC: UInt8Array
    labels_N: Int64Array
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        images = self.images_NHWC
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"pictures must be uint8 of shape (N, H, W, 3); got {images.dtype} {images.shape}")
        _check_labels(self.labels_N, len(images), self.class_names)
        # torch shares this memory. It has to be contiguous and, for torch, writable.
        object.__setattr__(self, "images_NHWC", np.require(images, requirements=["C", "W"]))
        object.__setattr__(self, "labels_N", np.require(self.labels_N, requirements=["C", "W"]))

    def __len__(self) -> int:
        return len(self.labels_N)

    def subset(self, indices: Int64Array) -> ImageSet:
        """The pictures at `indices`, in that order (a copy)."""
        return ImageSet(self.images_NHWC[indices], self.labels_N[indices], self.class_names)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, pixels and labels: equal on every machine for equal content."""
        digest = hashlib.sha256(json.dumps(self.images_NHWC.shape).encode())
        digest.update(self.images_NHWC.data)
        digest.update(self.labels_N.astype("<i8").tobytes())
        return digest.hexdigest()


class Names:
    """File names, joined in one buffer.

    A forked decoding process would copy a tuple of texts page by page, because each read of a text writes its reference
    count. The two blocks here stay shared, and a spawned process gets them as they are.
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


@dataclass(frozen=True, eq=False)
class FolderSet:
    """Pictures decoded on demand, for folders too large for memory. Each index decodes one file.

    names: file names relative to root, with forward slashes; stored as Names.
    labels_N: int64, indices into class_names.
    """

    root: Path
    names: Sequence[str] | Names
    labels_N: Int64Array
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        _check_labels(self.labels_N, len(self.names), self.class_names)
        object.__setattr__(self, "names", self.names if isinstance(self.names, Names) else Names(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[UInt8Array, int]:
        """(uint8 picture of shape (size, size, 3), label). Raises DataError that names a corrupt file."""
        return decode_picture(self.root / self.names[index], self.preprocessing), int(self.labels_N[index])

    @property
    def paths(self) -> tuple[Path, ...]:
        """The path of every picture."""
        return tuple(self.root / name for name in self.names)

    def subset(self, indices: Int64Array) -> FolderSet:
        """The pictures at `indices`, in that order."""
        return replace(self, names=Names(self.names[i] for i in indices.tolist()), labels_N=self.labels_N[indices])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of relative names, file sizes and labels.

        Pixels are not read, as that takes a pass over a large folder. So a file replaced by another of equal length
        leaves the fingerprint as it is.
        """
        digest, root = hashlib.sha256(), f"{self.root}/"

        def sizes_bytes(start: int) -> list[int]:
            places = range(start, min(start + STAT_CHUNK, len(self)))
            return [os.stat(root + self.names[place]).st_size for place in places]  # noqa: PTH116

        # In threads, because each call on a network mount is a wait.
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            sizes = chain.from_iterable(pool.map(sizes_bytes, range(0, len(self), STAT_CHUNK)))
            for name, size_bytes, label in zip(self.names, sizes, self.labels_N.tolist(), strict=True):
                digest.update(json.dumps([name, size_bytes, label]).encode() + b"\n")
        return digest.hexdigest()


Pictures = ImageSet | FolderSet
Kind = TypeVar("Kind", ImageSet, FolderSet)


@dataclass(frozen=True)
class Parts(Generic[Kind]):
    """The train and test pictures of a data set. source: the data set, in words."""

    train: Kind
    test: Kind
    source: str
