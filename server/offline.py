"""One picture, one answer, without a server: the same runner, exits and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.exit_policy import ExitReason, ExitRule, leaves
from server.engine.errors import InferenceFailed
from server.engine.runners.runner import Runner

Ranking = list[tuple[int, float]]


@dataclass(frozen=True)
class Prediction:
    """Where the picture left, why, and its classes by falling probability: (class id, probability)."""

    exit: int
    reason: ExitReason
    ranking: Ranking


def predict(runner: Runner, picture_HWC: np.ndarray[Any, np.dtype[np.uint8]], rule: ExitRule) -> Prediction:
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
        states = [output.states[0]]
    order = np.argsort(-probabilities_C, kind="stable")
    ranking = [(int(class_id), float(probabilities_C[class_id])) for class_id in order]
    return Prediction(exit, rule.reason(exit, float(confidence)), ranking)


def open_picture(path: str) -> Image.Image:
    """Open a picture file, wholly decoded. Raises ValueError naming the file when it is missing or no picture."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error
