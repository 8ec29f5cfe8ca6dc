"""CIFAR-100 as lossless mosaics: 1,000 pictures a file, a third of the size of the official files.

The folder holds `train-00.webp`, `train-01.webp`, … and `test-00.webp`, …: each has 25 rows × 40 columns of 32×32
tiles, row by row in the official order. `labels.json` holds `fine_names`, and a list `fine` for `train` and `test`.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from offramp.models.pictures.picture import DECODE_ERRORS
from offramp.training.data.image_set import DataError, ImageSet, UInt8Array

ROWS, COLUMNS, TILE = 25, 40, 32
TILES = ROWS * COLUMNS


def read_mosaics(folder: Path) -> tuple[ImageSet, ImageSet]:
    """The (train, test) sets of a mosaic folder.

    Raises DataError that names the file that is missing, broken, or of another size than labels.json says.
    """
    path = folder / "labels.json"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; a mosaic folder needs its labels.json") from error
    except ValueError as error:
        raise DataError(f"{path}: no valid JSON ({error}); copy the file anew") from error
    try:
        names = tuple(str(name) for name in labels["fine_names"])
        train_N, test_N = (np.asarray(labels[part]["fine"], dtype=np.int64) for part in ("train", "test"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: needs 'fine_names', and 'train' and 'test' with a list 'fine' each "
            f"({type(error).__name__}: {error})"
        ) from error
    train_NHWC, test_NHWC = _read_part(folder, "train", len(train_N)), _read_part(folder, "test", len(test_N))
    try:
        return ImageSet(train_NHWC, train_N, names), ImageSet(test_NHWC, test_N, names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_part(folder: Path, part: str, count: int) -> UInt8Array:
    if count == 0 or count % TILES:
        raise DataError(
            f"{folder / 'labels.json'}: '{part}' lists {count} labels; mosaics hold {TILES} pictures each, "
            f"so a positive multiple of {TILES} is needed"
        )
    paths = [folder / f"{part}-{i:02d}.webp" for i in range(count // TILES)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{folder}: missing {', '.join(missing)}; copy the folder anew")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(read_mosaic, paths)))


def read_mosaic(path: Path) -> UInt8Array:
    """The tiles of one mosaic, uint8 of shape (1000, 32, 32, 3). Raises DataError that names a broken file."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except DECODE_ERRORS as error:
        raise DataError(f"{path}: cannot be decoded ({error}); copy the file anew") from error
    if pixels.shape != (ROWS * TILE, COLUMNS * TILE, 3):
        raise DataError(
            f"{path}: is {pixels.shape[1]}×{pixels.shape[0]} pixels; a mosaic is {COLUMNS * TILE}×{ROWS * TILE}"
        )
    tiles = pixels.reshape(ROWS, TILE, COLUMNS, TILE, 3).swapaxes(1, 2)
    return tiles.reshape(TILES, TILE, TILE, 3)
