"""What every backbone family hands over: stages, and the channels that leave each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from offramp.models.heads import Head


@dataclass(frozen=True)
class Backbone:
    """A network cut where exits may be.

    stages: modules run one after another, (B, C, H, W) each; channels: the width leaving each stage.
    classifier: the network's own last head; None for average pool and a linear layer on `channels[-1]`.
    initialised: its weights are as they should be, as a stranger's pretrained ones; else they are drawn anew.
    """

    stages: Sequence[nn.Module]
    channels: Sequence[int]
    classifier: Head | None = None
    initialised: bool = False
