"""Bytes to requests: any bytes, in any pieces."""

from __future__ import annotations

import pytest

from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.parser import SLICE_BYTES, Expects, Head, RequestParser
from offramp.server.http.problems import Problem

LIMITS = HttpLimits(url_bytes=1000, head_bytes=10_000, num_headers=20)
HELLO = b"Content-Length: 5\r\n\r\nhello"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Trailer: z\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


class Seen:
    """All events of a parser."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.bodies: list[bytes] = []
        self.ended = 0

    def on_head(self, head: Head) -> None:
        self.heads.append(head)
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_end(self) -> None:
        self.ended += 1


def parse(data: bytes, piece_bytes: int = 10**9) -> Seen:
    seen = Seen()
    parser = RequestParser(LIMITS, seen)
    while data:
        used = parser.feed(data[:piece_bytes])
        data = data[used:]
    return seen


OTHER_VERSIONS = (b"1.2", b"2", b"3", b"3.0", b"9.9", b"11.1")


def problem_of(data: bytes, piece_bytes: int = 10**9) -> str:
    with pytest.raises(Problem) as raised:
        parse(data, piece_bytes)
    return raised.value.kind.slug


@pytest.mark.parametrize("body", [HELLO, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("upgrade", [b"", H2C, b"Connection: upgrade\r\nUpgrade: websocket\r\n"], ids=str)
@pytest.mark.parametrize("piece_bytes", [1, 7, 10**9])
def test_upgrade_is_ignored_and_the_body_is_a_body(upgrade, body, piece_bytes):
    post = b"POST /a%20b?c=d HTTP/1.1\r\nHost: x\r\n" + upgrade + body
    seen = parse(post + post + b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n", piece_bytes)
    assert [(head.method, head.path, head.query) for head in seen.heads] == [
        ("POST", "/a b", b"c=d"),
        ("POST", "/a b", b"c=d"),
        ("GET", "/last", b""),
    ]
    assert seen.bodies == [b"hello", b"hello", b""]
    assert seen.ended == 3
    assert all(head.keep_alive for head in seen.heads)


def test_a_body_that_looks_like_a_request_is_never_one():
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Content-Length: %d\r\n\r\n" % len(smuggled)
    seen = parse(head + smuggled)
    assert [each.path for each in seen.heads] == ["/"]
    assert seen.bodies == [smuggled]


def test_upgrade_without_a_body_is_an_ordinary_request():
    seen = parse(b"GET / HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [head.path for head in seen.heads] == ["/", "/next"]
    assert seen.ended == 2


def test_trailers_change_nothing():
    [head] = parse(b"POST / HTTP/1.1\r\nHost: x\r\n" + CHUNKED).heads
    assert b"x-trailer" not in dict(head.headers)


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "malformed-request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "malformed-request"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "http-version"),
        (b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", "http-version"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", "method-not-allowed"),
        *((b"GET / HTTP/%s\r\nHost: x\r\n\r\n" % version, "http-version") for version in OTHER_VERSIONS),
        (b"GET / HTTP/x.y\r\nHost: x\r\n\r\n", "malformed-request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http-version"),
        (b"\x16\x03\x01 hello", "malformed-request"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Content-Length: +5\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Transfer-Encoding: gzip\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Transfer-Encoding: xchunked\r\n\r\n", "malformed-request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Transfer-Encoding: gzip\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", "malformed-request"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_what_is_no_http_1_1_is_refused(data, slug, piece_bytes):
    assert problem_of(data, piece_bytes) == slug


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "this looks like HTTP/2: send HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "this looks like TLS: send plain HTTP"),
        (b"GET / HTTP/9.9\r\n\r\n", "the server speaks HTTP/1.1 and HTTP/1.0, and no other version: use HTTP/1.1"),
        (b"GET / FOO\r\n\r\n", "this is not a valid HTTP/1.1 request: its first line does not end with HTTP/1.1"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_another_protocol_is_named(data, detail, piece_bytes):
    with pytest.raises(Problem) as raised:
        parse(data, piece_bytes)
    assert raised.value.detail == detail


def test_http_1_0_needs_no_host_and_is_not_kept_alive():
    [head] = parse(b"GET / HTTP/1.0\r\n\r\n").heads
    assert (head.version, head.keep_alive) == ("1.0", False)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"GET /" + b"a" * 1001, "url-too-long"),
        (GET + b"X: " + b"a" * 30_000, "headers-too-large"),
        (GET + b"a" * 30_000, "headers-too-large"),
        (GET + b"".join(b"X-%d: y\r\n" % i for i in range(21)), "headers-too-large"),
        (b"\r\n" * 10_000, "headers-too-large"),
        (POST + b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 5_000, "headers-too-large"),
        (POST + b"5\r\nhello\r\n0\r\nX: " + b"y" * 30_000, "headers-too-large"),
        (POST + b"5;" + b"e" * 30_000, "headers-too-large"),
    ],
    ids=["url", "value", "name", "headers", "empty lines", "trailers", "one trailer", "extension"],
)
@pytest.mark.parametrize("piece_bytes", [100, 10**9])
def test_what_has_no_end_is_refused_before_its_end(data, slug, piece_bytes):
    assert problem_of(data, piece_bytes) == slug


def test_what_is_within_the_limits_is_taken():
    headers = b"".join(b"X-%d: %s\r\n" % (i, b"y" * 400) for i in range(19))
    seen = parse(b"GET /" + b"a" * 999 + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert len(seen.heads[0].headers) == 20


@pytest.mark.parametrize("piece_bytes", [1, 100, 10**9])
def test_the_limit_of_a_head_is_exact(piece_bytes):
    fill = LIMITS.head_bytes - len(GET + b"X: \r\n\r\n")
    assert parse(GET + b"X: " + b"y" * fill + b"\r\n\r\n", piece_bytes).ended == 1
    assert problem_of(GET + b"X: " + b"y" * (fill + 1) + b"\r\n\r\n", piece_bytes) == "headers-too-large"


@pytest.mark.parametrize("piece_bytes", [1, 100, 10**9])
def test_trailers_have_the_limit_of_a_head(piece_bytes):
    trailer = POST + b"5\r\nhello\r\n0\r\nX: %s\r\n\r\n"
    assert parse(trailer % (b"y" * (LIMITS.head_bytes - 100)), piece_bytes).ended == 1
    assert problem_of(trailer % (b"y" * LIMITS.head_bytes), piece_bytes) == "headers-too-large"
    # The head before them does not count.
    head = POST.replace(b"Host", b"Y: " + b"y" * 6000 + b"\r\nHost")
    assert parse(head + b"5\r\nhello\r\n0\r\nX: " + b"y" * 6000 + b"\r\n\r\n", piece_bytes).ended == 1


def test_a_large_body_of_known_length_is_parsed_in_one_go():
    seen = Seen()
    parser = RequestParser(LIMITS, seen)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    data = head + b"x" * 100_000 + b"GET / HTTP/1.1\r\n" + b"y" * 100_000
    end = parser.feed(data)
    assert (end, parser.expects) == (len(head), Expects.BODY)
    end = parser.feed(data, end)
    assert (end, parser.expects) == (len(head) + 100_000, Expects.REQUEST)
    assert parser.feed(data, end) == end + SLICE_BYTES


def test_what_the_listener_raises_comes_out_as_it_is():
    class Refusing(Seen):
        def on_head(self, head: Head) -> None:
            raise LookupError("not today")

    with pytest.raises(LookupError, match="not today"):
        RequestParser(LIMITS, Refusing()).feed(GET + b"\r\n")
