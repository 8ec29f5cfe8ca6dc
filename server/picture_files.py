"""Picture files as a network's inputs: one to answer, or a folder of them for int8 to learn its ranges from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.picture import DECODE_ERRORS, EXTENSIONS, open_image
from models.preprocess import Preprocessing

Picture = npt.NDArray[np.uint8]


def read_pictures(folder: Path, preprocessing: Preprocessing, most: int = 300) -> list[Picture]:
    """Pictures in a folder and those below it, spread evenly over their names, as the network's inputs.

    Raises ValueError for a folder without pictures, and for one that cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise ValueError(f"{folder}: no pictures there; give a folder with {', '.join(sorted(EXTENSIONS))} files")
    chosen = np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)
    return [read_picture(files[at], preprocessing) for at in chosen]


def read_picture(path: Path, preprocessing: Preprocessing) -> Picture:
    """A picture file as the network's uint8 (size, size, 3) input. Raises ValueError naming a file that is none."""
    try:
        with open_image(path.read_bytes()) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error
