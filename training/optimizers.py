"""Optimisers of a recipe: momentum SGD, and Muon for the kernels of convolutions if the recipe names it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offramp.training.recipes import Recipe


class KernelMuon(torch.optim.Muon):
    """torch's Muon, which takes matrices, for convolution kernels (O, I, H, W) as O x IHW matrices.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(self, kernels: Iterable[Tensor], rate: float, decay: float) -> None:
        self.kernels = list(kernels)
        # The matrices share the kernels' memory, so that a step moves the kernels.
        matrices = [
            nn.Parameter(_in_memory_order(kernel.detach(), kernel).view(len(kernel), -1)) for kernel in self.kernels
        ]
        super().__init__(matrices, lr=rate, weight_decay=decay)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every kernel with a gradient."""
        assert closure is None
        for kernel, matrix in zip(self.kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if kernel.grad is None else _in_memory_order(kernel.grad, kernel).flatten(1)
        super().step()  # type: ignore[no-untyped-call]
        for matrix in self.param_groups[0]["params"]:
            matrix.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the kernels' gradients."""
        assert set_to_none
        for kernel in self.kernels:
            kernel.grad = None


def _in_memory_order(tensor_OIHW: Tensor, kernel_OIHW: Tensor) -> Tensor:
    """The tensor with its axes in the order of the kernel's memory."""
    return tensor_OIHW if kernel_OIHW.is_contiguous() else tensor_OIHW.permute(0, 2, 3, 1)


class Optimizers:
    """All optimisers of a run, as one."""

    def __init__(self, modules: Sequence[nn.Module], recipe: Recipe) -> None:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        # The kernel of a grouped convolution is a stack of matrices, that of a depthwise one a stack of vectors.
        whole = [m for part in modules for m in part.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
        muon = [m.weight for m in whole] if recipe.optimizer == "muon" else []
        of_muon = {id(parameter) for parameter in muon}
        kernels = [p for p in parameters if p.ndim > 1 and id(p) not in of_muon]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels},
            {"params": vectors, "weight_decay": recipe.weight_decay * recipe.decay_norms},
        ]
        sgd = torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        self.members: list[torch.optim.Optimizer] = [sgd]
        if muon:
            self.members.append(KernelMuon(muon, recipe.muon_rate, recipe.muon_decay))
        self._peaks = [[group["lr"] for group in member.param_groups] for member in self.members]

    def set_rate(self, share: float) -> None:
        """Set the learning rate, as a share (0..1) of each member's peak."""
        for member, peaks in zip(self.members, self._peaks, strict=True):
            for group, peak in zip(member.param_groups, peaks, strict=True):
                group["lr"] = share * peak

    def step(self) -> None:
        """Move all parameters with a gradient, and drop the gradients."""
        for member in self.members:
            member.step()
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of all members, in order."""
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Load the `state_dict` of an equal run. Raises ValueError for that of another."""
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)
