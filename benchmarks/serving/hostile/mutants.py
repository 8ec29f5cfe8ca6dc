"""Mutated pictures, bodies, queries and heads: whether any of them causes an error of the server.

A mutant is a function of its number: `--first NUMBER --mutants 1` sends it again.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import struct
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from benchmarks.harness.client import send_each
from benchmarks.harness.figures import Document, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import BROKEN, REFUSED, SILENT, Load, Sent
from benchmarks.harness.pictures import encode
from benchmarks.harness.requests import Request, form, write_requests
from benchmarks.harness.results import say
from benchmarks.serving.hostile.setup import HostileSetup

CONNECTIONS = 16
TIMEOUT_S = 20.0
CHUNK = 2048
MOST_TRIES = 5
# Kinds of mutants by number. Where a mutated head ends is unknown, so its connection is closed after it.
KINDS = ("picture", "picture", "picture", "picture", "body", "body", "query", "head")
NAMES = (
    *("threshold", "thresholds", "max_disagreement", "degrade_to", "min_exit", "max_exit", "deadline_ms", "top_k"),
    *("detail", "version", "images", "image", "treshold"),
)
EDGES = (
    *("0", "1", "-1", "0.5", "1e-320", "1e400", "-0", "NaN", "Infinity", "2147483648", "18446744073709551616"),
    *("9" * 400, "0x10", "true", "null", "", "%00", "%ff", "0.1,0.2,0.3", "[]", "{}", '"', "\u00e9", "١"),
)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
MOST_BYTES = 2**16
# Server errors that are right where the request has these bytes: too much work, a passed deadline, no HTTP/1.
ALLOWED = {503: b"", 504: b"deadline_ms", 505: b""}


class Seeds:
    """What is mutated: tiny pictures in every format and mode, and requests made of them."""

    def __init__(self, png: Sequence[bytes]) -> None:
        image = Image.open(io.BytesIO(png[0])).convert("RGB")
        small = Image.open(io.BytesIO(png[1])).convert("RGB").resize((9, 5))
        self.pictures = [*_encode_all(image), *_encode_all(small)]

    def mutant(self, number: int) -> bytes:
        """The request of that number."""
        draw = random.Random(number)
        kind = KINDS[number % len(KINDS)]
        name, picture = draw.choice(self.pictures)
        if kind == "picture":
            picture = self._mutate(picture, draw)
            if name == "png" and draw.random() < 0.5:
                picture = with_check_sums(picture)
        request = self._request(name, picture, draw)
        if kind == "query":
            request = Request("/v1/predict?" + _query(draw), request.content_type, request.body)
        if kind == "body":
            request = Request(request.path, request.content_type, self._mutate(request.body, draw))
        whole = request.encoded()
        if kind != "head":
            return whole
        head, _, body = whole.partition(b"\r\n\r\n")
        return self._mutate(head, draw) + b"\r\n\r\n" + body

    def _request(self, name: str, picture: bytes, draw: random.Random) -> Request:
        way = draw.random()
        if way < 0.7:
            return Request(
                "/v1/predict?threshold=0.5", draw.choice((f"image/{name}", "application/octet-stream")), picture
            )
        if way < 0.85:
            fields = {"images": [base64.b64encode(picture).decode()], "threshold": 0.5, "top_k": 2, "detail": True}
            return Request("/v1/predict", "application/json", json.dumps(fields).encode())
        return form("/v1/predict", (("image", picture), ("threshold", b"0.5"), ("top_k", b"2")))

    def _mutate(self, data: bytes, draw: random.Random) -> bytes:
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            data = self._mutate_once(data, draw)[:MOST_BYTES]
        return data

    def _mutate_once(self, data: bytes, draw: random.Random) -> bytes:
        at, end = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
        match draw.randrange(8):
            case 0 | 1 if at < len(data):
                return data[:at] + bytes((data[at] ^ 1 << draw.randrange(8),)) + data[at + 1 :]
            case 2:
                return data[:at]
            case 3:
                return data[:at] + data[min(end, at + draw.randrange(1, 64)) :]
            case 4:
                return data[:at] + draw.randbytes(draw.randrange(1, 64)) + data[at:]
            case 5:
                return data[:at] + draw.choice(self.pictures)[1][end:]
            case 6:
                return data[:at] + data[at:end] * draw.choice((2, 3, 50)) + data[end:]
        numbers = list(NUMBER.finditer(data))
        if numbers and draw.random() < 0.5:
            number = draw.choice(numbers)
            return data[: number.start()] + draw.choice(EDGES).encode() + data[number.end() :]
        edge = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1))
        patch = edge.to_bytes(draw.choice((4, 4, 8)), draw.choice(("big", "little")))
        patch = patch[-draw.choice((1, 2, 4)) :] if patch[0] == 0 else patch[: draw.choice((1, 2, 4))]
        return data[:at] + patch + data[at + len(patch) :]


def _encode_all(image: Image.Image) -> list[tuple[str, bytes]]:
    """Format and file, one for each kind of file that a decoder treats in another way."""
    ways: tuple[tuple[str, str, dict[str, Any]], ...] = (
        *(("png", mode, {}) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")),
        ("png", "P", {"transparency": 3}),
        *(("jpeg", mode, {}) for mode in ("RGB", "L", "CMYK")),
        (
            "jpeg",
            "RGB",
            {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"},
        ),
        *(("webp", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
        ("webp", "RGB", {"save_all": True, "append_images": [image.rotate(90)]}),
        *(("bmp", mode, {}) for mode in ("RGB", "P", "L", "1")),
        ("gif", "P", {}),
        ("gif", "P", {"save_all": True, "append_images": [image.rotate(90).convert("P")]}),
    )
    modes = (image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode) for _, mode, _ in ways)
    return [(format, encode(each, format, **options)) for (format, _, options), each in zip(ways, modes, strict=True)]


def _query(draw: random.Random) -> str:
    """Up to five parameters, most of them with a number at an edge."""
    pairs = (f"{draw.choice(NAMES)}={draw.choice(EDGES)}" for _ in range(draw.randrange(1, 6)))
    return draw.choice(("&", "&", "&", "&&", ";")).join(pairs).encode("ascii", "ignore").decode()


def with_check_sums(png: bytes) -> bytes:
    """The same chunks with the right check sums, so that a decoder reads their content."""
    fixed, at = png[:8], 8
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        content = png[at + 4 : at + 8 + size]
        fixed += png[at : at + 4] + content + struct.pack(">I", zlib.crc32(content))
        at += 12 + size
    return fixed + png[at:]


def measure(setup: HostileSetup) -> dict[str, Any]:
    """Send all mutants in order. A request that got a server error, or no answer, is kept as a file."""
    options, seeds, start_s = setup.options, Seeds(setup.png), time.monotonic()
    at, end = options.first, options.first + options.mutants
    statuses, bad, dead = Counter[str](), list[Sent](), 0
    (frontends, *_) = options.frontend_counts("mutants")
    while at < end:
        with setup.frontends(frontends) as server:
            alive = True
            while alive and at < end:
                numbers, at = range(at, min(end, at + CHUNK)), min(end, at + CHUNK)
                sent = send_mutants(server.port, seeds, numbers)
                statuses.update(str(each.status or each.body) for each in sent)
                bad += [each for each in sent if is_bad(each, seeds)]
                alive = all(each.body != REFUSED for each in sent)
                say(f"{at - options.first:,} mutants: {dict(statuses)}")
        dead += not alive
    if bad:
        failed = write_requests([], options.output.parent / "hostile-mutants")
        for each in bad:
            (failed / f"{each.number}.http").write_bytes(seeds.mutant(each.number))
    return {
        "mutants": options.mutants,
        "first": options.first,
        "per_s": options.mutants / (time.monotonic() - start_s),
        "dead": dead,
        "frontends": frontends,
        "statuses": dict(sorted(statuses.items())),
        "bad": [{"number": each.number, "answer": each.status or each.body} for each in bad],
    }


def send_mutants(port: int, seeds: Seeds, numbers: range) -> list[Sent]:
    """Send these mutants, those with a mutated head last. Mutants that are refused for overload are sent again."""
    sent: dict[int, Sent] = {}
    for way in ("ask", "close"):
        load = Load(port, CONNECTIONS, way=way, timeout_s=TIMEOUT_S)
        left = [number for number in numbers if (KINDS[number % len(KINDS)] == "head") == (way == "close")]
        for _ in range(MOST_TRIES):
            sent |= {each.number: each for each in send_each(load, ((n, seeds.mutant(n)) for n in left)).sent}
            left = [number for number in left if sent[number].status == 503]
    return list(sent.values())


def is_bad(sent: Sent, seeds: Seeds) -> bool:
    """Whether the server failed. Ending a connection whose head cannot be parsed is no failure."""
    if sent.status == 0:
        return sent.body == SILENT or (sent.body == BROKEN and KINDS[sent.number % len(KINDS)] != "head")
    if sent.status < 500:
        return False
    return sent.status not in ALLOWED or ALLOWED[sent.status] not in seeds.mutant(sent.number)


def section(document: Document) -> str:
    """How often each answer came, and the failures."""
    rows = [{"status": status, "count": count} for status, count in document["statuses"].items()]
    bad = ", ".join(f"{each['number']} ({each['answer']})" for each in document["bad"][:20]) or "none"
    how = (
        "{mutants:,} mutants from number {first:,}, {per_s:.0f} a second. Failures of the server: "
        f"{len(document['bad'])}, by number: {bad}. Servers that died: {{dead}}."
    )
    return section_of(document, table({"answer": "{status}", "mutants": "{count:,}"}, rows), how)
