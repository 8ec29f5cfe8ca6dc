"""Bytes to requests: httptools' parser with limits, which ignores Upgrade. No sockets, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol
from urllib.parse import unquote

import httptools

from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.problems import (
    HEADERS_TOO_LARGE,
    HTTP_VERSION,
    MALFORMED_REQUEST,
    METHOD_NOT_ALLOWED,
    URL_TOO_LONG,
    Problem,
)

# Maximum number of bytes given to httptools at once outside a body: it gathers headers and chunks without a callback.
SLICE_BYTES = 4096

# End of a head, and of a body in chunks. httptools accepts no other line ends.
END = b"\r\n\r\n"
TAIL_BYTES = len(END) - 1

OTHER_VERSION = "the server speaks HTTP/1.1 and HTTP/1.0, and no other version: use HTTP/1.1"

# Errors of httptools that another version or protocol causes.
VERSION_ERRORS = {
    "Invalid HTTP version": OTHER_VERSION,
    "Expected dot": OTHER_VERSION,
    "Pause on PRI/Upgrade": "this looks like HTTP/2: send HTTP/1.1",
    "Expected HTTP/2 Connection Preface": "this looks like HTTP/2: send HTTP/1.1",
}
NOT_HTTP = "Expected HTTP/, RTSP/ or ICE/"

# First byte of a TLS handshake.
TLS = b"\x16"

FRAMING = (b"content-length", b"transfer-encoding")


class Expects(Enum):
    """What the client has to send next."""

    REQUEST = "a request"
    HEAD = "the rest of a request's head"
    BODY = "the rest of a request's body"


# Looking up a member of an enumeration takes ten times as long as a name.
REQUEST, HEAD, BODY = Expects


@dataclass(slots=True)
class Head:
    """A request without its body. path: decoded, as raw_path is not."""

    method: str
    version: str
    path: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]
    keep_alive: bool


class Listener(Protocol):
    """Receives the parser's events. `feed` raises the errors of on_head."""

    def on_head(self, head: Head) -> None:
        """A request has begun."""

    def on_body(self, body: bytes) -> None:
        """A part of its body."""

    def on_end(self) -> None:
        """It is whole."""


class RequestParser:
    """The requests of one connection. After `feed` has raised, it must not be called again."""

    def __init__(self, limits: HttpLimits, listener: Listener) -> None:
        self.expects = REQUEST
        self._limits = limits
        self._most_headers, self._most_head_bytes = limits.num_headers, limits.head_bytes
        self._listener = listener
        self._parser = self._new_parser()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._got_on = False
        self._tail = b""
        self._fruitless_bytes = self._left_bytes = self._head_bytes = 0

    def feed(self, data: bytes, start: int = 0) -> int:
        """Parse bytes from `start`, at most to the end of a request. Returns where to go on.

        Raises Problem if they are not HTTP, or too many.
        """
        piece = data[start : self._piece_end(data, start)]
        end = start + len(piece)
        self._got_on = False
        self._tail = (self._tail + piece[-TAIL_BYTES:])[-TAIL_BYTES:]
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on()
            return start + int(upgrade.args[0])
        except httptools.HttpParserError as error:
            # httptools wraps the error of a callback in an error of its own.
            if error.__context__ is not None:
                raise error.__context__ from None
            raise _refusal(str(error), piece) from error
        if self._got_on:
            self._fruitless_bytes = 0
            return end
        # httptools gathers a header, a trailer or a chunk's extension without a callback.
        self._fruitless_bytes += len(piece)
        if self._fruitless_bytes > self._most_head_bytes:
            raise _head_too_large(self._most_head_bytes)
        return end

    def _piece_end(self, data: bytes, start: int) -> int:
        """The end of the next piece: httptools cannot stop within a piece."""
        if self._left_bytes > 0:
            return start + self._left_bytes
        # An end may have begun in the piece before.
        across = (self._tail + data[start : start + TAIL_BYTES]).find(END)
        if across >= 0:
            return start + across + len(END) - len(self._tail)
        at = data.find(END, start, start + SLICE_BYTES)
        return start + SLICE_BYTES if at < 0 else at + len(END)

    def forget(self) -> None:
        """Drop the references back to the listener."""
        del self._parser

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # A client may send more bytes after `Connection: close`: they are ignored.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _read_on(self) -> None:
        """Read the body of a request with Upgrade like any other body: a server may ignore Upgrade (RFC 9110, 7.8).

        httptools stops after such a head, because another protocol may follow. A new parser reads a head with the same
        framing, and then the body. The callbacks ignore this second head.
        """
        self._parser = self._new_parser()
        self._parser.feed_data(self._framing_head())

    def _framing_head(self) -> bytes:
        framing = b"".join(b"%s: %s\r\n" % header for header in self._headers if header[0] in FRAMING)
        return b"POST / HTTP/1.1\r\n%s\r\n" % framing

    def _check_framing(self) -> None:
        """Raises Problem for a head with Upgrade whose body has an invalid length: httptools does not check it."""
        try:
            httptools.HttpRequestParser(None).feed_data(self._framing_head())
        except httptools.HttpParserError as error:
            raise _malformed(str(error)) from error

    # Called by httptools

    def on_message_begin(self) -> None:
        if self.expects is not BODY:
            self._url, self._headers, self._head_bytes = b"", [], 0
            self.expects = HEAD

    def on_url(self, url: bytes) -> None:
        if self.expects is BODY:
            return
        self._url += url
        if len(self._url) > self._limits.url_bytes:
            limit = self._limits.url_bytes
            raise Problem(URL_TOO_LONG, f"the URL is longer than {limit} bytes: shorten it", limit_bytes=limit)

    def on_header(self, name: bytes, value: bytes) -> None:
        # The line has a colon, a space and a line end beside the name and the value.
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._most_head_bytes:
            raise _head_too_large(self._most_head_bytes)
        # A header in a body is a trailer, which is ignored.
        if self.expects is BODY:
            return
        headers = self._headers
        if len(headers) == self._most_headers:
            limit = self._most_headers
            raise Problem(HEADERS_TOO_LARGE, f"there are more than {limit} headers: send fewer", limit_headers=limit)
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.expects is BODY:
            return
        method, version = self._parser.get_method().decode("ascii"), self._parser.get_http_version()
        # The request line, with two spaces, the version and a line end; and the empty line after the headers.
        if self._head_bytes + len(method) + len(self._url) + len("  HTTP/1.1\r\n\r\n") > self._most_head_bytes:
            raise _head_too_large(self._most_head_bytes)
        # From now on it counts the trailers.
        self._head_bytes = 0
        headers = self._headers
        fields = dict(headers)
        if version not in ("1.1", "1.0"):
            raise Problem(HTTP_VERSION, OTHER_VERSION)
        if method == "CONNECT":
            raise Problem(METHOD_NOT_ALLOWED, "the server is no proxy: CONNECT is not taken")
        if version == "1.1" and (b"host" not in fields or (len(fields) < len(headers) and _hosts(headers) > 1)):
            raise _malformed("it needs one Host header, and only one")
        if self._parser.should_upgrade():
            self._check_framing()
        path, raw_path, query = _parse_url(self._url)
        keep_alive = version == "1.1" and self._parser.should_keep_alive()
        head = Head(method, version, path, raw_path, query, headers, fields, keep_alive)
        self._listener.on_head(head)
        self._got_on = True
        self._left_bytes = int(fields.get(b"content-length", 0))
        self.expects = BODY

    def on_body(self, body: bytes) -> None:
        self._got_on = True
        self._left_bytes -= len(body)
        self._listener.on_body(body)

    def on_message_complete(self) -> None:
        # httptools ends a request after a head with Upgrade.
        if self._parser.should_upgrade():
            return
        self._got_on = True
        self._left_bytes = 0
        self.expects = REQUEST
        self._listener.on_end()


def _parse_url(url: bytes) -> tuple[str, bytes, bytes]:
    """Decoded path, path as sent, and query. Raises Problem."""
    try:
        parsed = httptools.parse_url(url)
        raw_path = parsed.path or b"/"
        path = raw_path.decode("ascii")
    except (httptools.HttpParserError, UnicodeDecodeError) as error:
        raise _malformed("its URL cannot be read") from error
    return unquote(path) if "%" in path else path, raw_path, parsed.query or b""


def _hosts(headers: list[tuple[bytes, bytes]]) -> int:
    return [name for name, _ in headers].count(b"host")


def _head_too_large(limit_bytes: int) -> Problem:
    detail = f"headers, trailers or chunk extensions are larger than {limit_bytes} bytes: send fewer"
    return Problem(HEADERS_TOO_LARGE, detail, limit_bytes=limit_bytes)


def _refusal(error: str, piece: bytes) -> Problem:
    """The problem for an error of httptools in this piece."""
    if error in VERSION_ERRORS:
        return Problem(HTTP_VERSION, VERSION_ERRORS[error])
    if error == "Invalid method encountered" and piece.startswith(TLS):
        return Problem(MALFORMED_REQUEST, "this looks like TLS: send plain HTTP")
    return _malformed("its first line does not end with HTTP/1.1" if error == NOT_HTTP else error)


def _malformed(why: str) -> Problem:
    return Problem(MALFORMED_REQUEST, f"this is not a valid HTTP/1.1 request: {why}")
