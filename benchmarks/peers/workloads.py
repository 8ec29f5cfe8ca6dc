"""Workloads: models, sets of pictures, and exit settings."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.pictures import read_test_pictures
from benchmarks.options import PeersOptions, parse_mix, parse_thresholds
from benchmarks.peers.network import Exits, draw_exit
from offramp.models.backbones import BACKBONES, standard_width
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle, save_bundle
from offramp.models.config import ModelConfig
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing

PHOTOS = "photos-caltech101.tar"
PHOTO_SUFFIXES = (".jpg", ".jpeg")
TOLERATED_DISAGREEMENT = 0.01

# A larger network with random weights.
NUM_CLASSES, INPUT_SIZE = 1000, 224
# At temperature 1 random weights are surer than trained ones, and bfloat16 is not precise enough for them.
TEMPERATURE = 4.0


@dataclass(frozen=True)
class PictureSet:
    """Encoded pictures. labels: the true class names; empty where the network has other classes."""

    name: str
    media_type: str
    pictures: tuple[bytes, ...] = field(repr=False)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExitSetting:
    """Exits as a request to Offramp, and as the setup of another inference server (a peer) that has exits.

    max_disagreement: the promise that Offramp is asked for; a peer gets `exits`, with as little disagreement.
    """

    name: str
    exits: Exits
    max_disagreement: float | None = None

    @property
    def exits_off(self) -> bool:
        """Whether every picture goes to the last exit."""
        return not self.exits.mix and self.exits.threshold >= 1.0

    def query(self, number: int) -> str:
        """The query of request 0, 1, …"""
        if self.max_disagreement is not None:
            return f"max_disagreement={self.max_disagreement:g}"
        if not self.exits.mix:
            return f"threshold={self.exits.threshold:g}"
        return f"threshold=1&max_exit={draw_exit(number, self.exits.mix)}"


@dataclass(frozen=True)
class Workload:
    """One model and its pictures. model: as `offramp serve --model` takes it; None is the embedded one."""

    model: Path | None
    bundle: Bundle
    pictures: PictureSet
    ways: tuple[ExitSetting, ...]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.bundle.name}, {self.pictures.name}"


def workloads(options: PeersOptions) -> Iterator[Workload]:
    """The first model on each set of pictures, the larger one on photographs. Raises ValueError for missing data."""
    bundle = load_bundle(options.model or EMBEDDED)
    ways = threshold_ways(bundle, options.thresholds)
    for name in options.sets():
        pictures = cifar(options, bundle) if name == "cifar" else photos(options)
        yield Workload(options.model, bundle, pictures, ways)
    if options.larger_model:
        with TemporaryDirectory() as folder:
            path = larger_model(options.larger_model, Path(folder))
            larger = load_bundle(path)
            ways = mix_ways(bundle, ways, parse_mix(options.exit_mix), larger.net.num_exits)
            yield Workload(path, larger, photos(options), ways)


def larger_model(name: str, folder: Path) -> Path:
    """Folder of the bundle `name`, or of an untrained bundle of that architecture, which is written into `folder`.

    Raises BenchmarkError for another name.
    """
    if Path(name).exists():
        return Path(name)
    if name not in BACKBONES:
        raise BenchmarkError(
            f"larger_model {name!r} is neither a bundle's folder nor one of {', '.join(sorted(BACKBONES))}"
        )
    save_bundle(untrained(name), folder / name, f"# {name} without training\n\nIts answers are noise.\n")
    return folder / name


@torch.no_grad()
def untrained(architecture: str) -> Bundle:
    """A network with random weights and the width of the original paper, for ImageNet: 224 pixels, 1,000 classes.

    It has light heads: the journal's nearly double the time of a ResNet-50, mostly in reading and writing memory.
    """
    torch.manual_seed(0)
    config = ModelConfig(architecture, NUM_CLASSES, standard_width(architecture), INPUT_SIZE, head="light")
    net = MultiExitNet(config).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Takes the next batch's statistics alone. Without them, values grow from layer to layer.
            module.momentum = 1.0
    net(torch.randn(4, 3, INPUT_SIZE, INPUT_SIZE))
    return Bundle(
        name=architecture,
        version="untrained",
        config=config,
        preprocessing=Preprocessing(INPUT_SIZE, crop_fraction=0.875),
        labels=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        calibration=Calibration((TEMPERATURE,) * net.num_exits, (0.0,) * net.num_exits),
        threshold=1.0,
        net=net.eval(),
    )


def threshold_ways(bundle: Bundle, thresholds: str) -> tuple[ExitSetting, ...]:
    """Exits off first, then the given thresholds; by default the bundle's, and the lowest with little disagreement.

    Where the bundle certifies as little disagreement, that contract takes the place of the lowest threshold.
    """
    if thresholds:
        return _by_threshold(parse_thresholds(thresholds))
    points = [point for point in bundle.operating_points if point["disagreement"] <= TOLERATED_DISAGREEMENT]
    lowest = min((float(point["threshold"]) for point in points), default=1.0)
    if bundle.certificate is None or bundle.certificate.point_for(TOLERATED_DISAGREEMENT) is None:
        return _by_threshold((1.0, bundle.threshold, lowest))
    off, *on = _by_threshold((1.0, bundle.threshold))
    return (off, ExitSetting(f"certified {TOLERATED_DISAGREEMENT:.0%}", Exits(lowest), TOLERATED_DISAGREEMENT), *on)


def _by_threshold(thresholds: Sequence[float]) -> tuple[ExitSetting, ...]:
    different = sorted(set(thresholds), reverse=True)
    return tuple(ExitSetting("exits off" if t >= 1 else f"threshold {t:g}", Exits(t)) for t in different)


def mix_ways(
    bundle: Bundle, ways: Sequence[ExitSetting], mix: tuple[float, ...], num_exits: int
) -> tuple[ExitSetting, ...]:
    """Exits off, then the given mix, or `bundle`'s at each of its `ways`, for a network with random weights.

    Raises BenchmarkError where a mix does not fit the network's exits.
    """
    thresholds = [way.exits.threshold for way in ways if not way.exits_off]
    points = {point["threshold"]: tuple(map(float, point["exit_mix"])) for point in bundle.operating_points}
    mixes = [mix] if mix else [points[threshold] for threshold in thresholds if threshold in points]
    if not mixes or any(len(shares) != num_exits for shares in mixes):
        raise BenchmarkError(f"the larger model has {num_exits} exits: give --exit-mix so many shares")
    names = [" / ".join(f"{100 * share:.0f}" for share in shares) for shares in mixes]
    mixed = [ExitSetting(f"exit mix {name} %", Exits(1.0, shares)) for name, shares in zip(names, mixes, strict=True)]
    return (ExitSetting("exits off", Exits()), *mixed)


def cifar(options: PeersOptions, bundle: Bundle) -> PictureSet:
    """Test pictures as PNG, with their labels where the network has these classes."""
    test = read_test_pictures(options.dataset, options.data_root, options.pictures)
    labels = tuple(test.class_names[class_id] for class_id in test.class_ids)
    known = labels if set(labels) <= set(bundle.labels) else ()
    return PictureSet(f"{options.dataset} PNG", "image/png", tuple(test.png), known)


def photos(options: PeersOptions) -> PictureSet:
    """JPEG photographs. Raises BenchmarkError where there are none."""
    path = options.photos or options.data_root / PHOTOS
    pictures = tuple(_jpegs(path))[: options.pictures]
    if not pictures:
        raise BenchmarkError(f"{path}: no JPEG files there; give --photos a folder or a tar file of photographs")
    return PictureSet("photographs JPEG", "image/jpeg", pictures)


def _jpegs(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in PHOTO_SUFFIXES)
        yield from (file.read_bytes() for file in files)
    elif path.exists():
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                if member.name.lower().endswith(PHOTO_SUFFIXES) and (file := archive.extractfile(member)):
                    yield file.read()
