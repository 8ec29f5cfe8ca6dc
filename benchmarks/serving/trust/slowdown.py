"""Slowdown attack: pictures changed too little to see, for which no early exit is confident.

Projected gradient descent on the distance of the early exits' calibrated answers from the uniform distribution. Source:
Hong, Kaya, Modoranu, Dumitras, "A Panda? No, It's a Sloth: Slowdown Attacks on Adaptive Multi-Exit Neural Network
Inference" (ICLR 2021). The attacker knows the network, its weights and its calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.harness.pictures import Pixels
from offramp.models.bundle import Bundle
from offramp.models.preprocess import normalize


@dataclass(frozen=True)
class SlowdownAttack:
    """Parameters. reach, step: largest change of a channel of a pixel, in all and in one step, on the 0..255 scale."""

    reach: float = 8.0
    step: float = 2.0
    steps: int = 20
    batch_size: int = 128
    seed: int = 0


def slow_down(bundle: Bundle, pictures_NHWC: Pixels, attack: SlowdownAttack | None = None) -> Pixels:
    """The pictures, each changed by at most `attack.reach`, so that they go as deep as possible."""
    attack = attack or SlowdownAttack()
    bundle.net.eval()
    generator = torch.Generator().manual_seed(attack.seed)
    batches = torch.from_numpy(pictures_NHWC).split(attack.batch_size)
    return torch.cat([_slow_down_batch(bundle, clean_BHWC, attack, generator) for clean_BHWC in batches]).numpy()


def confidences(bundle: Bundle, pictures_NHWC: Pixels, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Calibrated confidence of every picture at every exit, (N, K)."""
    bundle.net.eval()
    with torch.inference_mode():
        found = [
            torch.stack([p_BC.max(dim=1).values for p_BC in _probabilities(bundle, pictures_BHWC)], dim=1)
            for pictures_BHWC in torch.from_numpy(pictures_NHWC).split(batch_size)
        ]
    confidence_NK: npt.NDArray[np.float32] = torch.cat(found).numpy()
    return confidence_NK


def _slow_down_batch(bundle: Bundle, clean_BHWC: Tensor, attack: SlowdownAttack, generator: torch.Generator) -> Tensor:
    clean = clean_BHWC.float()
    noise = torch.rand(clean.shape, generator=generator)
    moved = (clean + attack.reach * (2.0 * noise - 1.0)).clamp(0.0, 255.0)
    for _ in range(attack.steps):
        moved.requires_grad_(True)
        (slope,) = torch.autograd.grad(_distance_from_uniform(bundle, moved), moved)
        moved = moved.detach() - attack.step * slope.sign()
        moved = torch.minimum(torch.maximum(moved, clean - attack.reach), clean + attack.reach).clamp(0.0, 255.0)
    return moved.detach().round().to(torch.uint8)


def _distance_from_uniform(bundle: Bundle, pictures_BHWC: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution with each early exit's answer, summed over exits and pictures."""
    early = _probabilities(bundle, pictures_BHWC)[:-1]
    return -torch.stack([p_BC.clamp_min(1e-12).log().mean(dim=1) for p_BC in early]).sum()


def _probabilities(bundle: Bundle, pictures_BHWC: Tensor) -> list[Tensor]:
    """Calibrated probabilities of every exit, (B, classes)."""
    calibration, accumulated_BC, found = bundle.calibration, None, []
    logits = bundle.net(normalize(pictures_BHWC, bundle.preprocessing)).logits
    for exit, logits_BC in enumerate(logits, start=1):
        accumulated_BC = calibration.accumulate(exit, accumulated_BC, logits_BC)
        found.append(calibration.probabilities(exit, accumulated_BC))
    return found
