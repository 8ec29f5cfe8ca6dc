"""Backbone: a network as stages, and the channels that leave each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from offramp.models.heads import Head


@dataclass(frozen=True)
class Backbone:
    """A network, cut at the places for exits.

    stages: modules that run one after another, each with an output (B, C, H, W). channels: C of each output.
    classifier: the network's own last head; None for average pool and a linear layer on `channels[-1]`.
    initialised: keep the weights, such as pretrained ones; else `MultiExitNet` draws them anew.
    """

    stages: Sequence[nn.Module]
    channels: Sequence[int]
    classifier: Head | None = None
    initialised: bool = False
