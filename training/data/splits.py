"""Train, calibration and test parts of a data set; calibration always comes out of train."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from offramp.models.pictures.folder import printable
from offramp.models.preprocess import Preprocessing
from offramp.training.data.cifar import CIFAR_PIXELS, LAYOUTS, read_cifar
from offramp.training.data.image_folder import decode_all, read_image_folder
from offramp.training.data.image_set import DataError, FolderSet, ImageSet, Parts, Pictures, read_file
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
    source: the data set and its split, in words, for the model card.
    fingerprint: SHA-256 of train and calibration together, before preprocessing and before the hold-out. It tells two
        data sets apart. For a folder, it covers names, sizes and labels, and the content of evenly spread files.
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
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
) -> Splits:
    """Load "cifar10", "cifar100", or a directory of pictures with one folder for each class.

    data_root: the folder of the CIFAR files; None means OFFRAMP_DATA_ROOT, else ./data. A directory that does not
    exist as given is also searched below it.
    calibration_size: number of pictures held out of train, balanced by class; None means 5,000 for CIFAR, and 10 % of
    train (at least one of each class) for a directory. The hold-out does not depend on the training seed: a resumed or
    repeated training never sees a calibration or test picture.
    memory_limit_bytes: a folder with larger decoded pictures is decoded on demand (FolderSet).
    Raises DataError that names the missing or broken file, and the fix.
    """
    if calibration_size is not None and calibration_size < 1:
        raise DataError(f"the calibration size must be at least 1 picture; got {calibration_size}")
    root = data_root if data_root is not None else Path(os.environ.get(DATA_ROOT_VARIABLE, DEFAULT_DATA_ROOT))
    train: Pictures
    test: Pictures
    if dataset in LAYOUTS:
        cifar = read_cifar(dataset, root)
        _check_memory(cifar, preprocessing.size, memory_limit_bytes)
        train, test, source = _resize(cifar.train, preprocessing), _resize(cifar.test, preprocessing), cifar.source
        count, fingerprint = CIFAR_CALIBRATION_SIZE, cifar.train.fingerprint()
    else:
        folder = read_image_folder(_find_folder(dataset, root), preprocessing)
        train, test, source = folder.train, folder.test, folder.source
        count, fingerprint = fraction_count(train.labels_N, FOLDER_CALIBRATION_FRACTION), _fingerprint(folder.train)
    count = calibration_size or count
    train_M, calibration_M = stratified_holdout(train.labels_N, count, HOLDOUT_SEED)
    parts: Sequence[Pictures] = (train.subset(train_M), train.subset(calibration_M), test)
    folders = [part for part in parts if isinstance(part, FolderSet)]
    if folders and (len(train) + len(test)) * preprocessing.size**2 * 3 <= memory_limit_bytes:
        parts = decode_all(*folders)
    train_part, calibration, test = parts
    # The bundle stores the source, and accepts UTF-8 only.
    source = printable(f"{source}; {count} calibration pictures held out of train (seed {HOLDOUT_SEED})")
    return Splits(train_part, calibration, test, train.class_names, source, fingerprint)


def _check_memory(cifar: Parts[ImageSet], size: int, memory_limit_bytes: int) -> None:
    size_bytes = (len(cifar.train) + len(cifar.test)) * size**2 * 3
    if size_bytes > memory_limit_bytes:
        raise DataError(
            f"{cifar.source}: at {size}×{size} pixels the pictures take {size_bytes} bytes, above the limit of "
            f"{memory_limit_bytes}; choose a smaller size ({CIFAR_PIXELS} is theirs)"
        )


def _fingerprint(pictures: FolderSet) -> str:
    digest = hashlib.sha256(pictures.fingerprint().encode())
    sample = np.unique(np.linspace(0, len(pictures) - 1, FINGERPRINTED_FILES).astype(int))
    for index in sample.tolist():
        digest.update(read_file(pictures.root / pictures.names[index]))
    return digest.hexdigest()


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

    # The same resizing as for a picture sent to the server, so that both have the same accuracy.
    def resize_into(index: int) -> None:
        images_NHWC[index] = preprocessing.apply(Image.fromarray(pictures.images_NHWC[index]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(resize_into, range(len(pictures))):
            pass
    return ImageSet(images_NHWC, pictures.labels_N, pictures.class_names)
