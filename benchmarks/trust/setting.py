"""What all parts share: the bundle with its certificate, the test pictures, and servers of one's own."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from benchmarks.errors import BenchmarkError
from benchmarks.peers.requests import Ask, write_requests
from benchmarks.serving import Server, own_server
from benchmarks.trust.options import TrustOptions
from models.bundle import EMBEDDED, Bundle, load_bundle
from models.certificate import Certificate
from training.data.cifar import LAYOUTS, read_cifar

Pixels = npt.NDArray[np.uint8]
FULL_DEPTH = "threshold=1"
# The contract that most parts are measured at, where it is certified.
USUAL = 0.01


@dataclass(frozen=True)
class LabelledPictures:
    """In the official order: uint8 (N, 32, 32, 3), and class ids (N)."""

    images_NHWC: Pixels
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)


class Listening(Protocol):
    """A server on 127.0.0.1, seen from outside."""

    @property
    def port(self) -> int:
        """Where it answers."""
        ...


class Start(Protocol):
    """How a server is started; `own_server`, but in tests."""

    def __call__(self, model: Path | None, *options: str) -> AbstractContextManager[Listening]:
        """`offramp serve` with these options: ready inside, ended after."""
        ...


@dataclass(frozen=True)
class Setting:
    """folder: to write requests into. start: a server."""

    options: TrustOptions
    bundle: Bundle
    certificate: Certificate
    pictures: LabelledPictures
    folder: Path
    png: list[bytes] = field(repr=False)
    start: Start = own_server

    @property
    def promises(self) -> tuple[float, ...]:
        """Certified ones, the strictest first."""
        return self.certificate.promises

    @property
    def usual(self) -> float:
        """The contract that most parts are measured at: USUAL, or the strictest."""
        return USUAL if USUAL in self.promises else self.promises[0]

    @property
    def served(self) -> str:
        """Name and version of what is served, and its calibration."""
        return f"{self.bundle.name} {self.bundle.version}, calibration {self.certificate.version}"

    def serve(self, *flags: str, model: Path | None = None) -> AbstractContextManager[Listening]:
        """A server with these options. model: another bundle than that of this setting."""
        return self.start(model or self.options.model, *flags)

    def requests(self, query: str, count: int | None = None, key: str = "") -> list[bytes]:
        """For each of the first pictures, one. key: an API key."""
        return encoded(query, self.png[:count], key)

    def requests_folder(self, query: str, count: int | None = None) -> Path:
        """The same as files, for generators that are processes of their own."""
        folder = self.folder / f"{query}-{count}"
        return folder if folder.exists() else write_requests(asks(query, self.png[:count]), folder)


def prepared(options: TrustOptions, folder: Path, pictures: LabelledPictures | None = None) -> Setting:
    """Load bundle and pictures. pictures: in place of the data set's. Raises BenchmarkError without certificate."""
    bundle = load_bundle(options.model or EMBEDDED)
    if bundle.certificate is None or not bundle.certificate.points:
        raise BenchmarkError(f"{bundle.name} certifies nothing: run `offramp calibrate`, or give another --model")
    pictures = pictures or read_test_pictures(options)
    return Setting(options, bundle, bundle.certificate, pictures, folder, as_png(pictures.images_NHWC))


def read_test_pictures(options: TrustOptions) -> LabelledPictures:
    """The first ones of the data set. Raises ValueError for a name that is none of ours."""
    if options.dataset not in LAYOUTS:
        raise ValueError(f"dataset {options.dataset!r} is unknown here: choose one of {', '.join(LAYOUTS)}")
    test = read_cifar(options.dataset, options.data_root).test
    count = min(options.pictures or len(test), len(test))
    return LabelledPictures(np.asarray(test.images_NHWC[:count]), tuple(test.labels_N[:count].tolist()))


def as_png(images_NHWC: Pixels) -> list[bytes]:
    """The pictures as files."""
    files = []
    for image_HWC in images_NHWC:
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "png", compress_level=1)
        files.append(buffer.getvalue())
    return files


def asks(query: str, png: Iterable[bytes], key: str = "") -> Iterator[Ask]:
    """One request a picture."""
    headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"} if key else {}
    return (Ask(f"/v1/predict?{query}", "image/png", one, headers) for one in png)


def encoded(query: str, png: Sequence[bytes], key: str = "") -> list[bytes]:
    """The same as they go over the wire."""
    return [ask.encoded() for ask in asks(query, png, key)]


def metrics_of(server: Listening) -> str:
    """The text of /metrics."""
    return Server(f"http://127.0.0.1:{server.port}").get("/metrics")


def say(text: str) -> None:
    """Progress, for whoever waits."""
    typer.echo(text, err=True)
