"""MultiExitNet: a backbone in stages, with a head after each."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offramp.models.backbones import find_architecture
from offramp.models.config import ModelConfig
from offramp.models.heads import HEADS, FinalHead
from offramp.models.resize import resize


class ExitOutputs(NamedTuple):
    """The outputs of every exit for one batch: logits (B, classes) and embeddings (B, D), shallowest first."""

    logits: list[Tensor]
    embeddings: list[Tensor]


class MultiExitNet(nn.Module):
    """Stages 1..K of a backbone, and a head after each. Inputs are normalised floats (B, 3, H, W).

    Source: Zhang, Bao, Ma, "Self-Distillation: Towards Efficient and Compact Neural Networks" (TPAMI 2022).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        backbone = find_architecture(config.architecture).build(config)
        exits = config.exits or tuple(range(1, len(backbone.stages) + 1))
        if exits[-1] != len(backbone.stages):
            raise ValueError(
                f"exits {list(exits)} do not fit {config.architecture}: it has {len(backbone.stages)} stages, "
                f"and the last exit is stage {len(backbone.stages)}: end with it, such as 2,{len(backbone.stages)}"
            )
        head = HEADS[config.head]
        self.stages = nn.ModuleList(_join(backbone.stages[start:end]) for start, end in pairwise((0, *exits)))
        self.heads = nn.ModuleList(head(list(backbone.channels[k - 1 :]), config.num_classes) for k in exits[:-1])
        self.heads.append(backbone.classifier or FinalHead(backbone.channels[-1], config.num_classes))
        resize(self, config.shapes)
        (self.heads[:-1] if backbone.initialised else self).apply(_initialise)
        if config.shapes:
            self._check_shapes()

    @property
    def num_exits(self) -> int:
        """K, the number of stages and of exits."""
        return len(self.stages)

    @property
    def embedding_sizes(self) -> tuple[int, ...]:
        """D of every exit: the width of its embedding."""
        return tuple(head.embedding_size for head in self.heads)  # type: ignore[misc]

    def run_stage(self, stage: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run stage 1..K and its head: features for the next stage (B, C, H', W'), and logits (B, classes)."""
        features_BCHW, _, logits_BC = self._step(stage, x)
        return features_BCHW, logits_BC

    def forward(self, x_BCHW: Tensor) -> ExitOutputs:
        """Run all stages and all heads."""
        outputs = ExitOutputs([], [])
        for stage in range(1, self.num_exits + 1):
            x_BCHW, embedding_BD, logits_BC = self._step(stage, x_BCHW)
            outputs.logits.append(logits_BC)
            outputs.embeddings.append(embedding_BD)
        return outputs

    def forward_last(self, x_BCHW: Tensor) -> ExitOutputs:
        """Run all stages and the last head alone."""
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        embedding_BD, logits_BC = self.heads[-1](x_BCHW)
        return ExitOutputs([logits_BC], [embedding_BD])

    def _check_shapes(self) -> None:
        size, expected = self.config.input_size, (1, self.config.num_classes)
        try:
            # torch's meta device works out shapes and computes nothing.
            with torch.no_grad():
                outputs = deepcopy(self).to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
        except RuntimeError as error:
            raise ValueError(f"shapes do not fit together: {error}") from error
        if any(tuple(logits_BC.shape) != expected for logits_BC in outputs.logits):
            raise ValueError(f"shapes leave a classifier without its {self.config.num_classes} classes")

    def _step(self, stage: int, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features_BCHW = self.stages[stage - 1](x_BCHW)
        embedding_BD, logits_BC = self.heads[stage - 1](features_BCHW)
        return features_BCHW, embedding_BD, logits_BC


def _join(stages: Sequence[nn.Module]) -> nn.Module:
    return stages[0] if len(stages) == 1 else nn.Sequential(*stages)


def _initialise(module: nn.Module) -> None:
    # Convolutions: He et al. 2015, fan-out, as in the journal paper's code. On the meta device, which has nothing to
    # draw, torch would import for two seconds to do it.
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        torch.nn.init.zeros_(module.bias)
