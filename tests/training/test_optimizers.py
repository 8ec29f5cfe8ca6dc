"""Optimisers: which parameter is moved how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.training.optimizers import KernelMuon, Optimizers
from offramp.training.recipes import Recipe


def network() -> MultiExitNet:
    torch.manual_seed(0)
    net: MultiExitNet = MultiExitNet(ModelConfig("resnet18", 3, width=4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


@pytest.mark.parametrize(("decay_norms", "expected"), [(True, 5e-4), (False, 0.0)])
def test_decay_reaches_vectors_only_where_the_recipe_says_so(
    toy_recipe: Recipe, decay_norms: bool, expected: float
) -> None:
    net = network()
    (sgd,) = Optimizers([net], replace(toy_recipe, decay_norms=decay_norms)).members
    kernels, vectors = sgd.param_groups
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (5e-4, expected)
    assert {p.ndim for p in vectors["params"]} == {1}
    assert min(p.ndim for p in kernels["params"]) == 2
    assert len(kernels["params"]) + len(vectors["params"]) == len(list(net.parameters()))
    assert (kernels["momentum"], kernels["nesterov"]) == (0.9, True)


@pytest.mark.parametrize(("architecture", "width"), [("resnet18", 4), ("resnext50_32x4d", 16)])
def test_muon_moves_whole_convolutions_and_sgd_all_else(toy_recipe: Recipe, architecture: str, width: int) -> None:
    net = MultiExitNet(ModelConfig(architecture, 3, width))
    sgd, muon = Optimizers([net], replace(toy_recipe, optimizer="muon")).members
    assert isinstance(muon, KernelMuon)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert {id(kernel) for kernel in muon.kernels} == {id(m.weight) for m in convolutions}
    theirs = sum(len(group["params"]) for group in sgd.param_groups)
    assert theirs + len(muon.kernels) == len(list(net.parameters()))


def channels_last(kernel: torch.Tensor) -> torch.Tensor:
    return kernel.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4, 1, 1), (4, 8, 3, 3)])
def test_a_step_is_torchs_muon_on_the_kernel_as_a_matrix(
    shape: tuple[int, ...], layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    kernel = nn.Parameter(layout(start.clone()))
    muon = KernelMuon([kernel], rate=0.1, decay=0.2)
    matrix = nn.Parameter(start.flatten(1).clone())
    reference = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.2)
    for gradient in gradients:
        kernel.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
        muon.step()
        reference.step()
        muon.zero_grad()
        assert kernel.grad is None
        assert muon.param_groups[0]["params"][0].grad is None
    # The order of a matrix's columns changes the rounding of bfloat16 sums, nothing else.
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), rtol=0.0, atol=0.01)
    assert not torch.allclose(kernel, start, atol=0.05)


def test_a_kernel_without_a_gradient_stays(toy_recipe: Recipe) -> None:
    kernels = [nn.Parameter(torch.ones(4, 4, 3, 3)) for _ in range(2)]
    muon = KernelMuon(kernels, rate=0.1, decay=0.2)
    kernels[0].grad = torch.randn(4, 4, 3, 3)
    muon.step()
    assert not torch.equal(kernels[0], torch.ones(4, 4, 3, 3))
    assert torch.equal(kernels[1], torch.ones(4, 4, 3, 3))


def test_all_follow_the_rate_as_a_share_of_their_own_peak(toy_recipe: Recipe) -> None:
    optimizers = Optimizers([network()], replace(toy_recipe, optimizer="muon", muon_rate=0.04))
    for share in (0.5, 0.25):
        optimizers.set_rate(share)
        rates = [group["lr"] for member in optimizers.members for group in member.param_groups]
        assert rates == pytest.approx([share * 0.05, share * 0.05, share * 0.04])
