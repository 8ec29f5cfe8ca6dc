"""Multiply-adds and parameters per stage and head, counted on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet

# Limits for a network that comes from a stranger. Multiply-adds of one picture: five times ResNet-152 at 224 pixels, a
# second of two CPU cores. Values of one layer's output: a quarter of a gigabyte.
MOST_MULTIPLY_ADDS = 64 * 10**9
MOST_VALUES = 1 << 26
# Side of an input in pixels, up to which a bounded count may compute.
LARGEST_RUN = 256


@dataclass(frozen=True)
class NetworkCost:
    """Multiply-adds (convolutions and matrix products of one picture) and parameters, for each stage and head."""

    stage_multiply_adds: tuple[int, ...]
    head_multiply_adds: tuple[int, ...]
    stage_parameters: tuple[int, ...]
    head_parameters: tuple[int, ...]

    @property
    def backbone_multiply_adds(self) -> int:
        """The plain network: every stage and the last head."""
        return sum(self.stage_multiply_adds) + self.head_multiply_adds[-1]

    @property
    def total_parameters(self) -> int:
        """Parameters of the network with all its heads."""
        return sum(self.stage_parameters) + sum(self.head_parameters)

    @property
    def sequential_multiply_adds(self) -> tuple[int, ...]:
        """What answering at exit k costs here: stages 1..k and heads 1..k."""
        steps = zip(self.stage_multiply_adds, self.head_multiply_adds, strict=True)
        return tuple(accumulate(stage + head for stage, head in steps))

    @property
    def own_head_multiply_adds(self) -> tuple[int, ...]:
        """What answering at exit k costs with its own head only, as the papers count: stages 1..k and head k."""
        stages = accumulate(self.stage_multiply_adds)
        return tuple(stage + head for stage, head in zip(stages, self.head_multiply_adds, strict=True))

    @property
    def compute(self) -> tuple[float, ...]:
        """Sequential cost relative to the deepest exit: the `compute` of an answer; 1.0 at the last exit."""
        full = self.sequential_multiply_adds[-1]
        return tuple(cost / full for cost in self.sequential_multiply_adds)


def count_cost(config: ModelConfig) -> NetworkCost:
    """The cost of a network from its description alone, counted on torch's meta device, which computes nothing."""
    with torch.device("meta"):
        return network_cost(MultiExitNet(config).eval())


def network_cost(net: MultiExitNet, is_bounded: bool = False) -> NetworkCost:
    """The cost of a network in evaluation mode, counted while one picture runs through it.

    It is quicker than `count_cost`, since torch takes a second to import its meta device. is_bounded: raise ValueError
    before an operation brings the sum above 64 billion multiply-adds, or gives more than 67 million values. It runs
    inputs above 256 pixels on the meta device: until the limit, a CPU computes for many seconds.
    """
    if is_bounded and net.config.input_size > LARGEST_RUN:
        with torch.device("meta"):
            net = MultiExitNet(net.config).eval()
    device, size = next(net.parameters()).device, net.config.input_size
    sums = [0]
    # In a device's mode nn.MultiheadAttention calls its matrix products one by one, which the counter sees.
    with torch.no_grad(), torch.device(device), _Counter(is_bounded) as counter:
        x_BCHW = torch.zeros(1, 3, size, size)
        for stage, head in zip(net.stages, net.heads, strict=True):
            x_BCHW = stage(x_BCHW)
            sums.append(counter.multiply_adds)
            head(x_BCHW)
            sums.append(counter.multiply_adds)
    counts = [after - before for before, after in pairwise(sums)]
    stage_parameters, head_parameters = (
        tuple(sum(parameter.numel() for parameter in part.parameters()) for part in parts)
        for parts in (net.stages, net.heads)
    )
    return NetworkCost(tuple(counts[::2]), tuple(counts[1::2]), stage_parameters, head_parameters)


class _Counter(TorchDispatchMode):
    """Adds up the multiply-adds of all convolutions, matrix products and attention, functional calls included.

    torch's FlopCounterMode counts an operation after it ran, which is too late for a bound. It knows no attention on a
    CPU, and imports torch's compiler, which takes seconds.
    """

    def __init__(self, is_bounded: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_bounded = is_bounded
        self.multiply_adds = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # With the default answer, True, torch imports its compiler to have it skip this class.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if work := _WORK.get(func.overloadpacket):
            multiply_adds, values = work(*args)
            self.multiply_adds += multiply_adds
            if self.is_bounded and (self.multiply_adds > MOST_MULTIPLY_ADDS or values > MOST_VALUES):
                raise ValueError(
                    f"one picture takes more than {MOST_MULTIPLY_ADDS / 1e9:g} billion multiply-adds, or a layer more "
                    f"than {MOST_VALUES / 1e6:.0f} million values: give a smaller input_size or width"
                )
        return func(*args, **(kwargs or {}))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: object,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    is_transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[int, int]:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True)
    if is_transposed:
        sides = [(side - 1) * s + d * (k - 1) + 1 + extra - 2 * p for side, k, s, p, d, extra in sizes]
        return x.numel() * weight[0].numel(), len(x) * weight.shape[1] * groups * prod(sides)
    sides = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d, _ in sizes]
    values = len(x) * len(weight) * prod(sides)
    return values * weight[0].numel(), values


def _product(*factors: Tensor) -> tuple[int, int]:
    # The last two are the matrices; addmm and baddbmm have a sum in front of them.
    left, right = factors[-2:]
    values = left.shape[:-1].numel() * right.shape[-1]
    return values * left.shape[-1], values


def _attention(query: Tensor, key: Tensor, value: Tensor, *options: object) -> tuple[int, int]:
    queries = query.shape[:-1].numel()
    return queries * key.shape[-2] * (query.shape[-1] + value.shape[-1]), queries * value.shape[-1]


# An operation's multiply-adds and its output's values, from its arguments.
_ATEN = torch.ops.aten
_WORK: dict[Any, Callable[..., tuple[int, int]]] = {
    _ATEN.convolution: _convolution,
    **dict.fromkeys((_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm), _product),
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention: _attention,
    _ATEN._scaled_dot_product_efficient_attention: _attention,
    _ATEN._scaled_dot_product_cudnn_attention: _attention,
}
