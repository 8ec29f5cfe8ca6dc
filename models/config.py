"""ModelConfig: the description from which a network is built again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Stem = Literal["cifar", "imagenet"]
HeadKind = Literal["journal", "scan", "light"]
LayerShapes = tuple[tuple[str, tuple[int, ...]], ...]

LARGEST_CIFAR_STEM_INPUT = 96
# Five times ImageNet-21k's.
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class ModelConfig:
    """All that decides the shape of a network; stored in the bundle.

    architecture: a name of `offramp.models.backbones.BACKBONES`, such as "resnet18".
    num_classes: classes of every head.
    width: channels of the stem, which scale the whole network. `backbones.standard_width` gives the paper's, 64 for a
        ResNet. Half the width is about a quarter of the cost.
    input_size: side of the square input in pixels.
    stem: "cifar" (3x3, no pooling) or "imagenet" (7x7 stride 2, max-pool). "auto" is resolved at once:
        inputs up to 96 pixels get the CIFAR stem.
    head: the kind of head after every stage but the last: a name of `offramp.models.heads.HEADS`.
    exits: the backbone's stages (1-based, rising) with an exit; stages between two exits run as one. The last stage
        must be among them. Empty: an exit after every stage. Only the last: the plain network.
    shapes: (layer, shape of its weight) for every layer that pruning made smaller; empty for an unpruned network.
    """

    architecture: str
    num_classes: int
    width: int = 64
    input_size: int = 32
    stem: Stem | Literal["auto"] = "auto"
    head: HeadKind = "journal"
    exits: tuple[int, ...] = ()
    shapes: LayerShapes = ()

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= MOST_CLASSES:
            raise ValueError(f"num_classes {self.num_classes} is out of range: give 2 to {MOST_CLASSES} classes")
        if not 4 <= self.width <= 512:
            raise ValueError(f"width {self.width} is out of range: give 4 to 512 channels for the first stage")
        if not 16 <= self.input_size <= 1024:
            raise ValueError(f"input_size {self.input_size} is out of range: give a side of 16 to 1024 pixels")
        if self.stem == "auto":
            stem = "cifar" if self.input_size <= LARGEST_CIFAR_STEM_INPUT else "imagenet"
            object.__setattr__(self, "stem", stem)
        if self.stem not in get_args(Stem):
            raise ValueError(f"stem {self.stem!r} is unknown: choose 'cifar', 'imagenet' or 'auto'")
        if self.head not in get_args(HeadKind):
            raise ValueError(f"head {self.head!r} is unknown: choose one of {', '.join(get_args(HeadKind))}")
        if list(self.exits) != sorted(set(self.exits)) or (self.exits and self.exits[0] < 1):
            raise ValueError(f"exits {list(self.exits)} are not stages in rising order: give numbers such as 1, 2, 4")
        _check_shapes(self.shapes)


def _check_shapes(shapes: object) -> None:
    if not isinstance(shapes, tuple):
        raise ValueError(f"shapes is a {type(shapes).__name__}: give pairs of a layer's name and its weight's shape")
    for entry in shapes:
        match entry:
            case (str(), tuple(sizes)) if all(isinstance(size, int) for size in sizes):
                continue
        raise ValueError(f"shapes: {entry!r} is no pair of a layer's name and its weight's shape")
    if len({name for name, _ in shapes}) < len(shapes):
        raise ValueError("shapes names a layer twice: give one shape a layer")
