"""Whole HTTP requests made before the clock runs, as files that wrk and the open loop send as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Ask:
    """A POST: path with its query, content type and body; headers beside those."""

    path: str
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The request as it goes over the wire (RFC 9112)."""
        headers = {
            "Host": "127.0.0.1",
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            **self.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


def write_requests(asks: Iterable[Ask], folder: Path) -> Path:
    """Write 000000.http and on into `folder`, made for it; gives the folder."""
    folder.mkdir(parents=True)
    for number, ask in enumerate(asks):
        (folder / f"{number:06d}.http").write_bytes(ask.encoded())
    return folder


def read_requests(folder: Path) -> list[bytes]:
    """What `write_requests` wrote, in order."""
    return [path.read_bytes() for path in sorted(folder.glob("*.http"))]
