"""What all parts share: the bundle with its certificate, the test pictures, requests, and servers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import wrk_path
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.pictures import TestPictures, read_test_pictures
from benchmarks.harness.requests import predictions
from benchmarks.harness.server import patient_server
from benchmarks.options import TRUST_PARTS, TrustOptions
from benchmarks.serving.setup import Setup
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.certificate import Certificate

# The promise that most parts are measured at, where it is certified.
USUAL = 0.01
# Pictures that are sent over and over where only speed counts.
LOAD_PICTURES = 2000


@dataclass(frozen=True, kw_only=True)
class TrustSetup(Setup[TrustOptions]):
    """A bundle that has a certificate, and pictures with their classes."""

    bundle: Bundle
    certificate: Certificate
    pictures: TestPictures

    @property
    def head(self) -> dict[str, Any]:
        """Name and version of the model, its calibration, and the data set."""
        served = f"{self.bundle.name} {self.bundle.version}, calibration {self.certificate.calibration_id}"
        return {"served": served, "dataset": self.options.dataset}

    @property
    def promises(self) -> tuple[float, ...]:
        """The certified promises, the strictest first."""
        return self.certificate.promises

    @property
    def usual(self) -> float:
        """The promise that most parts are measured at: USUAL, or the strictest."""
        return USUAL if USUAL in self.promises else self.promises[0]

    def requests(self, query: str, count: int | None = None, key: str = "") -> list[bytes]:
        """A request for each of the first `count` pictures. key: an API key."""
        return predictions(self.png[:count], query, key)

    def requests_folder(self, query: str, count: int = LOAD_PICTURES) -> Path:
        """The same as files."""
        return self.write(f"{query}-{count}", self.requests(query, count))


def prepare(options: TrustOptions, folder: Path, pictures: TestPictures | None = None) -> TrustSetup:
    """Load bundle and pictures. pictures: in place of the data set's. Raises BenchmarkError without certificate."""
    bundle = load_bundle(options.model or EMBEDDED)
    certificate = bundle.certificate
    if certificate is None or not certificate.points:
        raise BenchmarkError(f"{bundle.name} certifies nothing: run `offramp calibrate`, or give another --model")
    pictures = pictures or read_test_pictures(options.dataset, options.data_root, options.pictures)
    shared = Setup(options=options, png=pictures.png, folder=folder, start=patient_server)
    return TrustSetup(**vars(shared), bundle=bundle, certificate=certificate, pictures=pictures)


def run(options: TrustOptions) -> None:
    """Measure the parts."""
    wrk_path()
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder)).publish("trust", TRUST_PARTS)
