"""From options to recipe, method and network. Wrong options are refused here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from offramp.models.backbones import standard_width
from offramp.models.bundle import NAME, Bundle, load_bundle
from offramp.models.config import HeadKind, ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.models.resize import for_classes
from offramp.training.data import ImageSet, Pictures
from offramp.training.methods import METHODS, Method
from offramp.training.options import TrainOptions
from offramp.training.recipes import RECIPES, Recipe, short

# Options that replace a value of the same name.
RECIPE_OPTIONS = (
    "batch_size", "accumulate", "optimizer", "learning_rate", "muon_rate", "backbone_share", "ema", "smoothing",
)  # fmt: skip
METHOD_OPTIONS = ("alpha", "temperature", "beta", "feature_term")
# The share of a photograph's shorter side that evaluation keeps: 224 of 256 pixels.
CENTRE = 0.875
DEFAULT_ARCHITECTURE = "resnet18"


@dataclass(frozen=True)
class Sources:
    """The bundles that a run learns from. start: gives the network to train. teacher: gives answers to learn from."""

    start: Bundle | None = None
    teacher: Bundle | None = None

    def identity(self, options: TrainOptions) -> dict[str, Any]:
        """Values that must be equal to resume: digests of the bundles, and the teacher's share; None without one."""
        return {
            "start_from": self.start and self.start.digest,
            "teacher": self.teacher and self.teacher.digest,
            "teacher_weight": options.teacher_weight if self.teacher else None,
            "teacher_temperature": options.teacher_temperature if self.teacher else None,
        }


def load_sources(options: TrainOptions) -> Sources:
    """Load the bundles that `--start-from` and `--teacher` name, once for the run. Raises BundleError."""
    start = None if options.start_from is None else load_bundle(options.start_from)
    teacher = None if options.teacher is None else load_bundle(options.teacher)
    return Sources(start, teacher)


def build_recipe(options: TrainOptions, preprocessing: Preprocessing) -> Recipe:
    """The named recipe with the options' changes. Raises ValueError for an unknown name."""
    if options.recipe not in RECIPES:
        raise ValueError(f"recipe {options.recipe!r} is unknown: choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[options.recipe]() if options.epochs is None else RECIPES[options.recipe](options.epochs)
    red, green, blue = (round(255 * mean) for mean in preprocessing.mean)
    changes = _given(options, ("policy", "cutout", "erase"))
    augmentation = replace(recipe.augmentation, mean_colour=(red, green, blue), **changes)
    if augmentation.resized_crop is not None:
        augmentation = replace(augmentation, resized_side=preprocessing.size)
    mixing = replace(recipe.mixing, **_given(options, ("mixup", "cutmix")))
    return replace(recipe, augmentation=augmentation, mixing=mixing, **_given(options, RECIPE_OPTIONS))


def build_preprocessing(options: TrainOptions, start: Bundle | None = None) -> Preprocessing:
    """Preprocessing to the network's size, without colour statistics.

    A recipe of resized crops trains on parts of pictures. Its network then takes the centre of a picture.
    """
    recipe = RECIPES.get(options.recipe, short)()
    crop_fraction = CENTRE if recipe.augmentation.resized_crop is not None else 1.0
    return Preprocessing(input_size(options, start), crop_fraction)


def with_margins(pictures: Pictures, recipe: Recipe) -> Pictures:
    """The training set with whole pictures, larger than the network's input, for a recipe of resized crops.

    A set in memory stays as it is: it holds the centre, at the network's size.
    """
    if recipe.augmentation.resized_crop is None or isinstance(pictures, ImageSet):
        return pictures
    return replace(pictures, preprocessing=Preprocessing(round(pictures.preprocessing.size / CENTRE)))


def build_method(options: TrainOptions) -> Method:
    """The named method with the options' changes. Raises ValueError for an unknown name."""
    if options.method not in METHODS:
        raise ValueError(f"method {options.method!r} is unknown: choose one of {', '.join(METHODS)}")
    return replace(METHODS[options.method], **_given(options, METHOD_OPTIONS))


def _given(options: TrainOptions, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def build_config(options: TrainOptions, method: Method, num_classes: int, input_size: int) -> ModelConfig:
    """Description of a new network. Raises ValueError for exits that the architecture does not have."""
    architecture = options.architecture or DEFAULT_ARCHITECTURE
    config = ModelConfig(
        architecture,
        num_classes,
        options.width or standard_width(architecture),
        input_size,
        head=cast(HeadKind, options.head or "journal"),
        exits=_exits(options.exits),
    )
    if method.exits == "last":
        if config.exits:
            raise ValueError(f"method {method.name} has no early exits: leave --exits {options.exits} out")
        with torch.device("meta"):
            config = replace(config, exits=(len(MultiExitNet(config).stages),))
    return config


def _exits(text: str | None) -> tuple[int, ...]:
    try:
        return () if text is None else tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"exits {text!r} are not numbers: give stages such as 2,4") from None


def build_network(
    options: TrainOptions, method: Method, labels: tuple[str, ...], input_size: int, start: Bundle | None = None
) -> MultiExitNet:
    """A new network, or that of the starting bundle, pruned with `--prune`.

    Raises ValueError for options that do not fit the bundle, and what `prune` raises.
    """
    if options.prune is not None and not 0.0 < options.prune < 1.0:
        raise ValueError(f"--prune {options.prune:g} is out of range: give the share that stays, above 0 and below 1")
    if start is None:
        if options.prune is not None:
            raise ValueError("--prune needs a trained network: name its bundle with --start-from")
        return MultiExitNet(build_config(options, method, len(labels), input_size))
    config = start.config
    wanted = _given(options, ("architecture", "width", "head")) | {"input_size": input_size}
    for name, value in (wanted | {"exits": _exits(options.exits) or None}).items():
        if value not in (None, getattr(config, name)):
            raise ValueError(
                f"the bundle {options.start_from} has {name} {getattr(config, name)}, not {value}: "
                f"leave --{name.replace('_', '-')} as the bundle has it, or start from another bundle"
            )
    if method.exits == "last" and start.net.num_exits > 1:
        raise ValueError(f"method {method.name} has no early exits, the bundle {options.start_from} has: choose dsn")
    net = start.net if start.labels == labels else _with_new_classifiers(start.net, len(labels))
    if options.prune is None:
        return net
    from offramp.training.prune import prune

    return prune(net, options.prune)


def _with_new_classifiers(net: MultiExitNet, num_classes: int) -> MultiExitNet:
    """The same weights with new classifiers: the last linear layer of every head."""
    new = MultiExitNet(for_classes(net.config, num_classes))
    classifiers = tuple(f"heads.{index}.classifier." for index in range(net.num_exits))
    others = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(classifiers)}
    new.load_state_dict(others, strict=False)
    return new


def check_labels(labels: Sequence[str], class_names: Sequence[str]) -> None:
    """Raise ValueError unless a data set has the bundle's classes, in the same order."""
    if tuple(labels) != tuple(class_names):
        differing = sorted(set(labels) ^ set(class_names))
        raise ValueError(
            f"the data set has {len(class_names)} classes, the bundle {len(labels)}; they differ in "
            f"{', '.join(differing[:5]) or 'their order'}: give the data set that the bundle was trained on"
        )


def input_size(options: TrainOptions, start: Bundle | None = None) -> int:
    """Side of the network's input in pixels: as given, else the starting bundle's, else 32 for CIFAR and 64 for
    folders."""
    if options.input_size is not None:
        return options.input_size
    if start is not None:
        return start.config.input_size
    return 32 if options.dataset in ("cifar10", "cifar100") else 64


def bundle_name(options: TrainOptions, start: Bundle | None = None) -> str:
    """The model's name: as given, else from data set and architecture. Raises ValueError for an unusable one."""
    if options.name is None:
        folder = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(options.dataset).resolve().name)[:40].strip("-._")
        architecture = options.architecture or (start.config.architecture if start else DEFAULT_ARCHITECTURE)
        return f"{folder}-{architecture}".lstrip("-")
    if not NAME.fullmatch(options.name):
        raise ValueError(f"name {options.name!r} is not usable: give up to 64 letters, digits, '.', '_' or '-'")
    return options.name
