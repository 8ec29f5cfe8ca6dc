"""Picture files as a network's inputs: one to answer, or a folder of them for int8 to learn its ranges from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from offramp.models.pictures.folder import find_pictures, listed, printable
from offramp.models.pictures.picture import DECODE_ERRORS, EXTENSIONS, open_image
from offramp.models.preprocess import Preprocessing

Picture = npt.NDArray[np.uint8]


def read_pictures(folder: Path, preprocessing: Preprocessing, most: int = 300) -> list[Picture]:
    """Pictures in a folder and those below it, spread evenly over their names, as the network's inputs.

    Raises ValueError for a folder without pictures, and for all that cannot be read, naming ten at most.
    """
    names = find_pictures(folder).names if folder.is_dir() else []
    if not names:
        raise ValueError(f"{folder}: no pictures there; give a folder with {', '.join(sorted(EXTENSIONS))} files")
    pictures: list[Picture] = []
    broken: list[Exception] = []
    for at in np.linspace(0, len(names) - 1, min(most, len(names))).astype(int):
        try:
            pictures.append(read_picture(folder / names[at], preprocessing))
        except ValueError as error:
            broken.append(error)
    if broken:
        raise ValueError(listed(broken))
    return pictures


def read_picture(path: Path, preprocessing: Preprocessing) -> Picture:
    """A picture file as the network's uint8 (size, size, 3) input. Raises ValueError naming a file that is none."""
    try:
        with open_image(path.read_bytes()) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise ValueError(f"{printable(path)}: cannot be read as a picture ({error})") from error
