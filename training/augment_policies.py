"""Augmentation policies for whole uint8 batches: AutoAugment, RandAugment and TrivialAugment.

A policy draws for each sample which operations it gets and how strong; the samples of a batch are then
grouped by operation, so that each operation runs once over all its members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from training import augment_ops as ops
from training.augment_learned import SUB_POLICIES, Searched
from training.augment_ops import Colour, Interpolation


@dataclass(frozen=True)
class Border:
    """How geometric operations treat what they fetch: the colour outside the image, and the interpolation."""

    fill: int | Colour = 128
    interpolation: Interpolation = "nearest"


# Images, one strength for each, border. Strengths of enhancements are changes of the factor 1.
Operation = Callable[[Tensor, Tensor, Border], Tensor]

OPERATIONS: dict[str, Operation] = {
    "identity": lambda images_BCHW, _strength_B, _border: images_BCHW,
    "shear_x": lambda images_BCHW, amount_B, to: ops.shear_x(images_BCHW, amount_B, to.fill, to.interpolation),
    "shear_y": lambda images_BCHW, amount_B, to: ops.shear_y(images_BCHW, amount_B, to.fill, to.interpolation),
    "translate_x": lambda images_BCHW, px_B, to: ops.translate_x(images_BCHW, px_B, to.fill, to.interpolation),
    "translate_y": lambda images_BCHW, px_B, to: ops.translate_y(images_BCHW, px_B, to.fill, to.interpolation),
    "rotate": lambda images_BCHW, degrees_B, to: ops.rotate(images_BCHW, degrees_B, to.fill, to.interpolation),
    "brightness": lambda images_BCHW, change_B, _border: ops.brightness(images_BCHW, 1 + change_B),
    "saturation": lambda images_BCHW, change_B, _border: ops.saturation(images_BCHW, 1 + change_B),
    "contrast": lambda images_BCHW, change_B, _border: ops.contrast(images_BCHW, 1 + change_B),
    "sharpness": lambda images_BCHW, change_B, _border: ops.sharpness(images_BCHW, 1 + change_B),
    "posterize": lambda images_BCHW, bits_B, _border: ops.posterize(images_BCHW, bits_B),
    "solarize": lambda images_BCHW, threshold_B, _border: ops.solarize(images_BCHW, threshold_B),
    "auto_contrast": lambda images_BCHW, _strength_B, _border: ops.auto_contrast(images_BCHW),
    "equalize": lambda images_BCHW, _strength_B, _border: ops.equalize(images_BCHW),
    "invert": lambda images_BCHW, _strength_B, _border: ops.invert(images_BCHW),
}

GEOMETRIC = frozenset(("shear_x", "shear_y", "translate_x", "translate_y", "rotate"))
SIGNED = GEOMETRIC | {"brightness", "saturation", "contrast", "sharpness"}

# The fourteen of TrivialAugment and of RandAugment. The first of OPERATIONS, in its order, so that one number means
# the same operation in both.
UNLEARNED_OPERATIONS: tuple[str, ...] = tuple(name for name in OPERATIONS if name != "invert")
TRIVIAL_LEVELS = 31
RAND_STRONGEST = 20


def auto_magnitudes(height: int, width: int) -> dict[str, tuple[float, ...]]:
    """What AutoAugment's strengths 0 to 9 mean for each operation on images of this size.

    Translations are the paper's 150 of 331 pixels at most, in proportion and in whole pixels.
    """
    return _auto_strengths([level / 9 for level in range(10)], height, width)


def rand_magnitudes(height: int, width: int) -> dict[str, tuple[float, ...]]:
    """What RandAugment's strengths 0 to 20 mean for each operation on images of this size.

    10 is the strongest of AutoAugment, as in the paper. Beyond it, where the paper's settings go too, only the
    geometric operations go on growing: the others have come to their end (a factor near 0, a full inversion).
    """
    growing = [level / 10 for level in range(RAND_STRONGEST + 1)]
    geometry = _auto_strengths(growing, height, width)
    tones = _auto_strengths([min(share, 1.0) for share in growing], height, width)
    return {name: geometry[name] if name in GEOMETRIC else tones[name] for name in OPERATIONS}


def trivial_magnitudes() -> dict[str, tuple[float, ...]]:
    """What TrivialAugment's strengths 0 to 30 mean for each operation: its "wide" search space."""
    shares = [level / (TRIVIAL_LEVELS - 1) for level in range(TRIVIAL_LEVELS)]
    return _strengths(shares, shear=0.99, down_and_across_px=(32, 32), degrees=135, change=0.99, dropped_bits=6)


def _auto_strengths(shares: list[float], height: int, width: int) -> dict[str, tuple[float, ...]]:
    limit_px = (height * 150 / 331, width * 150 / 331)
    return _strengths(shares, shear=0.3, down_and_across_px=limit_px, degrees=30, change=0.9, dropped_bits=4)


def _strengths(
    shares: list[float],
    *,
    shear: float,
    down_and_across_px: tuple[float, float],
    degrees: float,
    change: float,
    dropped_bits: int,
) -> dict[str, tuple[float, ...]]:
    """The range of each operation divided evenly; the arguments are the strongest values."""
    down_px, across_px = down_and_across_px
    strengths = {name: tuple(0.0 for _ in shares) for name in OPERATIONS}
    strengths["shear_x"] = strengths["shear_y"] = tuple(shear * share for share in shares)
    strengths["translate_x"] = tuple(float(int(across_px * share)) for share in shares)
    strengths["translate_y"] = tuple(float(int(down_px * share)) for share in shares)
    strengths["rotate"] = tuple(degrees * share for share in shares)
    for name in ("brightness", "saturation", "contrast", "sharpness"):
        strengths[name] = tuple(change * share for share in shares)
    strengths["posterize"] = tuple(8.0 - round(dropped_bits * share) for share in shares)
    strengths["solarize"] = tuple(256.0 * (1 - share) for share in shares)
    return strengths


def auto_augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    fill: int | Colour = 128,
    interpolation: Interpolation = "nearest",
    searched: Searched = "cifar10",
) -> Tensor:
    """Give each sample one of the 25 sub-policies that AutoAugment found on CIFAR-10 or on ImageNet.

    Each of its two operations happens with its own probability; geometric operations and enhancements get a
    random sign. Source: Cubuk et al., "AutoAugment" (CVPR 2019, arXiv 1805.09501).
    """
    ops.check_images(images_BCHW)
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    tables = _auto_tables(searched, height, width, device)
    chosen_B = torch.randint(0, len(SUB_POLICIES[searched]), (batch,), generator=generator, device=device)
    for place in range(2):
        happens_B = torch.rand(batch, generator=generator, device=device) < tables.probability_S2[chosen_B, place]
        operation_B = torch.where(happens_B, tables.operation_S2[chosen_B, place], 0)
        strength_B = _with_random_sign(operation_B, tables.strength_S2[chosen_B, place], generator)
        images_BCHW = apply_operations(images_BCHW, operation_B, strength_B, Border(fill, interpolation))
    return images_BCHW


def check_rand(operations: int, magnitude: int) -> None:
    """Raise ValueError for a number of operations or a magnitude that RandAugment does not have."""
    if operations < 1:
        raise ValueError(f"rand_operations is {operations}; give 1 or more (2 is usual), or another policy for none")
    if not 0 <= magnitude <= RAND_STRONGEST:
        raise ValueError(
            f"rand_magnitude is {magnitude}; give 0 to {RAND_STRONGEST}, where 10 is the strongest of AutoAugment"
        )


def rand_augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    fill: int | Colour = 128,
    interpolation: Interpolation = "nearest",
    *,
    operations: int = 2,
    magnitude: int = 9,
) -> Tensor:
    """Give each sample so many operations, each any of fourteen, all at one strength (`rand_magnitudes`).

    Geometric operations and enhancements get a random sign. Raises ValueError for no operations or a magnitude
    out of range. Source: Cubuk et al., "RandAugment" (NeurIPS 2020, arXiv 1909.13719).
    """
    ops.check_images(images_BCHW)
    check_rand(operations, magnitude)
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    strength_O = _rand_table(magnitude, height, width, device)
    for _ in range(operations):
        operation_B = torch.randint(0, len(UNLEARNED_OPERATIONS), (batch,), generator=generator, device=device)
        strength_B = _with_random_sign(operation_B, strength_O[operation_B], generator)
        images_BCHW = apply_operations(images_BCHW, operation_B, strength_B, Border(fill, interpolation))
    return images_BCHW


def trivial_augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    fill: int | Colour = 128,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """Give each sample one operation of fourteen at one strength of 31, all alike in probability.

    Source: Müller & Hutter, "TrivialAugment" (ICCV 2021, arXiv 2103.10158), the "wide" space.
    """
    ops.check_images(images_BCHW)
    batch = images_BCHW.shape[0]
    device = images_BCHW.device
    operation_B = torch.randint(0, len(UNLEARNED_OPERATIONS), (batch,), generator=generator, device=device)
    level_B = torch.randint(0, TRIVIAL_LEVELS, (batch,), generator=generator, device=device)
    strength_B = _with_random_sign(operation_B, _trivial_table(device)[operation_B, level_B], generator)
    return apply_operations(images_BCHW, operation_B, strength_B, Border(fill, interpolation))


def apply_operations(images_BCHW: Tensor, operation_B: Tensor, strength_B: Tensor, border: Border) -> Tensor:
    """Give each sample the operation of its number (place in OPERATIONS, identity is 0) at its strength.

    One transfer from the device tells how many samples each operation gets.
    """
    member_counts = operation_B.bincount(minlength=len(OPERATIONS)).tolist()
    members_of_each = operation_B.argsort(stable=True).split(member_counts)
    result_BCHW = images_BCHW.clone()
    for (name, operation), members_M in zip(OPERATIONS.items(), members_of_each, strict=True):
        if name != "identity" and len(members_M):
            result_BCHW[members_M] = operation(images_BCHW[members_M], strength_B[members_M], border)
    return result_BCHW


def _with_random_sign(operation_B: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    signed_B = _signed_table(operation_B.device)[operation_B]
    negative_B = torch.rand(operation_B.shape, generator=generator, device=operation_B.device) < 0.5
    return torch.where(signed_B & negative_B, -strength_B, strength_B)


# The tables below are cached and shared: they are read, never written.


@dataclass(frozen=True)
class _AutoTables:
    """The sub-policies as tensors, S sub-policies × 2 places."""

    operation_S2: Tensor
    probability_S2: Tensor
    strength_S2: Tensor


@lru_cache(maxsize=16)
def _auto_tables(searched: Searched, height: int, width: int, device: torch.device) -> _AutoTables:
    pairs = SUB_POLICIES[searched]
    strengths = auto_magnitudes(height, width)
    places = {name: place for place, name in enumerate(OPERATIONS)}
    return _AutoTables(
        operation_S2=torch.tensor([[places[name] for name, _, _ in pair] for pair in pairs], device=device),
        probability_S2=torch.tensor([[probability for _, probability, _ in pair] for pair in pairs], device=device),
        strength_S2=torch.tensor(
            [[strengths[name][level] for name, _, level in pair] for pair in pairs], device=device
        ),
    )


@lru_cache(maxsize=16)
def _rand_table(magnitude: int, height: int, width: int, device: torch.device) -> Tensor:
    strengths = rand_magnitudes(height, width)
    return torch.tensor([strengths[name][magnitude] for name in UNLEARNED_OPERATIONS], device=device)


@lru_cache(maxsize=16)
def _trivial_table(device: torch.device) -> Tensor:
    strengths = trivial_magnitudes()
    return torch.tensor([strengths[name] for name in UNLEARNED_OPERATIONS], device=device)


@lru_cache(maxsize=16)
def _signed_table(device: torch.device) -> Tensor:
    return torch.tensor([name in SIGNED for name in OPERATIONS], device=device)
