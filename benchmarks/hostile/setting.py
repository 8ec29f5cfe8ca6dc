"""What all parts share: pictures, requests with them, and servers with default settings."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from benchmarks.hostile.options import HostileOptions
from benchmarks.peers.requests import Ask, write_requests
from benchmarks.serving import default_server

HONEST_SOURCE = "127.0.0.2"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
READYZ = LIVEZ.replace(b"livez", b"readyz")
PHOTO_SIZE = (320, 240)


@dataclass(frozen=True)
class Setting:
    """png: small test pictures. folder: for the requests. start: starts a server with the given options."""

    options: HostileOptions
    png: list[bytes] = field(repr=False)
    folder: Path
    start: Callable[..., AbstractContextManager[Any]] = default_server

    def serve(self, frontends: int) -> AbstractContextManager[Any]:
        """A server with the default of every other option: ready inside, ended after."""
        return self.start(self.options.model, *(("--frontends", str(frontends)) if frontends else ()))

    def picture_requests(self, query: str = "threshold=1") -> Path:
        """A request for each picture."""
        return self._written(query, (Ask(f"/v1/predict?{query}", "image/png", one).encoded() for one in self.png))

    def photo_requests(self) -> Path:
        """Requests with photographs of some ten kB: the pictures, enlarged."""
        return self._written(
            "photos", (Ask("/v1/predict", "image/jpeg", photo(one)).encoded() for one in self.png[:32])
        )

    def requests(self, name: str, *requests: bytes) -> Path:
        """These requests, in a folder of this name."""
        return self._written(name, requests)

    def _written(self, name: str, requests: Iterable[bytes]) -> Path:
        folder = self.folder / name
        if not folder.exists():
            write_requests((), folder)
            for number, request in enumerate(requests):
                (folder / f"{number:06d}.http").write_bytes(request)
        return folder


def photo(png: bytes) -> bytes:
    """The picture as a JPEG of PHOTO_SIZE."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").resize(PHOTO_SIZE).save(file, "jpeg", quality=90)
    return file.getvalue()


def say(text: str) -> None:
    """Report progress on stderr."""
    typer.echo(text, err=True)
