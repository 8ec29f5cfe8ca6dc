"""Labelled pictures inside tar shards, each one read away."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.preprocess import Preprocessing
from training.data.decoding import decode_bytes
from training.data.errors import DataError
from training.data.image_set import Int64Array, UInt8Array, check_labels
from training.data.names import Names


@dataclass(frozen=True, eq=False)
class ShardSet:
    """Pictures decoded on demand from tar files, by place: what FolderSet is for folders.

    shards: the tar files. shards_N: int64, which of them a picture lies in. offsets_N, sizes_N: int64, its bytes
    there. keys: its name in the shard. labels_N: int64, indices into class_names.
    Raises DataError where labels and class names do not fit together.
    """

    shards: tuple[Path, ...]
    shards_N: Int64Array
    offsets_N: Int64Array
    sizes_N: Int64Array
    keys: Names
    labels_N: Int64Array
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        check_labels(self.labels_N, len(self.keys), self.class_names)

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[UInt8Array, int]:
        """(uint8 picture of shape (size, size, 3), label). Raises DataError naming shard and key of a broken one."""
        name = f"{self.shards[self.shards_N[index]]}, sample {self.keys[index]!r}"
        return decode_bytes(self.read(index), name, self.preprocessing), int(self.labels_N[index])

    def read(self, index: int) -> bytes:
        """The picture's file as it lies in the shard. Raises DataError when the shard is gone or was cut."""
        shard, size_bytes = self.shards[self.shards_N[index]], int(self.sizes_N[index])
        # Opened each time: an open file would neither outlive a fork safely nor pass to a spawned process, and a
        # thousand shards would be a thousand open files.
        try:
            file = os.open(shard, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                content = os.pread(file, size_bytes, int(self.offsets_N[index]))
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(f"{shard}: cannot be read ({error.strerror}); bring the shard back") from error
        if len(content) != size_bytes:
            raise DataError(f"{shard}: ends before sample {self.keys[index]!r} does; copy the shard anew")
        return content

    def subset(self, indices: Int64Array) -> ShardSet:
        """The pictures at `indices`, in that order."""
        return replace(
            self,
            shards_N=self.shards_N[indices],
            offsets_N=self.offsets_N[indices],
            sizes_N=self.sizes_N[indices],
            keys=Names(self.keys[i] for i in indices.tolist()),
            labels_N=self.labels_N[indices],
        )

    def fingerprint(self) -> str:
        """sha256 (hex) over keys, sizes and labels in order, whatever shards they are spread over.

        Pixels are not read, as that would cost a pass over all shards: a picture replaced by another of equal
        length goes unnoticed.
        """
        digest = hashlib.sha256(b"shards")
        for block in (self.keys.ends_N, self.sizes_N, self.labels_N):
            digest.update(np.ascontiguousarray(block, dtype="<i8").data)
        digest.update(self.keys.buffer)
        return digest.hexdigest()
