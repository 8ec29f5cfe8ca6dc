"""Layers made smaller after a network is built, so that a pruned network can be built from its description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from offramp.models.config import LayerShapes, ModelConfig

Resizable = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d


def resize(net: nn.Module, shapes: LayerShapes) -> None:
    """Give the named layers new weights of these shapes, in place.

    Convolutions and linear layers get fewer channels, batch norms fewer features; kernels stay, and a depthwise
    convolution stays depthwise. Raises ValueError for an unknown layer and for a shape larger than the layer's own, so
    that no description asks for more memory than the unpruned network.
    """
    layers = dict(net.named_modules())
    for name, shape in shapes:
        layer = layers.get(name)
        if not isinstance(layer, Resizable):
            raise ValueError(f"shapes: {name!r} is no layer of the network that can be resized")
        own = tuple(layer.weight.shape)
        fits = len(shape) == len(own) and all(1 <= new <= old for new, old in zip(shape, own, strict=True))
        if not fits or shape[2:] != own[2:]:
            raise ValueError(
                f"shapes: {name!r} cannot have weights of shape {list(shape)}; the unpruned network has {list(own)}, "
                "and a pruned one has fewer channels of the same kernel"
            )
        _resize_layer(name, layer, shape)


def outputs(layer: Resizable) -> int:
    """The number of channels or features that leave a layer."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return layer.out_channels
    return layer.out_features if isinstance(layer, nn.Linear) else layer.num_features


def weight_shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weight's shape of every layer that `resize` can change, by name."""
    return {name: tuple(layer.weight.shape) for name, layer in net.named_modules() if isinstance(layer, Resizable)}


def changed_shapes(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> LayerShapes:
    """The argument of `resize` that turns a network with the weight shapes `before` into one with `after`."""
    return tuple((name, shape) for name, shape in after.items() if shape != before[name])


def for_classes(config: ModelConfig, num_classes: int) -> ModelConfig:
    """The same network, pruned as it is, for another number of classes."""
    shapes = tuple(
        (name, (num_classes, *shape[1:]) if name.startswith("heads.") and name.endswith(".classifier") else shape)
        for name, shape in config.shapes
    )
    return replace(config, num_classes=num_classes, shapes=shapes)


def _resize_layer(name: str, layer: Resizable, shape: tuple[int, ...]) -> None:
    layer.weight = nn.Parameter(layer.weight.new_empty(shape))
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        # A depthwise convolution has one group a channel; other grouped convolutions keep their groups.
        layer.groups = min(layer.groups, shape[0])
        if shape[0] % layer.groups:
            raise ValueError(
                f"shapes: {name!r} has {layer.groups} groups, which {shape[0]} channels do not fill evenly"
            )
        first, second = shape[0], shape[1] * layer.groups
        is_transposed = isinstance(layer, nn.ConvTranspose2d)
        layer.in_channels, layer.out_channels = (first, second) if is_transposed else (second, first)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    else:
        layer.num_features = shape[0]
        if layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean = layer.running_mean.new_empty(shape[0])
            layer.running_var = layer.running_var.new_empty(shape[0])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.new_empty(outputs(layer)))
    layer.reset_parameters()
