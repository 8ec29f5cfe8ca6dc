"""Bundle: the folder between training and serving. model.json + model.safetensors + README.md, nothing executable."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from offramp.models.backbones import find_architecture
from offramp.models.certificate import Certificate
from offramp.models.config import ModelConfig
from offramp.models.cost import NetworkCost, network_cost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.plain import check_plain
from offramp.models.preprocess import Preprocessing
from offramp.models.weights import WeightsError, load_weights

FORMAT_VERSION = 1
# A batch norm's count of steps: only training uses it.
UNSTORED = "num_batches_tracked"
# The fields of a bundle that model.json does not hold.
UNDESCRIBED = ("net", "digest")
# Training writes far smaller descriptions. The server sends the description to its clients.
MOST_DESCRIPTION_BYTES = 8 * 1024**2
# 2 GB in float32, three times the largest network at its standard width.
MOST_PARAMETERS = 500_000_000
DESCRIPTION, WEIGHTS, CARD = "model.json", "model.safetensors", "README.md"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

EMBEDDED = Path(__file__).parent / "pretrained" / "cifar100-resnet18"


class BundleError(ValueError):
    """A bundle that cannot be read or written; the message names the file and the cause."""


@dataclass(frozen=True)
class Bundle:
    """A trained network and all that is needed to serve it.

    name, version: its address in requests. labels: one per class, in class order.
    threshold: the default operating point, in [0, 1].
    exits: facts about each exit for readers, such as multiply-adds and accuracy; no code reads them.
    fronts: the cheapest thresholds for each disagreement, also for readers.
    training: how it was made: data, recipe, command, seed, hardware.
    certificate: what is proven about its early answers; None without a proof.
    digest: SHA-256 of the files that it was loaded from; empty for a bundle that was not loaded.
    """

    name: str
    version: str
    config: ModelConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    calibration: Calibration
    threshold: float
    net: MultiExitNet = field(repr=False)
    exits: tuple[dict[str, Any], ...] = ()
    operating_points: tuple[dict[str, Any], ...] = ()
    fronts: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("version", self.version)):
            if not NAME.fullmatch(value):
                raise ValueError(f"{what} {value!r} is not usable: give up to 64 letters, digits, '.', '_' or '-'")
        if len(self.labels) != self.config.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.config.num_classes} classes: give one a class")
        if len(self.calibration.temperatures) != self.net.num_exits:
            raise ValueError(
                f"calibration for {len(self.calibration.temperatures)} exits, the network has {self.net.num_exits}"
            )
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold {self.threshold} is out of range: give a number in [0, 1]")
        if len(self.exits) not in (0, self.net.num_exits):
            raise ValueError(f"exits describes {len(self.exits)} exits, the network has {self.net.num_exits}")
        if not all(isinstance(facts, dict) for facts in (*self.exits, *self.operating_points)):
            raise ValueError("exits and operating_points must be lists of objects")
        if self.certificate and any(len(p.exit_mix) != self.net.num_exits for p in self.certificate.points):
            raise ValueError(f"the certificate is of another network: this one has {self.net.num_exits} exits")
        if self.preprocessing.size != self.config.input_size:
            raise ValueError(
                f"preprocessing makes pictures of {self.preprocessing.size} pixels, "
                f"the network takes {self.config.input_size}"
            )

    @cached_property
    def cost(self) -> NetworkCost:
        """The network's cost. Raises ValueError above the limits of a bounded `network_cost`."""
        return network_cost(self.net, is_bounded=True)


def save_bundle(bundle: Bundle, path: Path, card: str) -> None:
    """Write the bundle whole or not at all: it is built beside `path`, then moved there. It replaces an older bundle.

    Weights of two or more dimensions are stored in float16, which halves the file; biases and batch-norm statistics in
    float32. Calibrate after rounding: `rounded` gives the network as it will be loaded. Raises BundleError and changes
    nothing when `path` holds anything but a bundle, or the disk does not take the files.
    """
    if path.exists() and not (path / DESCRIPTION).is_file():
        raise BundleError(f"{path}: is there already and is not a bundle; choose another path, or move it away")
    names = [entry.name for entry in fields(bundle) if entry.name not in UNDESCRIBED]
    description = {"format_version": FORMAT_VERSION} | {name: getattr(bundle, name) for name in names}
    description["calibration"] = bundle.calibration.as_json()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            partial = Path(folder) / "bundle"
            partial.mkdir()
            text = json.dumps(description, indent=2, allow_nan=False, default=asdict)
            (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
            (partial / CARD).write_text(card, encoding="utf-8")
            # save_file would make a file that only its owner can read, and servers run as another user.
            (partial / WEIGHTS).write_bytes(save(_stored(bundle.net)))
            _swap(partial, path, Path(folder) / "previous")
    except OSError as error:
        raise BundleError(
            f"{path}: the bundle could not be written ({error}); free disk space or choose another path"
        ) from error


def _swap(partial: Path, path: Path, previous: Path) -> None:
    if not path.exists():
        partial.replace(path)
        return
    path.replace(previous)
    try:
        partial.replace(path)
    except OSError:
        previous.replace(path)
        raise


def load_bundle(path: Path) -> Bundle:
    """Read and check a bundle. Its network is on the CPU, in float32 and in evaluation mode.

    Raises BundleError, with the file and the cause, when anything is missing, truncated, of another shape, not finite,
    too large, of an unknown format, or cannot be served as JSON. Nothing in a bundle is executed. Weights take memory
    only after the file's header shows that the file holds all of them.
    """
    description = _read_description(path / DESCRIPTION)
    try:
        check_plain(description)
        config = ModelConfig(**_tuples(description["config"]))
        preprocessing = Preprocessing(**_tuples(description["preprocessing"]))
        calibration = Calibration.from_json(_tuples(description["calibration"]))
        _check_labels(description["labels"], config)
        certificate = description.get("certificate")
        bundle = Bundle(
            name=description["name"],
            version=description["version"],
            config=config,
            preprocessing=preprocessing,
            labels=tuple(description["labels"]),
            calibration=calibration,
            threshold=float(description["threshold"]),
            net=_load_network(config, path / WEIGHTS),
            exits=tuple(description["exits"]),
            operating_points=tuple(description["operating_points"]),
            fronts=dict(description.get("fronts", {})),
            training=dict(description["training"]),
            certificate=Certificate.from_json(certificate) if certificate else None,
            digest=_digest(path),
        )
        # Checked before anything else runs the network: a stranger's input size may take it hours.
        _ = bundle.cost
        return bundle
    except BundleError:
        raise
    except KeyError as error:
        raise BundleError(f"{path / DESCRIPTION}: the field {error} is missing; the file is not whole") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path / DESCRIPTION}: {error}") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for name in (DESCRIPTION, WEIGHTS):
        digest.update((path / name).read_bytes())
    return digest.hexdigest()


def rounded(net: MultiExitNet) -> MultiExitNet:
    """A copy of the network with its weights as a bundle stores them, in evaluation mode on the CPU."""
    copy = MultiExitNet(net.config)
    copy.load_state_dict({name: tensor.float() for name, tensor in _stored(net).items()}, strict=False)
    return copy.eval()


def _stored(net: MultiExitNet) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().to(torch.float16 if tensor.ndim > 1 else torch.float32).contiguous()
        for name, tensor in net.state_dict().items()
        if not name.endswith(UNSTORED)
    }


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        if (inner := path.parent / "bundle" / DESCRIPTION).is_file():
            raise BundleError(f"{path}: no such file; did you mean {inner.parent}?")
        raise BundleError(
            f"{path}: no such file; a bundle is a folder with {DESCRIPTION} and {WEIGHTS}, as `offramp train` writes it"
        )
    if (size := path.stat().st_size) > MOST_DESCRIPTION_BYTES:
        raise BundleError(f"{path}: {size:,} bytes long, above the limit of {MOST_DESCRIPTION_BYTES:,}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}); the file is truncated or was edited") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
    if not isinstance(description, dict):
        raise BundleError(f"{path}: holds a {type(description).__name__}, not an object")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {version!r} is unknown; this Offramp reads version {FORMAT_VERSION}: "
            "upgrade Offramp or train again"
        )
    return description


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_labels(labels: object, config: ModelConfig) -> None:
    # Checked before the network is built: a wrong number of classes may be more than memory holds.
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels is not a list of strings; the file was edited")
    if len(labels) != config.num_classes:
        raise ValueError(f"{len(labels)} labels for {config.num_classes} classes; the file was edited")


def _load_network(config: ModelConfig, path: Path) -> MultiExitNet:
    if not path.is_file():
        raise BundleError(f"{path}: no such file; the bundle's weights are missing")
    # The operator's own code may compute while it builds a network, which the meta device cannot.
    is_own = find_architecture(config.architecture).is_own
    with torch.device("cpu" if is_own else "meta"):
        net = MultiExitNet(config).eval()
    if (count := sum(parameter.numel() for parameter in net.parameters())) > MOST_PARAMETERS:
        raise ValueError(f"the network has {count:,} parameters, above the limit of {MOST_PARAMETERS:,}")
    try:
        weights = load_weights(path, {name: t for name, t in net.state_dict().items() if not name.endswith(UNSTORED)})
    except WeightsError as error:
        raise BundleError(f"{path}: {error}") from error
    for name, tensor in net.state_dict().items():
        weights.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
    # `assign` puts them in place of weights without memory; copying keeps the tied weights of an own network tied.
    net.load_state_dict(weights, assign=not is_own)
    return net


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) for name, value in dict(**values).items()}


def _tuple(value: Any, depth: int = 3) -> Any:
    # No field is deeper; an edited file may nest lists deeper than Python recurses.
    return tuple(_tuple(item, depth - 1) for item in value) if isinstance(value, list) and depth else value
