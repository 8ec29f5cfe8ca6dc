"""Student: the network and its adapters, as one module."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from offramp.models.multi_exit import MultiExitNet
from offramp.training.methods import Method


class StudentOutputs(NamedTuple):
    """logits: (B, classes) of every exit. students: adapted embeddings. embedding_BD: their target."""

    logits: list[Tensor]
    students: list[Tensor]
    embedding_BD: Tensor


class Student(nn.Module):
    """All parts that are trained: the network, and the adapters of the method's feature term."""

    def __init__(self, net: MultiExitNet, adapters: nn.ModuleList, method: Method) -> None:
        super().__init__()
        self.net = net
        self.adapters = adapters
        self.feature_exits = method.feature_exits(net.num_exits)

    def forward(self, x_BCHW: Tensor, backbone_only: bool) -> StudentOutputs:
        """(B, 3, H, W) normalised -> the inputs of the losses; `backbone_only`: of the deepest exit alone."""
        if backbone_only:
            logits, embeddings = self.net.forward_last(x_BCHW)
            return StudentOutputs(logits, [], embeddings[-1])
        logits, embeddings = self.net(x_BCHW)
        pairs = zip(self.adapters, self.feature_exits, strict=True)
        return StudentOutputs(logits, [adapter(embeddings[exit - 1]) for adapter, exit in pairs], embeddings[-1])


def feature_adapters(net: MultiExitNet, method: Method) -> nn.ModuleList:
    """Layers that bring each student's embedding to the teacher's width, one for each exit of the feature term."""
    width = net.embedding_sizes[-1]
    sizes = [net.embedding_sizes[exit - 1] for exit in method.feature_exits(net.num_exits)]
    return nn.ModuleList(
        nn.Linear(size, width) if method.adapters or size != width else nn.Identity() for size in sizes
    )
