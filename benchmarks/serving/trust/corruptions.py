"""Corrupted pictures of rising severity, as in CIFAR-10-C and CIFAR-100-C.

Kinds and parameters of severities 1 to 5: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), those for pictures of 32 pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.harness.pictures import Pixels, encode

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(picture_HWC: Any, deviation: float, draw: np.random.Generator) -> Any:
    """Noise of that deviation."""
    return picture_HWC + draw.normal(scale=deviation, size=picture_HWC.shape)


def gaussian_blur(picture_HWC: Any, deviation: float, draw: np.random.Generator) -> Any:
    """A kernel of that deviation in pixels."""
    return gaussian_filter(picture_HWC, (deviation, deviation, 0.0), mode="nearest")


def contrast(picture_HWC: Any, share: float, draw: np.random.Generator) -> Any:
    """That share of the distance to each channel's mean."""
    mean_C = picture_HWC.mean(axis=(0, 1), keepdims=True)
    return (picture_HWC - mean_C) * share + mean_C


def jpeg(picture_HWC: Any, quality: float, draw: np.random.Generator) -> Any:
    """That quality of Pillow's encoder, 0 to 95."""
    file = encode(Image.fromarray((picture_HWC * 255.0).round().astype(np.uint8)), "jpeg", quality=round(quality))
    return np.asarray(Image.open(io.BytesIO(file))) / 255.0


# By kind: the function, of pictures on the 0..1 scale, and its parameter for each severity.
CORRUPTIONS: dict[str, tuple[Callable[[Any, float, np.random.Generator], Any], tuple[float, ...]]] = {
    "gaussian noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "gaussian blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}


def corrupt(pictures_NHWC: Pixels, kind: str, severity: int, first: int = 0) -> Pixels:
    """The pictures, corrupted. Each draws from its own number in the stream, which begins with `first`.

    Raises ValueError for an unknown kind or severity.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"corruption {kind!r} of severity {severity}: choose one of {', '.join(CORRUPTIONS)}, and 1 to 5"
        )
    apply, parameters = CORRUPTIONS[kind]
    draws = (np.random.default_rng(number) for number in range(first, first + len(pictures_NHWC)))
    pairs = zip(pictures_NHWC / 255.0, draws, strict=True)
    scaled = np.stack([apply(picture_HWC, parameters[severity - 1], draw) for picture_HWC, draw in pairs])
    # Cut off rather than rounded, as in the published sets. The small number keeps x / 255 * 255 from falling below x.
    return (scaled.clip(0.0, 1.0) * 255.0 + 1e-9).astype(np.uint8)
