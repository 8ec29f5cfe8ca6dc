"""Where in a tar shard each labelled picture lies, found once and remembered.

A shard is one plain tar of a WebDataset (https://github.com/webdataset/webdataset): files of one sample share their
name up to the first dot, `KEY.jpg` beside `KEY.cls` or `KEY.json`. With the places known, any picture is one read
away: exact shuffles, and a start anywhere in an epoch, cost nothing. Nothing is extracted, and no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from models.picture import EXTENSIONS
from training.data.errors import DataError
from training.data.image_set import Int64Array
from training.data.names import Names

MOST_PICTURE_BYTES = 64 * 1024**2
MOST_LABEL_BYTES = 1024**2
LABEL = re.compile(rb"\s*(\d{1,6})\s*")
JSON_LABEL_KEYS = ("label", "cls")
BLOCK = 512
CACHE_FORMAT = 1


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The pictures of one shard, in the order of the file.

    keys: of the samples. offsets_N, sizes_N: int64, bytes. labels_N: int64.
    """

    keys: Names
    offsets_N: Int64Array
    sizes_N: Int64Array
    labels_N: Int64Array


@dataclass
class _Sample:
    """What has been seen so far of the files that share a key."""

    picture: tuple[int, int] | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


def default_cache() -> Path | None:
    """`offramp/shards` below XDG_CACHE_HOME, else below ~/.cache; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(named) if named else Path.home() / ".cache"
    except RuntimeError:
        return None
    return home / "offramp" / "shards"


def cached_index(shard: Path, cache: Path | None) -> ShardIndex:
    """The index from the cache while the shard's size and time of change are as they were, else made anew and kept.

    A cache that cannot be written costs a pass over the shard next time, and is no error. Raises DataError as
    `index_shard` does.
    """
    if cache is None:
        return index_shard(shard)
    try:
        status = shard.stat()
    except OSError as error:
        raise _unreadable(shard, error) from error
    stamp = np.array([CACHE_FORMAT, status.st_size, status.st_mtime_ns], dtype=np.int64)
    entry = cache / f"{hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:32]}.npz"
    index = _load(entry, stamp)
    if index is None:
        index = index_shard(shard)
        _store(entry, stamp, index)
    return index


def index_shard(shard: Path) -> ShardIndex:
    """Walk over a plain tar and find its labelled pictures.

    Raises DataError naming shard and key: for a shard that is missing, compressed, damaged or truncated, a picture
    without a label or a label without a picture, two pictures under a key, and files beyond 64 MiB.
    """
    samples: dict[str, _Sample] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                # Some releases of tarfile walk backwards over a negative size, for ever.
                if member.size < 0:
                    raise DataError(f"{shard}: damaged at {member.name!r}; copy the shard anew")
                if member.isreg() and not member.issparse():
                    _take(samples, member, file, shard)
            # A damaged header ends tarfile's walk without a word, as the end of the archive does.
            file.seek(tar.offset)
            if any(file.read(BLOCK)):
                raise DataError(f"{shard}: damaged at byte {tar.offset}; copy the shard anew")
    except DataError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError, ArithmeticError) as error:
        raise _unreadable(shard, error) from error
    return _as_index(samples, shard)


def _unreadable(shard: Path, error: Exception) -> DataError:
    return DataError(
        f"{shard}: cannot be read as a plain, uncompressed tar ({type(error).__name__}: {error}); "
        "copy the shard anew, or decompress it"
    )


def _take(samples: dict[str, _Sample], member: tarfile.TarInfo, file: BinaryIO, shard: Path) -> None:
    folder, _, name = member.name.removeprefix("./").rpartition("/")
    stem, _, extension = name.partition(".")
    extension = extension.lower()
    is_picture = f".{extension}" in EXTENSIONS
    if not stem or not (is_picture or extension in ("cls", "json")):
        return
    key = f"{folder}/{stem}" if folder else stem
    most = MOST_PICTURE_BYTES if is_picture else MOST_LABEL_BYTES
    if member.size > most:
        raise DataError(f"{shard}: {member.name!r} takes {member.size} bytes, above the limit of {most}; leave it out")
    sample = samples.setdefault(key, _Sample())
    if not is_picture:
        file.seek(member.offset_data)
        sample.texts[extension] = file.read(member.size)
    elif sample.picture is None:
        sample.picture = member.offset_data, member.size
    else:
        raise DataError(f"{shard}: sample {key!r} has two pictures; give each picture its own key")


def _as_index(samples: dict[str, _Sample], shard: Path) -> ShardIndex:
    places, labels = [], []
    for key, sample in samples.items():
        if sample.picture is None:
            raise DataError(f"{shard}: sample {key!r} has a label but no picture; write the shard anew")
        places.append(sample.picture)
        labels.append(_label(sample.texts, key, shard))
    places_N2 = np.array(places, dtype=np.int64).reshape(-1, 2)
    labels_N = np.array(labels, dtype=np.int64)
    return ShardIndex(Names(samples), places_N2[:, 0].copy(), places_N2[:, 1].copy(), labels_N)


def _label(texts: dict[str, bytes], key: str, shard: Path) -> int:
    if "cls" in texts:
        match = LABEL.fullmatch(texts["cls"])
        if match is None:
            raise DataError(
                f"{shard}: {key}.cls holds {texts['cls'][:20]!r}; a class is a whole number of 0 to 999999, in digits"
            )
        return int(match[1])
    if "json" in texts:
        try:
            found = json.loads(texts["json"])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{shard}: {key}.json is no JSON ({error}); write the shard anew") from error
        values = [found.get(name) for name in JSON_LABEL_KEYS] if isinstance(found, dict) else []
        for value in values:
            if type(value) is int and 0 <= value < 1_000_000:
                return value
    raise DataError(
        f"{shard}: sample {key!r} has no label: neither {key}.cls with a whole number, nor {key}.json with one of 0 to "
        f"999999 under {' or '.join(map(repr, JSON_LABEL_KEYS))}; write the shard anew"
    )


def _load(entry: Path, stamp: Int64Array) -> ShardIndex | None:
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            keys = Names.from_blocks(kept["keys"].tobytes(), kept["ends"])
            return ShardIndex(keys, kept["offsets"], kept["sizes"], kept["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _store(entry: Path, stamp: Int64Array, index: ShardIndex) -> None:
    # Processes of one run may do this at once: each writes its own file, and the last one stays.
    draft = entry.with_name(f"{entry.stem}.{os.getpid()}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.savez(
                file,
                stamp=stamp,
                keys=np.frombuffer(index.keys.buffer, dtype=np.uint8),
                ends=index.keys.ends_N,
                offsets=index.offsets_N,
                sizes=index.sizes_N,
                labels=index.labels_N,
            )
        draft.replace(entry)
    except OSError:
        with suppress(OSError):
            draft.unlink()
