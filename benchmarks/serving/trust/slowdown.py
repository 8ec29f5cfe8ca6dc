"""Slowdown attack: pictures changed too little to see, for which no early exit is confident.

Projected gradient descent on the distance of the early exits' calibrated answers from the uniform distribution. Source:
Hong, Kaya, Modoranu, Dumitras, "A Panda? No, It's a Sloth: Slowdown Attacks on Adaptive Multi-Exit Neural Network
Inference" (ICLR 2021). The attacker knows the network, its weights and its calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.pictures import Pixels
from offramp.models.bundle import Bundle
from offramp.models.preprocess import normalize
from offramp.training.evaluate.evaluation import ExitLogits, calibrated


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


def probabilities(bundle: Bundle, pictures_BHWC: Tensor) -> Tensor:
    """Calibrated probabilities of every exit, (K, B, classes)."""
    logits_KBC = torch.stack(bundle.net(normalize(pictures_BHWC, bundle.preprocessing)).logits)
    return calibrated(ExitLogits(logits_KBC, torch.empty(0)), bundle.calibration)


def _slow_down_batch(bundle: Bundle, clean_BHWC: Tensor, attack: SlowdownAttack, generator: torch.Generator) -> Tensor:
    clean = clean_BHWC.float()
    noise = torch.rand(clean.shape, generator=generator)
    moved = (clean + attack.reach * (2.0 * noise - 1.0)).clamp(0.0, 255.0)
    for _ in range(attack.steps):
        moved.requires_grad_(True)
        early = probabilities(bundle, moved)[:-1]
        # Cross-entropy of the uniform distribution with each early exit's answer, summed over exits and pictures.
        distance = -early.clamp_min(1e-12).log().mean(dim=2).sum()
        (slope,) = torch.autograd.grad(distance, moved)
        moved = moved.detach() - attack.step * slope.sign()
        moved = torch.minimum(torch.maximum(moved, clean - attack.reach), clean + attack.reach).clamp(0.0, 255.0)
    return moved.detach().round().to(torch.uint8)
