"""The difference between the probabilities of a fast runner and of the reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offramp.server.engine.runners.all_stages import Pictures, run_all_stages
from offramp.server.engine.runners.runner import Runner

NUM_PICTURES = 16


def largest_difference(runner: Runner, reference: Runner, size: int, batch_size: int = 0) -> float:
    """The largest difference of a probability, over all exits and example pictures (size, size, 3); NaN if one is NaN.

    One picture also runs alone: a network may treat a batch of one differently. batch_size: see `probabilities`.
    """
    pictures = example_pictures(size)
    differences = [
        np.abs(probabilities(runner, some, batch_size) - probabilities(reference, some, batch_size)).max()
        for some in (pictures[:1], pictures)
    ]
    return float(np.max(differences))


def probabilities(runner: Runner, pictures: Pictures, batch_size: int = 0) -> npt.NDArray[np.float32]:
    """Calibrated probabilities (K, N, classes) of every picture at every exit. batch_size: 0 is one batch of all."""
    size = batch_size or len(pictures)
    batches = (pictures[at : at + size] for at in range(0, len(pictures), size))
    answers = [np.stack([output.probabilities_BC for output in run_all_stages(runner, batch)]) for batch in batches]
    return np.concatenate(answers, axis=1)


def example_pictures(size: int, number: int = NUM_PICTURES) -> list[npt.NDArray[np.uint8]]:
    """Pictures (size, size, 3) with detail at every scale: coloured slopes, stripes, noise. Always the same ones."""
    generator = np.random.default_rng(0)
    slope = np.linspace(-1, 1, size)

    def draw() -> npt.NDArray[np.uint8]:
        down, across = generator.uniform(-120, 120, (2, 3))
        stripes = np.sin(generator.uniform(1, 12) * (slope[:, None] + generator.uniform(-1, 1) * slope[None, :]))
        noise_HW3 = generator.normal(0, generator.uniform(2, 30), (size, size, 3))
        colour_HW3 = generator.uniform(0, 255, 3) + slope[:, None, None] * down + slope[None, :, None] * across
        picture_HW3 = colour_HW3 + generator.uniform(0, 60) * stripes[:, :, None] + noise_HW3
        return np.asarray(picture_HW3.clip(0, 255), np.uint8)

    return [draw() for _ in range(number)]
