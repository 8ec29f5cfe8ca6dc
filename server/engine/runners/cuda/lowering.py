"""The network as a GPU runs it fastest: batch norms folded into convolutions, weights in half the bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from offramp.models.device import has_bfloat16
from offramp.models.layers import DepthwiseConv, Projection
from offramp.models.multi_exit import MultiExitNet

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How much larger values may be than on the pictures that were tried.
HEADROOM = 8.0
# Convolutions that do nothing but convolve when no gradients are wanted.
FOLDABLE = (nn.Conv2d, Projection, DepthwiseConv)


class WholeLinear(nn.Linear):
    """A linear layer in float32 whatever surrounds it: logits with 8 bits of mantissa would move confidences by 1 %."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def native_precisions(device: torch.device) -> tuple[str, ...]:
    """What a device computes in at full speed, the preferred first.

    float16 before bfloat16: on tensor cores it is as fast, and its three more bits of mantissa keep answers some ten
    times nearer to the reference's. A CPU is here for tests.
    """
    if device.type != "cuda":
        return "float32", "bfloat16", "float16"
    return ("float16", "bfloat16", "float32") if has_bfloat16(device) else ("float16", "float32")


def choose_precision(name: str, native: Sequence[str], largest_value: float) -> torch.dtype:
    """The type of weights and features. "auto": the first of `native` that has room for the network's values.

    largest_value: of anything that the network computes, as far as it was tried; float16 ends at 65504. Raises
    ValueError for a name that is unknown, or not among `native`.
    """
    if name == "auto":
        has_room = largest_value * HEADROOM < torch.finfo(torch.float16).max
        name = next(each for each in native if each != "float16" or has_room)
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown: give auto, {', '.join(PRECISIONS)}")
    if name not in native:
        raise ValueError(f"precision {name!r} is not there on this device: give auto, {', '.join(native)}")
    return PRECISIONS[name]


@torch.no_grad()
def largest_value(net: nn.Module, x_BCHW: Tensor) -> float:
    """The largest absolute value of any parameter, and of what goes into or comes out of any module of `net`."""
    largest = [0.0, *(float(parameter.abs().max()) for parameter in net.parameters() if parameter.numel())]

    def look(_module: nn.Module, inputs: Any, output: Any) -> None:
        floats = (tensor for tensor in _tensors([inputs, output]) if tensor.is_floating_point() and tensor.numel())
        largest.extend(float(tensor.abs().max()) for tensor in floats)

    hooks = [module.register_forward_hook(look) for module in net.modules()]
    net(x_BCHW)
    for hook in hooks:
        hook.remove()
    return max(largest)


def folded(net: MultiExitNet, device: torch.device) -> MultiExitNet:
    """A copy for inference on `device`: float32, channels-last, batch norms folded, classifiers WholeLinear."""
    copied = deepcopy(net).eval().requires_grad_(False)
    copied.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = copied.config.input_size
    fold_batch_norms(copied, torch.zeros(1, 3, size, size, device=device))
    for head in copied.heads:
        head.classifier = WholeLinear(head.classifier)  # type: ignore[arg-type]
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def cast_weights(net: nn.Module, dtype: torch.dtype) -> None:
    """Give convolutions and linear layers weights of `dtype`, in place, as `torch.autocast` would at every call.

    What autocast computes in float32, such as norms that were not folded, and the classifiers stay float32.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) or isinstance(module, WholeLinear):
            continue
        # On a CPU it computes in float32 even under autocast.
        if not isinstance(module, DepthwiseConv) or module.weight.device.type != "cpu":
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def fold_batch_norms(net: nn.Module, x_BCHW: Tensor) -> int:
    """Fold every batch norm that follows a convolution into it, in place; returns how many.

    Found by running `net`, in evaluation mode, on x_BCHW and watching the operations, so that any code will do: a pair
    is folded where the norm alone reads what the convolution gives, and each runs once.
    """
    watch = _Operations()
    with watch:
        net(x_BCHW)
    convolutions = {id(module.weight): module for module in net.modules() if _is_plain(module, FOLDABLE)}
    norms = {id(module.running_mean): module for module in net.modules() if _is_plain(module, (nn.BatchNorm2d,))}
    folded: set[nn.Module] = set()
    for weight, output, running_mean in watch.pairs:
        alone = all(watch.uses[id(tensor)] == 1 for tensor in (weight, output, running_mean))
        convolution, norm = convolutions.get(id(weight)), norms.get(id(running_mean))
        if alone and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            _fold(convolution, norm)
            folded.add(norm)
    for parent in net.modules():
        for name, child in list(parent.named_children()):
            if child in folded:
                setattr(parent, name, nn.Identity())
    return len(folded)


def _is_plain(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    return type(module) in types and not (module._forward_hooks or module._forward_pre_hooks)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


class _Operations(TorchFunctionMode):
    """Watches which operation reads what. pairs: (weight, output, running mean) of convolutions and their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._weights: dict[int, Tensor] = {}
        # Alive to the end, so that no two tensors have the same id.
        self._seen: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = list(_tensors(result))
        if results:
            # Not a mere look at its shape.
            self.uses.update(map(id, _tensors([*args, *(kwargs or {}).values()])))
            self._seen += results
        if func is torch.conv2d:
            self._weights[id(result)] = args[1]
        if func is F.batch_norm and id(args[0]) in self._weights and args[1] is not None:
            self.pairs.append((self._weights[id(args[0])], args[0], args[1]))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
