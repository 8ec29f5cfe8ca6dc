"""Whole HTTP requests, made before the clock runs, as files that both load generators send unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError

BOUNDARY = "picture-9b1f"


@dataclass(frozen=True)
class Request:
    """A POST request. path: with its query. headers: beside Host, Content-Type and Content-Length."""

    path: str
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The bytes of the request (RFC 9112)."""
        content = {"Content-Type": self.content_type, "Content-Length": str(len(self.body))}
        headers = {"Host": "127.0.0.1", **content, **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


def prediction(picture: bytes, query: str = "", media_type: str = "image/png", key: str = "") -> Request:
    """A prediction request to Offramp. key: an API key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return Request(f"/v1/predict?{query}" if query else "/v1/predict", media_type, picture, headers)


def predictions(pictures: Iterable[bytes], query: str = "", key: str = "") -> list[bytes]:
    """The bytes of a prediction request for each PNG file."""
    return [prediction(picture, query, key=key).encoded() for picture in pictures]


def form(path: str, parts: Iterable[tuple[str, bytes]], media_type: str = "", **headers: str) -> Request:
    """A multipart form (RFC 7578). parts: name and content. media_type: of each part, which then is a file."""
    more = f'; filename="picture"\r\nContent-Type: {media_type}' if media_type else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"{more}\r\n\r\n'
    body = b"".join((head % name).encode() + content + b"\r\n" for name, content in parts)
    return Request(path, f"multipart/form-data; boundary={BOUNDARY}", body + f"--{BOUNDARY}--\r\n".encode(), headers)


def write_requests(requests: Iterable[Request | bytes], folder: Path) -> Path:
    """Write 000000.http and following into `folder`, unless it exists already. Returns the folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for number, request in enumerate(requests):
            content = request if isinstance(request, bytes) else request.encoded()
            (folder / f"{number:06d}.http").write_bytes(content)
    return folder


def read_requests(folder: Path) -> list[bytes]:
    """What `write_requests` wrote, in order. Raises BenchmarkError for an empty folder."""
    requests = [path.read_bytes() for path in sorted(folder.glob("*.http"))]
    if not requests:
        raise BenchmarkError(f"{folder}: no requests to send")
    return requests
