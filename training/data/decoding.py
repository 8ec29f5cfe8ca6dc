"""One picture file to pixels; every way a file can be broken becomes a DataError that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.preprocess import DECODE_ERRORS, Preprocessing
from training.data.errors import DataError


def decode_picture(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode and preprocess one file to uint8 of shape (size, size, 3).

    Raises DataError naming the file when it is missing, corrupt, truncated or no picture.
    """
    try:
        with Image.open(path) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise DataError(
            f"{path}: cannot be decoded ({type(error).__name__}: {error}); replace or remove this file"
        ) from error
