"""Small bundles for tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from offramp.models.bundle import Bundle
from offramp.models.certificate import Certificate, CertifiedPoint, ThresholdBound
from offramp.models.config import ModelConfig
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing

FOUR_EXITS = Calibration((1.5, 0.7, 1.0, 2.0), (0.0, 0.5, 0.0, 1.2))


def tiny_bundle(exits: tuple[int, ...] = (), calibration: Calibration = FOUR_EXITS) -> Bundle:
    """A ResNet-18 of width 4 with random weights and lived-in batch-norm statistics."""
    torch.manual_seed(0)
    config = ModelConfig("resnet18", num_classes=3, width=4, input_size=32, exits=exits)
    net = MultiExitNet(config).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32) * 2 + 1)
    return Bundle(
        name="tiny",
        version="1",
        config=config,
        preprocessing=Preprocessing(32, crop_fraction=0.875, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        labels=("cat", "dog", "Übergröße 鳥"),
        calibration=calibration,
        threshold=0.85,
        net=net.eval(),
        exits=tuple({"exit": exit, "accuracy": 0.5} for exit in range(1, net.num_exits + 1)),
        operating_points=({"threshold": 0.5},),
        training={"seed": 7, "recipe": {"epochs": 3}},
    )


def certificate_of_nothing(points: Mapping[float, float]) -> Certificate:
    """By promise, the threshold of all three early exits: random weights keep no promise, and no test says they do."""
    certified = tuple(
        CertifiedPoint(promised, (threshold,) * 3, 0.0, promised, 0.0, 0.0, 0.5, (0.25,) * 4)
        for promised, threshold in points.items()
    )
    return Certificate(0.05, 100, "noise", "0" * 64, "2026-05-01", certified, (ThresholdBound(0.0, 0.5),))
