"""What is served and sent: models, sets of pictures, and the ways in which ours is asked."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.errors import BenchmarkError
from benchmarks.options import parse_thresholds
from benchmarks.peers.network import Exits, drawn_exit
from benchmarks.peers.options import PeersOptions, parse_mix
from benchmarks.pictures import export_test_pictures, read_pictures
from models.backbones import BACKBONES, standard_width
from models.bundle import EMBEDDED, Bundle, load_bundle, save_bundle
from models.config import ModelConfig
from models.exit_policy import Calibration
from models.multi_exit import MultiExitNet
from models.preprocess import Preprocessing

PHOTOS = "photos-caltech101.tar"
PHOTO_SUFFIXES = (".jpg", ".jpeg")
TOLERATED_DISAGREEMENT = 0.01

# Of a larger network that has learnt nothing.
NUM_CLASSES, INPUT_SIZE = 1000, 224
# Without it, a network that has learnt nothing is surer than any that has, and bfloat16 is not good enough for it.
TEMPERATURE = 4.0


@dataclass(frozen=True)
class PictureSet:
    """Encoded pictures. labels: the true class of each, by name; none where the network does not know them."""

    name: str
    media_type: str
    pictures: tuple[bytes, ...] = field(repr=False)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """How ours is asked, and a peer that has exits is set up.

    max_disagreement: ours is asked for that contract; a peer knows none, and has a threshold that comes to as much.
    """

    name: str
    exits: Exits
    max_disagreement: float | None = None

    @property
    def is_off(self) -> bool:
        """Whether every picture goes to the last exit."""
        return not self.exits.mix and self.exits.threshold >= 1.0

    def query(self, number: int) -> str:
        """Of request 0, 1, …"""
        if self.max_disagreement is not None:
            return f"max_disagreement={self.max_disagreement:g}"
        if not self.exits.mix:
            return f"threshold={self.exits.threshold:g}"
        return f"threshold=1&max_exit={drawn_exit(number, self.exits.mix)}"


@dataclass(frozen=True)
class Workload:
    """One model and what it is sent. model: as `offramp serve --model` takes it; None is the embedded one."""

    model: Path | None
    bundle: Bundle
    pictures: PictureSet
    ways: tuple[Way, ...]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.bundle.name}, {self.pictures.name}"


def workloads(options: PeersOptions) -> Iterator[Workload]:
    """The first model on each set of pictures, the larger one on photographs. Raises ValueError for missing data."""
    bundle = load_bundle(options.model or EMBEDDED)
    ways = threshold_ways(bundle, options.thresholds)
    for name in options.picture_sets.split(",") if options.picture_sets else []:
        pictures = cifar(options, bundle) if name == "cifar" else photos(options)
        yield Workload(options.model, bundle, pictures, ways)
    if options.larger_model:
        with TemporaryDirectory() as folder:
            path = larger_model(options.larger_model, Path(folder))
            larger = load_bundle(path)
            ways = mix_ways(bundle, ways, parse_mix(options.exit_mix), larger.net.num_exits)
            yield Workload(path, larger, photos(options), ways)


def larger_model(name: str, folder: Path) -> Path:
    """The bundle of that path, or an untrained one of that architecture, written into `folder`.

    Raises BenchmarkError for what is neither.
    """
    if Path(name).exists():
        return Path(name)
    if name not in BACKBONES:
        raise BenchmarkError(f"larger_model {name!r} is no bundle's folder, nor one of {', '.join(sorted(BACKBONES))}")
    save_bundle(
        untrained(name), folder / name, f"# {name} without training\n\nAs fast as any; its answers are noise.\n"
    )
    return folder / name


@torch.no_grad()
def untrained(architecture: str) -> Bundle:
    """A network of the papers' width with random weights, as they classify ImageNet: 224 pixels, 1,000 classes.

    With light heads: the journal's nearly double the time of a ResNet-50, mostly in reading and writing memory.
    """
    torch.manual_seed(0)
    config = ModelConfig(architecture, NUM_CLASSES, standard_width(architecture), INPUT_SIZE, head="light")
    net = MultiExitNet(config).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The next batch's statistics, whole: what is never normalised grows from layer to layer.
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


def threshold_ways(bundle: Bundle, thresholds: str) -> tuple[Way, ...]:
    """Exits off first, then the thresholds given; by default the bundle's, and the lowest of hardly any difference.

    In place of that one, a certified contract for as little, where the bundle certifies it.
    """
    if thresholds:
        return _by_threshold(parse_thresholds(thresholds))
    agreeing = [
        float(point["threshold"])
        for point in bundle.operating_points
        if point["disagreement"] <= TOLERATED_DISAGREEMENT
    ]
    lowest = min(agreeing, default=1.0)
    if bundle.certificate is None or bundle.certificate.point(TOLERATED_DISAGREEMENT) is None:
        return _by_threshold((1.0, bundle.threshold, lowest))
    certified = Way(f"certified {TOLERATED_DISAGREEMENT:.0%}", Exits(lowest), TOLERATED_DISAGREEMENT)
    off, *on = _by_threshold((1.0, bundle.threshold))
    return (off, certified, *on)


def _by_threshold(thresholds: Sequence[float]) -> tuple[Way, ...]:
    different = sorted(set(thresholds), reverse=True)
    return tuple(Way("exits off" if t >= 1 else f"threshold {t:g}", Exits(t)) for t in different)


def mix_ways(bundle: Bundle, ways: Sequence[Way], mix: tuple[float, ...], num_exits: int) -> tuple[Way, ...]:
    """Exits off, then the mix given, or `bundle`'s at each of its `ways`, for a network that has learnt nothing.

    Raises BenchmarkError where a mix does not fit the network's exits.
    """
    mixes = (
        [mix]
        if mix
        else [
            tuple(map(float, point["exit_mix"]))
            for way in ways
            for point in bundle.operating_points
            if point["threshold"] == way.exits.threshold and not way.is_off
        ]
    )
    if not mixes or any(len(one) != num_exits for one in mixes):
        raise BenchmarkError(f"the larger model has {num_exits} exits: give --exit-mix so many shares")
    shown = [" / ".join(f"{100 * share:.0f}" for share in one) for one in mixes]
    drawn = [Way(f"exit mix {text} %", Exits(1.0, one)) for text, one in zip(shown, mixes, strict=True)]
    return (Way("exits off", Exits()), *drawn)


def cifar(options: PeersOptions, bundle: Bundle) -> PictureSet:
    """Test pictures as PNG, with their labels where the network knows these classes."""
    with TemporaryDirectory() as folder:
        exported = export_test_pictures(options.dataset, options.data_root, options.pictures, Path(folder))
        pictures = tuple(read_pictures(Path(folder)))
    labels = exported.labels if set(exported.labels) <= set(bundle.labels) else ()
    return PictureSet(f"{options.dataset} PNG", "image/png", pictures, labels)


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
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            members = sorted(archive.getmembers(), key=lambda member: member.name)
            for member in members:
                if member.name.lower().endswith(PHOTO_SUFFIXES) and (file := archive.extractfile(member)):
                    yield file.read()
