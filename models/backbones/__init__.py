"""Backbone families, one file each; `BACKBONES` names every architecture that can be built."""

from __future__ import annotations

from collections.abc import Callable

from models.backbones.backbone import Backbone
from models.backbones.resnet import RESNETS, build_resnet
from models.config import ModelConfig

BACKBONES: dict[str, Callable[[ModelConfig], Backbone]] = dict.fromkeys(RESNETS, build_resnet)
