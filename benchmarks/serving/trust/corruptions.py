"""Corrupted pictures of rising severity, as in CIFAR-10-C and CIFAR-100-C.

Kinds and parameters of severities 1 to 5: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), those for pictures of 32 pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.harness.pictures import Pixels, encode

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One kind. parameters: one for each severity. apply: to a uint8 (H, W, 3) picture, with a source of randomness."""

    parameters: tuple[float, float, float, float, float]
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]


def gaussian_noise(picture_HWC: Pixels, deviation: float, draw: np.random.Generator) -> Pixels:
    """Add noise. deviation: of the noise, on the 0..1 scale."""
    return _pixels(picture_HWC / 255.0 + draw.normal(scale=deviation, size=picture_HWC.shape))


def gaussian_blur(picture_HWC: Pixels, deviation: float, draw: np.random.Generator) -> Pixels:
    """Blur. deviation: of the kernel, in pixels."""
    return _pixels(gaussian_filter(picture_HWC / 255.0, (deviation, deviation, 0.0), mode="nearest"))


def contrast(picture_HWC: Pixels, share: float, draw: np.random.Generator) -> Pixels:
    """Lower the contrast. share: of the distance to each channel's mean that is left."""
    scaled_HWC = picture_HWC / 255.0
    mean_C = scaled_HWC.mean(axis=(0, 1), keepdims=True)
    return _pixels((scaled_HWC - mean_C) * share + mean_C)


def jpeg(picture_HWC: Pixels, quality: float, draw: np.random.Generator) -> Pixels:
    """Compress. quality: of Pillow's encoder, 0 to 95."""
    file = encode(Image.fromarray(picture_HWC), "jpeg", quality=round(quality))
    return np.asarray(Image.open(io.BytesIO(file)), dtype=np.uint8)


CORRUPTIONS = {
    "gaussian noise": Corruption((0.04, 0.06, 0.08, 0.09, 0.10), gaussian_noise),
    "gaussian blur": Corruption((0.4, 0.6, 0.7, 0.8, 1.0), gaussian_blur),
    "contrast": Corruption((0.75, 0.5, 0.4, 0.3, 0.15), contrast),
    "jpeg": Corruption((80, 65, 58, 50, 40), jpeg),
}


def corrupt(pictures_NHWC: Pixels, kind: str, severity: int, first: int = 0) -> Pixels:
    """The pictures, corrupted. Each draws from its own number in the stream, `first` for the first of them.

    Raises ValueError for an unknown kind or severity.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"corruption {kind!r} of severity {severity}: choose one of {', '.join(CORRUPTIONS)}, and 1 to 5"
        )
    corruption, parameter = CORRUPTIONS[kind], CORRUPTIONS[kind].parameters[severity - 1]
    pictures = enumerate(pictures_NHWC, start=first)
    return np.stack([corruption.apply(picture, parameter, np.random.default_rng(n)) for n, picture in pictures])


def _pixels(scaled_HWC: npt.NDArray[np.float64]) -> Pixels:
    # Cut off rather than rounded, as in the published sets.
    return (scaled_HWC.clip(0.0, 1.0) * 255.0).astype(np.uint8)
