"""What all parts share: pictures, requests with them, and servers with default options."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.harness.pictures import encode
from benchmarks.harness.requests import Request, prediction, write_requests
from benchmarks.harness.server import Server, offramp_server
from benchmarks.options import HostileOptions

# Address of the client whose waits are measured; the attacker has another.
HONEST_SOURCE = "127.0.0.2"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
READYZ = LIVEZ.replace(b"livez", b"readyz")
PHOTO_SIZE = (320, 240)
NUM_PHOTOS = 32
PROBES_PER_S = 20.0


@dataclass(frozen=True)
class Setup:
    """png: small test pictures. folder: for the requests. start: starts a server, by model and flags."""

    options: HostileOptions
    png: list[bytes] = field(repr=False)
    folder: Path
    start: Callable[..., AbstractContextManager[Server]] = offramp_server

    def serve(self, frontends: int) -> AbstractContextManager[Server]:
        """A server with the default of every other option: ready inside, stopped after."""
        return self.start(self.options.model, *(("--frontends", str(frontends)) if frontends else ()))

    def requests(self, name: str, *requests: Request | bytes) -> Path:
        """These requests, in a folder of this name."""
        return write_requests(requests, self.folder / name)

    def picture_requests(self) -> Path:
        """A request for each picture, at full depth."""
        return self.requests("pictures", *(prediction(picture, "threshold=1") for picture in self.png))

    def photo_requests(self) -> Path:
        """Requests with photographs of some ten kB: the pictures, enlarged."""
        return self.requests("photos", *(prediction(photo(p), media_type="image/jpeg") for p in self.png[:NUM_PHOTOS]))


def photo(png: bytes) -> bytes:
    """The picture as a JPEG of PHOTO_SIZE."""
    return encode(Image.open(io.BytesIO(png)).convert("RGB").resize(PHOTO_SIZE), "jpeg", quality=90)
