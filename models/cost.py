"""Multiply-adds and parameters per stage and head, counted on the model itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor, nn

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet

# Of one picture, for a network that comes from a stranger: five times ResNet-152 at 224 pixels, a second of two CPU
# cores; and the values of one layer's output, a quarter of a gigabyte.
MOST_MULTIPLY_ADDS = 64 * 10**9
MOST_VALUES = 1 << 26
# Side of an input, in pixels, up to which a bounded count may run the network.
LARGEST_RUN = 256

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


@dataclass(frozen=True)
class NetworkCost:
    """Multiply-adds (of convolutions and linear layers, one picture) and parameters, a number per stage and head."""

    stage_multiply_adds: tuple[int, ...]
    head_multiply_adds: tuple[int, ...]
    stage_parameters: tuple[int, ...]
    head_parameters: tuple[int, ...]

    @property
    def backbone_multiply_adds(self) -> int:
        """The plain network: every stage and the last head."""
        return sum(self.stage_multiply_adds) + self.head_multiply_adds[-1]

    @property
    def backbone_parameters(self) -> int:
        """Parameters of the plain network."""
        return sum(self.stage_parameters) + self.head_parameters[-1]

    @property
    def total_parameters(self) -> int:
        """Parameters of the network with all its heads."""
        return sum(self.stage_parameters) + sum(self.head_parameters)

    @property
    def sequential_multiply_adds(self) -> tuple[int, ...]:
        """What answering at exit k really costs: stages 1..k and all heads passed on the way."""
        spent, sequence = 0, []
        for stage, head in zip(self.stage_multiply_adds, self.head_multiply_adds, strict=True):
            spent += stage + head
            sequence.append(spent)
        return tuple(sequence)

    @property
    def own_head_multiply_adds(self) -> tuple[int, ...]:
        """What answering at exit k costs with its own head only, as the papers count: stages 1..k and head k."""
        spent, sequence = 0, []
        for stage, head in zip(self.stage_multiply_adds, self.head_multiply_adds, strict=True):
            spent += stage
            sequence.append(spent + head)
        return tuple(sequence)

    @property
    def sequential_over_backbone(self) -> tuple[float, ...]:
        """Sequential cost relative to the plain network; above 1 at the last exit, by what the heads cost."""
        return tuple(cost / self.backbone_multiply_adds for cost in self.sequential_multiply_adds)

    @property
    def compute(self) -> tuple[float, ...]:
        """Sequential cost relative to the deepest exit: the `compute` of an answer; 1.0 at the last exit."""
        full = self.sequential_multiply_adds[-1]
        return tuple(cost / full for cost in self.sequential_multiply_adds)


def count_cost(config: ModelConfig) -> NetworkCost:
    """Of a network that is not there: counted on torch's meta device, where nothing is computed."""
    with torch.device("meta"):
        return network_cost(_shapes_only(config))


def network_cost(net: MultiExitNet, is_bounded: bool = False) -> NetworkCost:
    """Of a network in evaluation mode, by one picture through all of it.

    For one that is there this is the quicker way: the meta device takes a second to be imported.
    is_bounded: raise ValueError, in front of the layer that would go beyond, for more than 64 billion multiply-adds or
    a layer of more than 67 million values. Inputs above 256 pixels are then counted on the meta device.
    """
    if is_bounded and net.config.input_size > LARGEST_RUN:
        with torch.device("meta"):
            net = _shapes_only(net.config)
    parameter = next(net.parameters())
    size = net.config.input_size
    counts = dict.fromkeys([*net.stages, *net.heads], 0)
    layers = [(part, layer) for part in counts for layer in part.modules() if isinstance(layer, Layer)]
    hooks = [layer.register_forward_hook(_counter(counts, part)) for part, layer in layers]
    if is_bounded:
        hooks += [layer.register_forward_pre_hook(_guard(counts)) for _, layer in layers]
    try:
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return NetworkCost(
        stage_multiply_adds=tuple(counts[stage] for stage in net.stages),
        head_multiply_adds=tuple(counts[head] for head in net.heads),
        stage_parameters=tuple(_parameters(stage) for stage in net.stages),
        head_parameters=tuple(_parameters(head) for head in net.heads),
    )


def _shapes_only(config: ModelConfig) -> MultiExitNet:
    """A network in evaluation mode whose batch norms hand on what they get: they cost nothing here.

    The meta device works a batch norm's shape out in Python, which is half the time of a count.
    """
    net = MultiExitNet(config).eval()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.forward = nn.Identity().forward  # type: ignore[method-assign]
    return net


def _counter(counts: dict[nn.Module, int], part: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            taps = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            counts[part] += output.numel() * taps
        elif isinstance(layer, nn.ConvTranspose2d):
            taps = layer.out_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            counts[part] += inputs[0].numel() * taps
        elif isinstance(layer, nn.Linear):
            counts[part] += output.numel() * layer.in_features

    return count


def _guard(counts: dict[nn.Module, int]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Layer)
        multiply_adds, values = _expected(layer, inputs[0])
        if sum(counts.values()) + multiply_adds > MOST_MULTIPLY_ADDS or values > MOST_VALUES:
            raise ValueError(
                f"one picture takes more than {MOST_MULTIPLY_ADDS / 1e9:g} billion multiply-adds, or a layer more than "
                f"{MOST_VALUES / 1e6:.0f} million values: give a smaller input_size or width"
            )

    return check


def _expected(layer: Layer, x: Tensor) -> tuple[int, int]:
    """Multiply-adds of a layer and values of its output, up to what padding adds."""
    if isinstance(layer, nn.Linear):
        values = x.numel() // layer.in_features * layer.out_features
        return values * layer.in_features, values
    taps = layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):
        return x.numel() * taps, x.numel() // layer.in_channels * layer.out_channels * prod(layer.stride)
    values = layer.out_channels * prod(ceil(side / step) for side, step in zip(x.shape[-2:], layer.stride, strict=True))
    return values * taps, values


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
