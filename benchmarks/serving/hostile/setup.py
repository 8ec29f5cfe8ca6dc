"""What all parts share: requests with pictures, and servers with default options."""

from __future__ import annotations

import io
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.harness.pictures import encode, read_test_pictures
from benchmarks.harness.requests import prediction, predictions
from benchmarks.harness.server import Server
from benchmarks.options import HOSTILE_PARTS, HostileOptions
from benchmarks.serving.answers import FULL_DEPTH
from benchmarks.serving.setup import Setup

# Address of the client whose waits are measured; the attacker has another.
HONEST_SOURCE = "127.0.0.2"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
READYZ = LIVEZ.replace(b"livez", b"readyz")
PHOTO_SIZE = (320, 240)
NUM_PHOTOS = 32
PROBES_PER_S = 20.0


@dataclass(frozen=True, kw_only=True)
class HostileSetup(Setup[HostileOptions]):
    """Small test pictures, and servers by the number of frontends."""

    def frontends(self, number: int) -> AbstractContextManager[Server]:
        """A server with so many frontends and the default of every other option."""
        return self.serve(*(("--frontends", str(number)) if number else ()))

    def picture_requests(self) -> Path:
        """A request for each picture, at full depth."""
        return self.write("pictures", predictions(self.png, FULL_DEPTH))

    def photo_requests(self) -> Path:
        """Requests with photographs of some ten kB: the pictures, enlarged."""
        return self.write("photos", (prediction(photo(p), media_type="image/jpeg") for p in self.png[:NUM_PHOTOS]))


def photo(png: bytes) -> bytes:
    """The picture as a JPEG of PHOTO_SIZE."""
    return encode(Image.open(io.BytesIO(png)).convert("RGB").resize(PHOTO_SIZE), "jpeg", quality=90)


def run(options: HostileOptions) -> None:
    """Measure the parts."""
    png = read_test_pictures(options.dataset, options.data_root, options.pictures).png
    with tempfile.TemporaryDirectory() as folder:
        HostileSetup(options=options, png=png, folder=Path(folder)).publish("hostile", HOSTILE_PARTS)
