"""What every backbone family hands over: stages, and the channels that leave each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Backbone:
    """stages: modules run one after another, (B, C, H, W) each; channels: the width leaving each stage."""

    stages: list[nn.Sequential]
    channels: list[int]
