"""The loop of all residual networks: stages of equal blocks, in which the first block changes the size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from offramp.models.backbones.backbone import Backbone

# Builds a block (B, in, H, W) -> (B, out, H/stride, W/stride) from in, out and stride.
MakeBlock = Callable[[int, int, int], nn.Module]


def residual_backbone(
    first: nn.Module,
    in_channels: int,
    out_channels: Sequence[int],
    blocks: Sequence[int],
    make_block: MakeBlock,
    last: Sequence[nn.Module] = (),
) -> Backbone:
    """A stage for each entry of `out_channels`, with as many blocks as `blocks` says. Later stages halve the size.

    first: the stem; it begins stage 1 and gives `in_channels`. last: layers that end the last stage.
    """
    stages = []
    for index, (width, count) in enumerate(zip(out_channels, blocks, strict=True)):
        parts: list[nn.Module] = [] if index else [first]
        for block in range(count):
            parts.append(make_block(in_channels, width, 2 if index and not block else 1))
            in_channels = width
        stages.append(parts)
    stages[-1].extend(last)
    return Backbone([nn.Sequential(*parts) for parts in stages], list(out_channels))
