"""What all parts share: the bundle with its certificate, the test pictures, requests, and servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import percentile
from benchmarks.harness.open_loop import REFUSALS, Sent
from benchmarks.harness.pictures import TestPictures, read_test_pictures
from benchmarks.harness.requests import prediction, write_requests
from benchmarks.harness.server import Server, patient_server
from benchmarks.options import TrustOptions
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.certificate import Certificate

# The contract that most parts are measured at, where it is certified.
USUAL = 0.01
# Pictures that are sent over and over where only speed counts.
LOAD_PICTURES = 2000


@dataclass(frozen=True)
class Setup:
    """folder: to write requests into. start: starts a server, by model and flags."""

    options: TrustOptions
    bundle: Bundle
    certificate: Certificate
    pictures: TestPictures
    folder: Path
    start: Callable[..., AbstractContextManager[Server]] = patient_server

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
        """Name and version of the model, and its calibration."""
        return f"{self.bundle.name} {self.bundle.version}, calibration {self.certificate.version}"

    def serve(self, *flags: str, model: Path | None = None) -> AbstractContextManager[Server]:
        """A server with these options. model: another bundle."""
        return self.start(model or self.options.model, *flags)

    def requests(self, query: str, count: int | None = None, key: str = "") -> list[bytes]:
        """A request for each of the first `count` pictures."""
        return encode_all(query, self.pictures.png[:count], key)

    def requests_folder(self, query: str, count: int | None = None) -> Path:
        """The same as files."""
        return write_requests(self.requests(query, count), self.folder / f"{query}-{count}")


def prepare(options: TrustOptions, folder: Path, pictures: TestPictures | None = None) -> Setup:
    """Load bundle and pictures. pictures: in place of the data set's. Raises BenchmarkError without certificate."""
    bundle = load_bundle(options.model or EMBEDDED)
    if bundle.certificate is None or not bundle.certificate.points:
        raise BenchmarkError(f"{bundle.name} certifies nothing: run `offramp calibrate`, or give another --model")
    pictures = pictures or read_test_pictures(options.dataset, options.data_root, options.pictures)
    return Setup(options, bundle, bundle.certificate, pictures, folder)


def encode_all(query: str, png: Sequence[bytes], key: str = "") -> list[bytes]:
    """A request for each picture. key: an API key."""
    return [prediction(picture, query, key=key).encoded() for picture in png]


@dataclass(frozen=True)
class GoodputFigures:
    """Figures of the requests that were due in the measured seconds.

    offered_per_s, answered_per_s: all requests, and those with an answer. goodput: those with one in time, a second.
    refused: share answered with 429 or 503. failed: number that got anything else, or nothing. p50_ms, p99_ms: from
    when it was due to the answer; NaN without any.
    """

    offered_per_s: float
    answered_per_s: float
    goodput: float
    refused: float
    failed: int
    p50_ms: float
    p99_ms: float


def goodput_figures(sent: Sequence[Sent], seconds: float, objective_s: float) -> GoodputFigures:
    """Figures of `seconds` measured seconds. objective_s: latency that is in time."""
    late_s = [one.latency_s for one in sent if one.status == 200]
    refused = sum(one.status in REFUSALS for one in sent)
    return GoodputFigures(
        offered_per_s=len(sent) / seconds,
        answered_per_s=len(late_s) / seconds,
        goodput=sum(latency_s <= objective_s for latency_s in late_s) / seconds,
        refused=refused / max(1, len(sent)),
        failed=len(sent) - refused - len(late_s),
        p50_ms=1e3 * percentile(late_s, 50),
        p99_ms=1e3 * percentile(late_s, 99),
    )
