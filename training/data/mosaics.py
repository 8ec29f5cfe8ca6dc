"""CIFAR-100 as lossless mosaics: 1,000 pictures a file, a third of the size of the official files.

`cifar100/` holds `train-00.webp`, `train-01.webp`, … and `test-00.webp`, …, each 25 rows × 40 columns of
32×32 tiles, row by row in the official order, and `labels.json`: `fine_names`, and for `train` and `test`
the list `fine`.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from offramp.models.pictures.picture import DECODE_ERRORS
from offramp.training.data.image_set import DataError, ImageSet

ROWS, COLUMNS, TILE = 25, 40, 32
TILES = ROWS * COLUMNS


def read_mosaics(folder: Path) -> tuple[ImageSet, ImageSet]:
    """The (train, test) sets of a mosaic folder.

    Raises DataError naming the file that is missing, broken or of another size than labels.json tells.
    """
    labels = _read_labels(folder / "labels.json")
    try:
        names = tuple(str(name) for name in labels["fine_names"])
        fine = {part: np.asarray(labels[part]["fine"], dtype=np.int64) for part in ("train", "test")}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'labels.json'}: needs 'fine_names', and 'train' and 'test' with a list 'fine' each "
            f"({type(error).__name__}: {error})"
        ) from error
    images = {part: _read_part(folder, part, len(fine[part])) for part in fine}
    try:
        return ImageSet(images["train"], fine["train"], names), ImageSet(images["test"], fine["test"], names)
    except DataError as error:
        raise DataError(f"{folder / 'labels.json'}: {error}") from error


def _read_labels(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; a mosaic folder needs its labels.json") from error
    except ValueError as error:
        raise DataError(f"{path}: no valid JSON ({error}); copy the file anew") from error


def _read_part(folder: Path, part: str, count: int) -> npt.NDArray[np.uint8]:
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


def read_mosaic(path: Path) -> npt.NDArray[np.uint8]:
    """The tiles of one mosaic, uint8 of shape (1000, 32, 32, 3). Raises DataError naming a broken file."""
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
