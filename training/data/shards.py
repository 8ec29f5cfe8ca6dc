"""A data set of WebDataset shards: labelled pictures in plain tar files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from models.preprocess import Preprocessing
from training.data.errors import DataError
from training.data.names import Names
from training.data.parts import Parts, check_class_sizes, hold_out_test
from training.data.shard_files import ShardFiles
from training.data.shard_index import ShardIndex, cached_index
from training.data.shard_set import ShardSet

INDEXING_THREADS = 8
TEXT_NAMES, JSON_NAMES = "classes.txt", "classnames.json"


def read_shards(files: ShardFiles, preprocessing: Preprocessing, seed: int, cache: Path | None) -> Parts[ShardSet]:
    """Index the shards; where there are no test shards, a tenth of train is held out, stratified by `seed`.

    cache: folder for the indices, None to keep none. Class names come from `classes.txt` (one a line) or
    `classnames.json` (a list, or {"0": name, …}) beside the shards, else they are the numbers.
    Raises DataError for a shard that cannot be used (see index_shard), and for classes that do not fit together.
    """
    train, test = (_indices(shards, cache) for shards in (files.train, files.test))
    labels = [index.labels_N for index in train]
    most = max((int(labels_N.max(initial=-1)) for labels_N in labels), default=-1)
    names = _class_names(files.folder, most + 1)
    everything = _joined(files.train, train, names, preprocessing)
    if len(names) < 2:
        raise DataError(f"{files.folder}: the training shards hold {len(names)} classes, at least 2 are needed")
    if not files.test:
        return hold_out_test(everything, seed, files.folder, files.title)
    check_class_sizes(everything, 2, "train and calibration", files.folder)
    if not any(len(index.keys) for index in test):
        raise DataError(f"{files.test[0]}: the test shards hold no pictures; write them anew or move them away")
    return Parts(everything, _joined(files.test, test, names, preprocessing), files.title)


def _indices(shards: Sequence[Path], cache: Path | None) -> list[ShardIndex]:
    pool = ThreadPoolExecutor(INDEXING_THREADS)
    try:
        return list(pool.map(lambda shard: cached_index(shard, cache), shards))
    finally:
        # The first broken shard ends it, and so does Ctrl-C.
        pool.shutdown(cancel_futures=True)


def _joined(
    shards: tuple[Path, ...], indices: Sequence[ShardIndex], class_names: tuple[str, ...], preprocessing: Preprocessing
) -> ShardSet:
    for shard, index in zip(shards, indices, strict=True):
        most = int(index.labels_N.max(initial=-1))
        if most >= len(class_names):
            key = index.keys[int(index.labels_N.argmax())]
            raise DataError(
                f"{shard}: sample {key!r} is of class {most}, but there are {len(class_names)} classes, 0 to "
                f"{len(class_names) - 1}; correct the label or the list of class names"
            )
    return ShardSet(
        tuple(Path(os.path.abspath(shard)) for shard in shards),  # noqa: PTH100 - links stay as they were given
        np.repeat(np.arange(len(shards), dtype=np.int64), [len(index.keys) for index in indices]),
        np.concatenate([index.offsets_N for index in indices]),
        np.concatenate([index.sizes_N for index in indices]),
        Names.joined([index.keys for index in indices]),
        np.concatenate([index.labels_N for index in indices]),
        class_names,
        preprocessing,
    )


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    """From a list beside the shards; `count` numbers where there is none."""
    for path, read in ((folder / TEXT_NAMES, _names_of_text), (folder / JSON_NAMES, _names_of_json)):
        if not path.is_file():
            continue
        try:
            names = read(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise DataError(f"{path}: {error}; give {TEXT_NAMES} with one name a line, or a JSON list") from error
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice or "" in names:
            what = f"{twice[0]!r} stands twice" if twice else "a name is empty"
            raise DataError(f"{path}: {what}; give each class its own name")
        return tuple(names)
    return tuple(map(str, range(count)))


def _names_of_text(text: str) -> list[str]:
    return [line.strip() for line in text.rstrip().splitlines()]


def _names_of_json(text: str) -> list[str]:
    found: Any = json.loads(text)
    names = [found[str(i)] for i in range(len(found))] if isinstance(found, dict) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("must be a list of texts, or a text under each of '0', '1', …")
    return names
