"""Tiny random networks whose answers differ from picture to picture at every exit, and pictures for them."""

from __future__ import annotations

import numpy as np
import torch

from offramp.models.bundle import Bundle
from offramp.models.config import ModelConfig
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize

SIZE = 16
ENSEMBLE_WEIGHTS = (0.0, 0.5, 1.0, 0.7)


def draw_pictures(number: int) -> list[np.ndarray]:
    """Slopes of colour under noise, uint8 (SIZE, SIZE, 3)."""
    generator = np.random.default_rng(0)
    slope = np.linspace(-1, 1, SIZE)

    def draw() -> np.ndarray:
        down, across = generator.uniform(-120, 120, (2, 3))
        plane = slope[:, None, None] * down + slope[None, :, None] * across
        noise = generator.normal(0, generator.uniform(5, 60), (SIZE, SIZE, 3))
        return np.clip(generator.uniform(0, 255, 3) + plane + noise, 0, 255).astype(np.uint8)

    return [draw() for _ in range(number)]


def lively_net(pictures: list[np.ndarray], num_classes: int) -> MultiExitNet:
    """With lived-in batch norms, and classifiers scaled so that classes and confidences tell the pictures apart."""
    torch.manual_seed(0)
    net = MultiExitNet(ModelConfig("resnet18", num_classes, width=8, input_size=SIZE)).train()
    x_BCHW = normalize(torch.from_numpy(np.stack(pictures)), Preprocessing(SIZE))
    with torch.no_grad():
        for convolution in (module for module in net.modules() if isinstance(module, torch.nn.Conv2d)):
            convolution.weight.mul_(convolution.groups**0.5)
        for _ in range(5):
            net(x_BCHW)
        net.eval()
        for head, logits_BC in zip(net.heads, net(x_BCHW).logits, strict=True):
            centre_C, spread = logits_BC.mean(dim=0), (logits_BC - logits_BC.mean(dim=0)).std()
            linear = head.classifier
            assert isinstance(linear, torch.nn.Linear)
            linear.bias.copy_((linear.bias - centre_C) / spread)
            linear.weight.copy_(linear.weight / spread)
    return net


def lively_bundle(pictures: list[np.ndarray]) -> Bundle:
    """Ten classes, four exits; the second, third and last say what they say together with those before."""
    net = lively_net(pictures, 10)
    calibration = Calibration((0.6, 0.5, 0.7, 0.6), ENSEMBLE_WEIGHTS)
    return Bundle("tiny", "1", net.config, Preprocessing(SIZE), tuple("abcdefghij"), calibration, 0.5, net)
