"""Backbones, one file for each kind of network; `BACKBONES` names every architecture that can be built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.densenet import build_densenet
from offramp.models.backbones.mobilenet import build_mobilenetv2
from offramp.models.backbones.preact_resnet import PREACT_RESNETS, WIDE_RESNETS, build_preact_resnet
from offramp.models.backbones.pyramidnet import PYRAMIDNETS, build_pyramidnet
from offramp.models.backbones.resnet import RESNETS, build_resnet
from offramp.models.backbones.shufflenet import SHUFFLENETS, build_shufflenetv2
from offramp.models.backbones.vgg import VGGS, build_vgg
from offramp.models.config import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """build: makes the backbone; raises ValueError for a width that does not fit it.

    standard_width: the `ModelConfig.width` of the paper's network. is_own: it comes from a module of the operator.
    """

    build: Callable[[ModelConfig], Backbone]
    standard_width: int
    is_own: bool = False


BACKBONES: dict[str, Architecture] = {
    **dict.fromkeys(RESNETS, Architecture(build_resnet, 64)),
    **dict.fromkeys(PREACT_RESNETS, Architecture(build_preact_resnet, 64)),
    **dict.fromkeys(WIDE_RESNETS, Architecture(build_preact_resnet, 16)),
    **dict.fromkeys(PYRAMIDNETS, Architecture(build_pyramidnet, 16)),
    "densenet100_12": Architecture(build_densenet, 24),
    "densenet121": Architecture(build_densenet, 64),
    **dict.fromkeys(VGGS, Architecture(build_vgg, 64)),
    "mobilenetv2": Architecture(build_mobilenetv2, 32),
    **dict.fromkeys(SHUFFLENETS, Architecture(build_shufflenetv2, 24)),
}


def find_architecture(name: str) -> Architecture:
    """The entry of BACKBONES. Raises ValueError with the nearest name and all names for an unknown one."""
    if name not in BACKBONES:
        near = get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"architecture {name!r} is unknown: {hint}choose one of {', '.join(BACKBONES)}; "
            "if it is a network of your own, name its module with --backbones my_nets.py"
        )
    return BACKBONES[name]


def standard_width(architecture: str) -> int:
    """The width of the paper's network. Raises ValueError with the nearest name for an unknown architecture."""
    return find_architecture(architecture).standard_width
