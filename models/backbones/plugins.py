"""The operator's own networks: Python modules that the operator names, each with `BACKBONES = {"my_net": build}`.

A bundle has the architecture's name and no code. The code comes from the operator.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from offramp.models.backbones import BACKBONES, Architecture
from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig

EXAMPLE = 'BACKBONES = {"my_net": build}'
# Short enough for "<folder>-<architecture>", the default name of a bundle.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,22}")


class BackbonesError(ValueError):
    """A module of networks that cannot be used; the message names the module and the problem."""


def load_backbones(sources: str) -> tuple[str, ...]:
    """Import modules ("my_nets", "nets/my_nets.py"; several with commas between) and add their networks to BACKBONES.

    A module's own `BACKBONES` maps names to functions `build(config: ModelConfig) -> Backbone`, or to Architectures.
    Returns their names. It executes the module's code; a second call for a module changes nothing.
    Raises BackbonesError when a module cannot be imported, has no such dict, or a name is taken or not usable.
    """
    names: list[str] = []
    for source in filter(None, map(str.strip, sources.split(","))):
        entries = _read_entries(_import(source), source)
        for name, architecture in entries.items():
            if BACKBONES.get(name, architecture) != architecture:
                raise BackbonesError(f"{source}: the name {name!r} is taken: choose another for your network")
        BACKBONES.update(entries)
        names += entries
    return tuple(names)


@dataclass(frozen=True)
class _Build:
    """The operator's build function, with checks of its result."""

    source: str
    name: str
    build: Callable[[ModelConfig], Backbone]

    def __call__(self, config: ModelConfig) -> Backbone:
        # The operator's code may compute while it builds, which torch's meta device cannot.
        to_meta = torch.get_default_device().type == "meta"
        with torch.device("cpu"), torch.random.fork_rng(devices=[], enabled=to_meta):
            backbone = self.build(config)
        if not isinstance(backbone, Backbone):
            raise BackbonesError(
                f"{self.source}: build of {self.name!r} returns a {type(backbone).__name__}, not a Backbone: "
                "end it with `return attach_exits(network, at=[…], input_size=config.input_size)`"
            )
        classes = backbone.classifier.classifier.out_features if backbone.classifier else config.num_classes
        if classes != config.num_classes:
            raise BackbonesError(
                f"{self.source}: the network {self.name!r} answers with {classes} classes where {config.num_classes} "
                "are wanted: build it with config.num_classes of them"
            )
        if to_meta:
            for module in (*backbone.stages, backbone.classifier or nn.Identity()):
                module.to("meta")
        return backbone


def _import(source: str) -> ModuleType:
    path = Path(source)
    is_file = path.suffix == ".py" or len(path.parts) > 1
    if is_file and not path.is_file():
        raise BackbonesError(f"{source}: no such file; give a Python file, or the name of a module")
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        # Last, so that it hides no installed package.
        sys.path.append(folder)
    name = path.stem if is_file else source
    try:
        module = importlib.import_module(name)
    except Exception as error:
        # The operator's code may raise anything.
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise BackbonesError(
                f"{source}: there is no such module; give the path of its file, as {name}.py"
            ) from None
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise BackbonesError(
            f"{source} cannot be imported: {type(error).__name__}: {error} ({Path(place.filename).name}, "
            f"line {place.lineno})"
        ) from error
    if is_file and (module.__file__ is None or not path.samefile(module.__file__)):
        raise BackbonesError(f"{source}: another module named {name!r} comes first; give the file another name")
    return module


def _read_entries(module: ModuleType, source: str) -> dict[str, Architecture]:
    backbones = getattr(module, "BACKBONES", None)
    if not isinstance(backbones, dict) or not backbones:
        raise BackbonesError(f"{source} names no networks: write {EXAMPLE} into it")
    entries = {}
    for name, entry in backbones.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BackbonesError(f"{source}: name {name!r} is not usable: give up to 23 letters, digits, '.', '_', '-'")
        if not isinstance(entry, Architecture):
            if not callable(entry):
                raise BackbonesError(f"{source}: {name!r} is a {type(entry).__name__}, not a function: write {EXAMPLE}")
            entry = Architecture(entry, standard_width=ModelConfig.width)
        entries[name] = replace(entry, build=_Build(source, name, entry.build), is_own=True)
    return entries
