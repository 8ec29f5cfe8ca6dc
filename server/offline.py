"""One picture, one answer, without a server: the reference runner, and the server's exits and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.exit_policy import ExitReason, ExitRule, leaves, ranking
from models.preprocess import DECODE_ERRORS, EXTENSIONS, Preprocessing
from server.engine.errors import InferenceFailed
from server.engine.runners.runner import Runner

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """Where the picture left, why, and its classes by falling probability: (class id, probability)."""

    exit: int
    reason: ExitReason
    ranking: list[tuple[int, float]]


def predict(runner: Runner, picture_HWC: Picture, rule: ExitRule) -> Prediction:
    """Run stages until the picture's confidence passes its limit; later stages are not run.

    Raises InferenceFailed, as the engine delivers it, when a stage gives no finite probabilities.
    """
    states: Sequence[Any] = [picture_HWC]
    for exit in range(1, runner.num_stages + 1):
        output = runner.run(exit, states)
        probabilities_C = output.probabilities_BC[0]
        confidence = probabilities_C.max()
        if not np.isfinite(confidence):
            raise InferenceFailed(f"stage {exit} gave no finite probabilities for this picture")
        if leaves(confidence, rule.limits[exit - 1]):
            break
        states = output.keep([0])
    return Prediction(exit, rule.reason(exit, float(confidence)), ranking(probabilities_C, len(probabilities_C)))


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
        with Image.open(path) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error
