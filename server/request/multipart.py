"""Parser for multipart/form-data (RFC 7578, RFC 2046) in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from offramp.server.http.problems import MALFORMED_BODY, TOO_MANY_IMAGES, Problem

# Headers of one part. The longest file name of a usual file system fits, percent-encoded.
MAX_HEADER_BYTES = 8 * 1024

# The rest of a boundary's line: "--" after the last part, else a few blanks.
REST_OF_LINE = re.compile(rb"--|[ \t]{0,80}(\r?\n)")
FOLD = re.compile(rb"\r?\n[ \t]+")
DISPOSITION = re.compile(rb"^content-disposition[ \t]*:(.*)", re.IGNORECASE | re.MULTILINE)
PARAMETER = re.compile(rb';\s*+([^\s;="]++)\s*+=\s*+("(?:[^"\\]|\\.)*+"|[^;"]*+)', re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One field of a form. is_file: it has a file name."""

    name: str
    content: bytes
    is_file: bool


@dataclass(frozen=True)
class _Boundary:
    """A line between parts: its end in the body, and its line end, which is empty after the last part."""

    end: int
    line_end: bytes


def parse_multipart(content_type: str, body: bytes, max_parts: int) -> list[Part]:
    """All parts, in order. Bytes before the first boundary and after the last one are skipped.

    Raises Problem: 400 for a body that is malformed, cut off, or has a part without a name; 413 for too many parts.
    """
    boundary = _unquoted(_parameters(content_type.encode("latin-1", "replace")).get(b"boundary", b""))
    if not boundary:
        raise Problem(MALFORMED_BODY, "the Content-Type of the multipart body names no boundary")
    parts: list[Part] = []
    for start, end, line_end in _spans(body, b"--" + boundary):
        if len(parts) == max_parts:
            raise Problem(TOO_MANY_IMAGES, f"the form has more than {max_parts} parts")
        parts.append(_part(body, start, end, line_end))
    return parts


def _spans(body: bytes, dashes: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start and end of each part with its headers, and the form's line end: CRLF, or LF from some programs."""
    first = 0 if body.startswith(dashes) else body.find(b"\n" + dashes) + 1
    if not body.startswith(dashes, first):
        raise _malformed("the boundary that its Content-Type names is not in it")
    boundary = _boundary(body, first, len(dashes))
    line_end = boundary.line_end
    while boundary.line_end:
        # An empty part has one line end between two boundaries, which belongs to the first one too.
        at = body.find(line_end + dashes, boundary.end - len(line_end))
        if at < 0:
            raise Problem(MALFORMED_BODY, "the multipart body is cut off: its last boundary is missing")
        yield boundary.end, max(boundary.end, at), line_end
        boundary = _boundary(body, at, len(line_end + dashes))


def _boundary(body: bytes, at: int, length: int) -> _Boundary:
    """The boundary at this place. RFC 2046 forbids all other lines that begin like one."""
    rest = REST_OF_LINE.match(body, at + length)
    if rest is None:
        raise _malformed("a line begins with the boundary and goes on")
    return _Boundary(rest.end(), rest[1] or b"")


def _part(body: bytes, start: int, end: int, line_end: bytes) -> Part:
    # The line end after the last header may be the one before the first header, or the boundary's.
    first, last = start - len(line_end), min(end + len(line_end), start + MAX_HEADER_BYTES)
    headers_end = body.find(2 * line_end, first, last)
    if headers_end < 0:
        raise _malformed(f"a part has no empty line after at most {MAX_HEADER_BYTES} bytes of headers")
    match = DISPOSITION.search(FOLD.sub(b" ", body[start:headers_end]))
    disposition = _parameters(match[1]) if match else {}
    if b"name" not in disposition:
        raise Problem(MALFORMED_BODY, "a part of the multipart body has no name in its Content-Disposition")
    is_file = b"filename" in disposition or b"filename*" in disposition
    content = body[headers_end + 2 * len(line_end) : end]
    return Part(_unquoted(disposition[b"name"]).decode("utf-8", "replace"), content, is_file)


def _parameters(header: bytes) -> dict[bytes, bytes]:
    """Parameters of a header, by name in lower case, with their raw values."""
    return {name.lower(): value for name, value in PARAMETER.findall(header)}


def _unquoted(value: bytes) -> bytes:
    if not value.startswith(b'"'):
        return value.strip()
    return re.sub(rb'\\(["\\])', rb"\1", value[1:-1])


def _malformed(what: str) -> Problem:
    return Problem(MALFORMED_BODY, f"the multipart body is malformed: {what}")
