"""Train, calibration and test parts of a data set; calibration always comes out of train."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from offramp.models.pictures.folder import printable
from offramp.models.preprocess import Preprocessing
from offramp.training.data.cifar import CIFAR_PIXELS, LAYOUTS, read_cifar
from offramp.training.data.image_folder import FolderParts, decode_all, read_image_folder
from offramp.training.data.image_set import DataError, FolderSet, ImageSet, Pictures, read_file
from offramp.training.data.stratify import HOLDOUT_SEED, fraction_count, stratified_holdout

DATA_ROOT_VARIABLE = "OFFRAMP_DATA_ROOT"
DEFAULT_DATA_ROOT = Path("data")
CIFAR_CALIBRATION_SIZE = 5_000
FOLDER_CALIBRATION_FRACTION = 0.1
DEFAULT_MEMORY_LIMIT_BYTES = 4 * 1024**3
# Files of a folder whose content tells it from another folder with the same names and sizes.
FINGERPRINTED_FILES = 64


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set.

    train: pictures for the weights.
    calibration: pictures for temperatures, thresholds and the certificate; held out of train.
    test: pictures for reports only.
    source: what was read and how it was split, in words, for the model card.
    fingerprint: SHA-256 of train and calibration together, before preprocessing and before the hold-out: it tells two
        data sets apart. Of a folder, it covers names, sizes and labels, and the content of evenly spread files.
    """

    train: Pictures
    calibration: Pictures
    test: Pictures
    class_names: tuple[str, ...]
    source: str
    fingerprint: str


def load_splits(
    dataset: str,
    data_root: Path | None,
    preprocessing: Preprocessing,
    calibration_size: int | None = None,
    seed: int = HOLDOUT_SEED,
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
) -> Splits:
    """Load "cifar10", "cifar100", or a directory of pictures with one folder for each class.

    data_root: the folder of the CIFAR files; None means OFFRAMP_DATA_ROOT, else ./data. A directory that does not
    exist as given is also looked for below it.
    calibration_size: number of pictures held out of train, balanced by class; None means 5,000 for CIFAR, and 10 % of
    train (at least one a class) for a directory.
    seed: seed of the hold-outs. It is a constant, independent of the training seed: runs of any seed share one split,
    and a resumed or repeated training never sees a calibration or test picture.
    memory_limit_bytes: a set whose decoded pictures take more is decoded on demand (FolderSet).
    Raises DataError that names the missing or broken file, and the fix.
    """
    if calibration_size is not None and calibration_size < 1:
        raise DataError(f"the calibration size must be at least 1 picture; got {calibration_size}")
    root = data_root if data_root is not None else Path(os.environ.get(DATA_ROOT_VARIABLE, DEFAULT_DATA_ROOT))
    if dataset in LAYOUTS:
        return _cifar_splits(dataset, root, preprocessing, calibration_size, seed, memory_limit_bytes)
    folder = _find_folder(dataset, root)
    return _folder_splits(read_image_folder(folder, preprocessing, seed), calibration_size, seed, memory_limit_bytes)


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
    train_M, calibration_M = stratified_holdout(train.labels_N, count, seed)
    source = _describe(cifar.source, count, seed)
    return Splits(
        train.subset(train_M),
        train.subset(calibration_M),
        test,
        train.class_names,
        source,
        cifar.train.fingerprint(),
    )


def _folder_splits(parts: FolderParts, calibration_size: int | None, seed: int, memory_limit_bytes: int) -> Splits:
    labels_N, size = parts.train.labels_N, parts.train.preprocessing.size
    count = calibration_size or fraction_count(labels_N, FOLDER_CALIBRATION_FRACTION)
    train_M, calibration_M = stratified_holdout(labels_N, count, seed)
    train, calibration = parts.train.subset(train_M), parts.train.subset(calibration_M)
    source = _describe(parts.source, count, seed)
    size_bytes = (len(parts.train) + len(parts.test)) * size**2 * 3
    if size_bytes > memory_limit_bytes:
        return Splits(train, calibration, parts.test, train.class_names, source, _fingerprint(parts.train))
    decoded = decode_all(train, calibration, parts.test)
    return Splits(decoded[0], decoded[1], decoded[2], train.class_names, source, _fingerprint(parts.train))


def _fingerprint(pictures: FolderSet) -> str:
    digest = hashlib.sha256(pictures.fingerprint().encode())
    sample = np.unique(np.linspace(0, len(pictures) - 1, FINGERPRINTED_FILES).astype(int))
    for index in sample.tolist():
        digest.update(read_file(pictures.root / pictures.names[index]))
    return digest.hexdigest()


def _describe(source: str, calibration_count: int, seed: int) -> str:
    # The bundle stores this text, and accepts UTF-8 only.
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
        "test/<class>/…, or <class>/…. A relative one is also looked for below the data root, which is named with "
        "--data-root or the environment variable "
        f"{DATA_ROOT_VARIABLE}."
    )


def _resize(pictures: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    size = preprocessing.size
    if size == CIFAR_PIXELS and preprocessing.crop_fraction == 1.0:
        return pictures
    images_NHWC = np.empty((len(pictures), size, size, 3), dtype=np.uint8)

    # The same resizing as for a picture sent to the server, so that accuracy here holds there.
    def resize_into(index: int) -> None:
        images_NHWC[index] = preprocessing.apply(Image.fromarray(pictures.images_NHWC[index]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(resize_into, range(len(pictures))):
            pass
    return ImageSet(images_NHWC, pictures.labels_N, pictures.class_names)
