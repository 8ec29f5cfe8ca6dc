"""Train, calibration and test parts of a data set; calibration always comes out of train."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.folder import printable
from models.preprocess import Preprocessing
from training.data.cifar import CIFAR_PIXELS, LAYOUTS, read_cifar
from training.data.errors import DataError
from training.data.image_folder import decode_all, read_image_folder
from training.data.image_set import FolderSet, ImageSet
from training.data.parts import Parts, Pictures
from training.data.shard_files import find_shards
from training.data.shard_index import default_cache
from training.data.shard_set import ShardSet
from training.data.shards import read_shards
from training.data.stratify import HOLDOUT_SEED, fraction_count, stratified_holdout

DATA_ROOT_VARIABLE = "OFFRAMP_DATA_ROOT"
DEFAULT_DATA_ROOT = Path("data")
CIFAR_CALIBRATION_SIZE = 5_000
FOLDER_CALIBRATION_FRACTION = 0.1
DEFAULT_MEMORY_LIMIT_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set.

    train: for the weights. calibration: for temperatures and operating points, held out of train.
    test: for reporting only. source: what was read and how it was split, for the model card.
    """

    train: Pictures
    calibration: Pictures
    test: Pictures
    class_names: tuple[str, ...]
    source: str


def load_splits(
    dataset: str,
    data_root: Path | None,
    preprocessing: Preprocessing,
    calibration_size: int | None = None,
    seed: int = HOLDOUT_SEED,
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
) -> Splits:
    """Load "cifar10", "cifar100", a directory of pictures sorted into one folder a class, or WebDataset shards.

    Shards are a directory with tar files called …train… (and …val… or …test…), or a pattern such as
    "imagenet/train-{000..127}.tar"; their index is kept in the user's cache (see shard_index).

    data_root: where the CIFAR files lie; None means OFFRAMP_DATA_ROOT, else ./data. A directory that is not
    found as given is also looked for below it.
    calibration_size: pictures held out of train, class-balanced; None means 5,000 for CIFAR and 10 % of
    train (at least one a class) for a directory.
    seed: of the hold-outs. It is a constant apart from the training seed, so that runs of any seed share one
    split, and a resumed or repeated training never sees a calibration or test picture.
    memory_limit_bytes: a set whose decoded pictures exceed it is decoded on demand (FolderSet, ShardSet).
    Raises DataError naming what is missing or broken, and the fix.
    """
    if calibration_size is not None and calibration_size < 1:
        raise DataError(f"the calibration size must be at least 1 picture; got {calibration_size}")
    root = data_root if data_root is not None else Path(os.environ.get(DATA_ROOT_VARIABLE, DEFAULT_DATA_ROOT))
    if dataset in LAYOUTS:
        return _cifar_splits(dataset, root, preprocessing, calibration_size, seed, memory_limit_bytes)
    shards = find_shards(dataset, root)
    if shards is not None:
        parts = read_shards(shards, preprocessing, seed, default_cache())
        return _file_splits(parts, calibration_size, seed, memory_limit_bytes)
    folder = _find_folder(dataset, root)
    return _file_splits(read_image_folder(folder, preprocessing, seed), calibration_size, seed, memory_limit_bytes)


def _cifar_splits(
    dataset: str,
    root: Path,
    preprocessing: Preprocessing,
    calibration_size: int | None,
    seed: int,
    memory_limit_bytes: int,
) -> Splits:
    cifar = read_cifar(dataset, root)
    size_bytes = (len(cifar.train) + len(cifar.test)) * preprocessing.size**2 * 3
    if size_bytes > memory_limit_bytes:
        raise DataError(
            f"{cifar.source}: at {preprocessing.size}×{preprocessing.size} pixels the pictures take "
            f"{size_bytes} bytes, above the limit of {memory_limit_bytes}; choose a smaller size "
            f"({CIFAR_PIXELS} is theirs)"
        )
    train, test = _resize(cifar.train, preprocessing), _resize(cifar.test, preprocessing)
    count = CIFAR_CALIBRATION_SIZE if calibration_size is None else calibration_size
    kept, held = stratified_holdout(train.labels_N, count, seed)
    source = _describe(cifar.source, count, seed)
    return Splits(train.subset(kept), train.subset(held), test, train.class_names, source)


def _file_splits(
    parts: Parts[FolderSet] | Parts[ShardSet], calibration_size: int | None, seed: int, memory_limit_bytes: int
) -> Splits:
    labels_N, size = parts.train.labels_N, parts.train.preprocessing.size
    count = calibration_size or fraction_count(labels_N, FOLDER_CALIBRATION_FRACTION)
    kept, held = stratified_holdout(labels_N, count, seed)
    train, calibration = parts.train.subset(kept), parts.train.subset(held)
    source = _describe(parts.source, count, seed)
    size_bytes = (len(parts.train) + len(parts.test)) * size**2 * 3
    if size_bytes > memory_limit_bytes:
        return Splits(train, calibration, parts.test, train.class_names, source)
    in_memory = decode_all(train, calibration, parts.test)
    return Splits(in_memory[0], in_memory[1], in_memory[2], train.class_names, source)


def _describe(source: str, calibration_count: int, seed: int) -> str:
    # It goes into the bundle, which takes no names that are not UTF-8.
    return printable(f"{source}; {calibration_count} calibration pictures held out of train (seed {seed})")


def _find_folder(dataset: str, root: Path) -> Path:
    candidates = [Path(dataset).expanduser(), root / dataset]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = "\n".join(f"  {candidate}" for candidate in candidates)
    raise DataError(
        f"no data set {dataset!r}: it is neither {' nor '.join(LAYOUTS)} nor a directory. Looked at:\n"
        f"{looked}\nGive a directory with one folder of pictures a class: train/<class>/… and "
        "test/<class>/…, or <class>/…; or one with tar shards: train-000.tar … and val-000.tar …. A relative "
        "one is also looked for below the data root, which is named with --data-root or the environment variable "
        f"{DATA_ROOT_VARIABLE}."
    )


def _resize(pictures: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    size = preprocessing.size
    if size == CIFAR_PIXELS and preprocessing.crop_fraction == 1.0:
        return pictures
    images_NHWC = np.empty((len(pictures), size, size, 3), dtype=np.uint8)

    # The very same resizing as for a picture sent to the server, so that accuracy here holds there.
    def resize_into(index: int) -> None:
        images_NHWC[index] = preprocessing.apply(Image.fromarray(pictures.images_NHWC[index]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(resize_into, range(len(pictures))):
            pass
    return ImageSet(images_NHWC, pictures.labels_N, pictures.class_names)
