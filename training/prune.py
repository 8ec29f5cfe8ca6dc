"""Structured pruning: whole channels leave a trained network, all its exits stay; fine-tune it afterwards.

Source: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning" (CVPR 2023). The authors' library,
torch-pruning, finds sets of channels that must leave together, measures their importance, and cuts them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil, prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.models.resize import Resizable, changed_shapes, weight_shapes

# Largest distance of the result from the wanted share of full-depth multiply-adds.
TOLERANCE = 0.05
# Every layer keeps at least this share of its channels.
LEAST_SHARE = 1 / 8
# Layers with enough channels keep a multiple of this: vector and matrix units work in such blocks.
MULTIPLE = 8
# Operations that may move channels to places where the library does not search (ShuffleNet's shuffle, PyramidNet's
# padded shortcuts). Many are harmless, on rows or columns for instance, so they count only after a first failure.
MOVING = ("Split", "Stack", "Pad", "Permute", "Transpose", "Roll", "Flip", "Index", "Repeat")


class PruneError(ValueError):
    """A network that cannot be pruned to the wanted share; the message says why, and the fix."""


class NotFollowedError(PruneError):
    """A network whose sets of channels the library does not find."""


def prune(net: MultiExitNet, keep: float) -> MultiExitNet:
    """A copy of `net` without its least important channels, so that about `keep` of its multiply-adds remain.

    It is not fine-tuned, and it is on the CPU, in float32 and evaluation mode.

    keep: share of the full-depth multiply-adds, all heads included, in (0, 1); met within 0.05. Channels are ranked
    over the whole network, backbone and heads alike, by the norm of all weights that leave with them, relative to the
    mean of their set. Channels that the library does not follow stay. A pruned network is pruned further. `net` and
    torch's random state are not changed. The same network gives the same result.
    Raises PruneError when `keep` is out of range or cannot be met, or when the library cannot follow the network;
    ModuleNotFoundError without torch-pruning (the `prune` extra).
    """
    if not 0.0 < keep < 1.0:
        raise PruneError(f"keep {keep} is out of range: give the share of multiply-adds to keep, above 0 and below 1")
    library = _library()
    try:
        return _cut(library, net, keep, moving=()).float()
    except NotFollowedError:
        return _cut(library, net, keep, moving=MOVING).float()


def _cut(library: ModuleType, net: MultiExitNet, keep: float, moving: Sequence[str]) -> MultiExitNet:
    """The pruned network in float64. moving: operations whose channels all stay."""
    # In float64, so that rounding does not look like a wrong result.
    exact = deepcopy(net).cpu().double().eval().requires_grad_(True)
    size, generator = net.config.input_size, torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    with _refusing(net.config):
        graph, sets = _channel_sets(library, exact, x_BCHW, moving)
    removed = _choose(exact, sets, keep, _applications(exact, x_BCHW))
    with torch.no_grad():
        expected = _silence(exact, sets, removed)(x_BCHW).logits
        with _refusing(net.config):
            for channels, leaving in zip(sets, removed, strict=True):
                if leaving:
                    graph.get_pruning_group(channels.root, channels.handler, leaving).prune()
            pruned = _rebuild(net.config, exact)
            answers = pruned(x_BCHW).logits
    if not all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(answers, expected, strict=True)):
        raise _refusal(net.config, "the wrong channels left")
    return pruned


def _library() -> ModuleType:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pruning needs torch-pruning, which is not installed: pip install 'offramp[prune]'", name="torch_pruning"
        ) from error
    return torch_pruning  # type: ignore[no-any-return]


def _refusal(config: ModelConfig, reason: str) -> NotFollowedError:
    return NotFollowedError(
        f"{config.architecture} cannot be pruned: torch-pruning does not follow its channels ({reason}); "
        "give a network of another architecture"
    )


@contextmanager
def _refusing(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    # Errors of the library, or of a network that it cut wrongly.
    except (LookupError, TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise _refusal(config, f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Member:
    """A layer's part of a set: its own input or output channels, and the channels of the set that they leave with."""

    layer: str
    of_output: bool
    channels: tuple[int, ...]
    set_channels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelSet:
    """Channels of all layers that must leave together.

    root, handler: the library's name of the set. importance: one number for each channel, on average 1. groups: for
    grouped convolutions, how many times the set's channels are repeated; each group loses the same channels.
    """

    root: nn.Module
    handler: Any
    importance: Tensor
    groups: int
    members: tuple[Member, ...]

    @property
    def multiple(self) -> int:
        """Step of the number of channels: a power of two up to MULTIPLE and a quarter of the set, over all groups."""
        channels = len(self.importance) * self.groups
        return max(1, min(MULTIPLE, 1 << max(0, (channels // 4).bit_length() - 1)) // self.groups)

    def leaving(self, threshold: float) -> set[int]:
        """The set's channels up to the threshold of importance, subject to rounding and LEAST_SHARE."""
        size = len(self.importance)
        wanted = int((self.importance > threshold).sum())
        staying = min(size, max(1, round(wanted / self.multiple)) * self.multiple)
        ranked: list[int] = torch.argsort(self.importance, stable=True).tolist()
        # Layers may own different parts of a set (their outputs are concatenated): each keeps its best channels.
        safe: set[int] = set()
        for member in self.members:
            own = {channel % size for channel in member.set_channels}
            safe.update([channel for channel in ranked if channel in own][-ceil(len(own) * LEAST_SHARE) :])
        chosen = [channel for channel in ranked if channel not in safe][: size - staying]
        return {channel + group * size for channel in chosen for group in range(self.groups)}


def _channel_sets(
    library: ModuleType, net: MultiExitNet, x_BCHW: Tensor, moving: Sequence[str]
) -> tuple[Any, list[ChannelSet]]:
    with torch.enable_grad():
        graph = library.DependencyGraph().build_dependency(
            net, x_BCHW, forward_fn=lambda model, x: model(x).logits, verbose=False
        )
    importance = library.importance.GroupMagnitudeImportance()
    names = {layer: name for name, layer in net.named_modules()}
    # The classes are the classifiers' outputs: they stay.
    groups = graph.get_all_groups(ignored_layers=[head.classifier for head in net.heads])
    free = [group for group in groups if not any(_blocks(item.dep.target.module, moving) for item in group)]
    return graph, [_channel_set(graph, names, group, importance(group)) for group in free]


def _blocks(part: nn.Module | nn.Parameter, moving: Sequence[str]) -> bool:
    """Whether a set of channels stays whole because it passes this layer, parameter or operation."""
    if isinstance(part, Resizable):
        return isinstance(part, nn.ConvTranspose2d) and part.groups > 1
    if isinstance(part, nn.Parameter) or any(True for _ in part.parameters()):
        return True
    # The library's object for an operation has the name of the operation, or of its autograd class.
    return any(name in str(part) for name in moving)


def _channel_set(graph: Any, names: dict[nn.Module, str], group: Any, importance: Tensor) -> ChannelSet:
    members, groups = [], 1
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, Resizable):
            of_output = graph.is_out_channel_pruning_fn(item.dep.handler)
            members.append(Member(names[layer], of_output, tuple(item.idxs), tuple(item.root_idxs)))
        if isinstance(layer, nn.Conv2d) and layer.groups < layer.out_channels:
            groups = max(groups, layer.groups)
    root = group[0].dep
    importance = importance.view(groups, -1).mean(dim=0)
    return ChannelSet(root.target.module, root.handler, importance, groups, tuple(members))


def _applications(net: MultiExitNet, x_BCHW: Tensor) -> dict[str, int]:
    """For each layer, by name: multiplications by each of its weights for one picture."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x_BCHW)
    operations = counter.get_flop_counts()
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, kinds)}
    # The counter counts two operations, multiply and add, for each picture of the batch.
    root = type(net).__name__
    return {
        name: sum(operations[f"{root}.{name}"].values()) // (2 * len(x_BCHW) * layer.weight.numel())
        for name, layer in layers.items()
        if f"{root}.{name}" in operations
    }


def _choose(
    net: MultiExitNet, sets: Sequence[ChannelSet], keep: float, applications: dict[str, int]
) -> list[list[int]]:
    """The channels to remove from each set, by one threshold for all, with the cost nearest to `keep`."""

    def multiply_adds(shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(count * prod(shapes[name]) for name, count in applications.items())

    whole = multiply_adds(weight_shapes(net))

    def kept_at(index: int) -> float:
        return multiply_adds(_remaining_shapes(net, sets, [s.leaving(thresholds[index]) for s in sets])) / whole

    thresholds: list[float] = torch.cat([torch.zeros(1), *(s.importance.float() for s in sets)]).unique().tolist()
    low, high = 0, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept_at(middle) > keep else (low, middle)
    best = min((low, high), key=lambda index: abs(kept_at(index) - keep))
    if abs(kept_at(best) - keep) > TOLERANCE:
        raise PruneError(
            f"{net.config.architecture} of width {net.config.width} cannot keep {keep} of its multiply-adds: "
            f"the nearest that its channels allow is {kept_at(best):.3f}"
        )
    return [sorted(channels.leaving(thresholds[best])) for channels in sets]


def _remaining_shapes(
    net: MultiExitNet, sets: Sequence[ChannelSet], removed: Sequence[set[int]]
) -> dict[str, tuple[int, ...]]:
    layers, shapes = dict(net.named_modules()), {name: list(shape) for name, shape in weight_shapes(net).items()}
    for channels, leaving in zip(sets, removed, strict=True):
        for member in channels.members:
            layer, removals = layers[member.layer], sum(channel in leaving for channel in member.set_channels)
            dimension = _dimension(layer, member.of_output)
            groups = layer.groups if dimension and isinstance(layer, nn.Conv2d) else 1
            shapes[member.layer][dimension] -= removals // groups
    return {name: tuple(shape) for name, shape in shapes.items()}


def _dimension(layer: nn.Module, of_output: bool) -> int:
    """The dimension of a layer's weight for its outputs, or its inputs."""
    return int(of_output == isinstance(layer, nn.ConvTranspose2d))


def _silence(net: MultiExitNet, sets: Sequence[ChannelSet], removed: Sequence[Sequence[int]]) -> MultiExitNet:
    """A copy in which the removed channels are zero. The pruned network must give the same outputs."""
    silent = deepcopy(net)
    layers = dict(silent.named_modules())
    for channels, leaving in zip(sets, map(set, removed), strict=True):
        for member in channels.members:
            if member.of_output:
                pairs = zip(member.channels, member.set_channels, strict=True)
                rows = [own for own, of_set in pairs if of_set in leaving]
                for parameter in layers[member.layer].parameters():
                    dimension = _dimension(layers[member.layer], of_output=True) if parameter.ndim > 1 else 0
                    parameter.index_fill_(dimension, torch.tensor(rows, dtype=torch.long), 0.0)
    return silent


def _rebuild(config: ModelConfig, cut: MultiExitNet) -> MultiExitNet:
    """The network with `cut`'s weights, built from its description, as a bundle builds it."""
    with torch.random.fork_rng(devices=[]):
        unpruned = weight_shapes(MultiExitNet(replace(config, shapes=())))
        net = MultiExitNet(replace(config, shapes=changed_shapes(unpruned, weight_shapes(cut)))).eval()
    net.load_state_dict(cut.state_dict(), assign=True)
    return net
