"""One connection: order, limits, time-outs, and last answers. Without sockets; see test_http_sockets.py for those."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.protocol import MOST_THROWN_AWAY_BYTES
from tests.server.http_wire import OpenGate, Site, answer

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


def slug(wire) -> str:
    """The last answer's sort of problem."""
    head, _, body = wire.written.rpartition(b"\r\n\r\n")
    problem = json.loads(body)
    last = head[head.rindex(b"HTTP/1.1") :].lower()
    assert b"connection: close" in last
    assert b"content-type: application/problem+json" in last
    assert f"x-request-id: {problem['request_id']}".encode() in last
    return problem["type"].rpartition(":")[2]


async def test_a_post_with_upgrade_is_answered_and_its_body_is_no_request():
    site = Site()
    protocol, wire = site.connect()
    body = GET % b"smuggled"
    head = b"POST /a HTTP/1.1\r\nHost: x\r\n" + H2C + b"Content-Length: %d\r\n\r\n" % len(body)
    protocol.data_received(head)
    await site.settle()
    protocol.data_received(body)
    await site.until(lambda: wire.answers == [b"200 /a" + body])
    protocol.data_received(GET % b"next")
    await site.until(lambda: len(wire.answers) == 2)
    assert wire.answers[1] == b"200 /next"
    assert len(site.echo.scopes) == 2


@pytest.mark.parametrize("size", [10**9, 100, 7])
async def test_two_thousand_pipelined_requests_are_answered_in_order(size):
    site = Site()
    protocol, wire = site.connect()
    requests = b"".join(GET % b"%d" % i if i % 3 else POST % (b"%d" % i, 4) + b"body" for i in range(2000))
    while requests:
        if wire.reading:
            protocol.data_received(requests[:size])
            requests = requests[size:]
        await asyncio.sleep(0)
    await site.until(lambda: wire.written.count(b"HTTP/1.1 ") == 2000)
    assert wire.answers == [b"200 /%d" % i if i % 3 else b"200 /%dbody" % i for i in range(2000)]
    assert wire.reading


CHUNKED = b"POST /%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize("request_", [GET % b"a", POST % (b"a", 4) + b"\r\n\r\n", CHUNKED % b"a"])
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_pipelined_request_is_not_parsed_before_the_answer_to_the_one_before_it(request_, pieces):
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    for at in range(0, len(request_), pieces):
        if at + pieces < len(request_):
            protocol.data_received(request_[at : at + pieces])
        else:
            protocol.data_received(request_[at:] + request_ * 100)
    await site.settle()
    assert not wire.reading
    assert len(site.echo.scopes) == 1
    assert protocol._unparsed == request_ * 100


async def test_bytes_of_pipelined_requests_have_a_budget_over_all_connections():
    site = Site(limits=HttpLimits(unparsed_bytes=3 * len(GET % b"a")))
    site.echo.open.clear()
    wires = []
    for _ in range(3):
        protocol, wire = site.connect()
        protocol.data_received((GET % b"a") * 2)
        wires.append(wire)
    refused, wire = site.connect()
    refused.data_received((GET % b"a") * 2)
    await site.settle()
    site.echo.open.set()
    await site.until(lambda: all(wire.answers == [b"200 /a"] * 2 for wire in wires))
    await site.until(lambda: b"503" in wire.written)
    assert wire.written.count(b"HTTP/1.1 200") == 1
    assert slug(wire) == "overloaded"
    protocol, wire = site.connect()
    protocol.data_received((GET % b"a") * 4)
    await site.until(lambda: wire.answers == [b"200 /a"] * 4)


async def test_what_comes_while_a_request_is_in_progress_is_kept_as_it_is():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    for path in (b"a", b"b", b"c"):
        protocol.data_received(GET % path)
    await site.settle()
    assert not wire.reading
    assert protocol._unparsed == GET % b"b" + GET % b"c"
    site.echo.open.set()
    await site.until(lambda: wire.answers == [b"200 /a", b"200 /b", b"200 /c"])


async def test_the_body_of_a_request_behind_another_arrives_whole():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a" + POST % (b"b", 6) + b"abc")
    await site.settle()
    protocol.data_received(b"def" + GET % b"c")
    await site.settle()
    site.echo.open.set()
    await site.until(lambda: wire.answers == [b"200 /a", b"200 /babcdef", b"200 /c"])
    assert wire.reading


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "malformed-request"),
        (b"nonsense\r\n\r\n", "malformed-request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Transfer-Encoding: gzip\r\n\r\n", "malformed-request"),
        (GET % (b"a" * 10_000), "url-too-long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000, "headers-too-large"),
    ],
    ids=["host", "junk", "upgrade", "url", "header"],
)
async def test_what_is_refused_early_gets_a_problem_and_then_a_gentle_end(data, expected):
    site = Site()
    protocol, wire = site.connect()
    protocol.data_received(data)
    assert slug(wire) == expected
    assert (wire.ended, wire.closed, wire.reading) == (True, False, True)
    written = wire.written
    protocol.data_received(GET % b"later")
    await site.settle()
    assert wire.written == written
    site.wait(4)
    assert wire.closed
    assert site.echo.scopes == []


async def test_a_refusal_waits_for_the_answers_before_it():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a" + GET % b"b" + b"junk\r\n\r\n" + GET % b"c")
    await site.settle()
    assert wire.written == b""
    site.echo.open.set()
    await site.until(lambda: len(wire.answers) == 3)
    assert wire.answers[:2] == [b"200 /a", b"200 /b"]
    assert slug(wire) == "malformed-request"
    assert wire.ended


async def test_a_body_that_cannot_be_parsed_is_refused_and_its_application_is_told():
    site = Site()
    protocol, wire = site.connect()
    protocol.data_received(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await site.settle()
    protocol.data_received(b"zzz\r\n")
    await site.until(lambda: site.echo.left == 1)
    assert slug(wire) == "malformed-request"
    assert len(wire.answers) == 1


async def test_a_refused_body_behind_another_request_does_not_disturb_that():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    bad = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n"
    protocol.data_received(GET % b"a" + bad)
    await site.settle()
    site.echo.open.set()
    await site.until(lambda: len(wire.answers) == 2)
    assert wire.answers[0] == b"200 /a"
    assert slug(wire) == "malformed-request"
    assert len(site.echo.scopes) == 1


LIMITS = HttpLimits(head_s=10, body_s=60, keep_alive_s=75, write_s=30)


@pytest.mark.parametrize(
    ("sent", "allowed_s", "problem"),
    [
        (b"", 10, None),
        (b"GET / HTT", 10, "request-timeout"),
        (POST % (b"", 9) + b"half", 60, "request-timeout"),
        (GET % b"", 75, None),
        (GET % b"" + b"GET / HTT", 10, "request-timeout"),
    ],
    ids=["silent", "half a head", "half a body", "idle", "half a later head"],
)
async def test_a_client_that_keeps_the_server_waiting_is_let_go(sent, allowed_s, problem):
    site = Site(limits=LIMITS)
    protocol, wire = site.connect()
    if sent:
        protocol.data_received(sent)
    await site.settle()
    site.wait(allowed_s)
    assert not wire.closed
    assert not wire.ended
    site.wait(1)
    if problem is None:
        assert wire.closed
        return
    assert slug(wire) == problem
    assert wire.ended
    await site.settle()
    assert site.echo.left == sent.count(b"half")


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTT", POST % (b"", 9) + b"half", GET % b""], ids=["silent", "head", "body", "idle"]
)
async def test_an_address_that_keeps_the_server_waiting_on_all_connections_shuts_no_other_out(sent):
    site = Site(limits=HttpLimits(connections=5))
    greedy = []
    for _ in range(5):
        greedy.append(site.connect("192.0.2.66"))
        if sent:
            greedy[-1][0].data_received(sent)
        await site.settle()
        site.wait(1)
    for number, path in enumerate((b"livez", b"readyz")):
        protocol, wire = site.connect()
        protocol.data_received(GET % path)
        await site.settle()
        assert wire.answers == [b"200 /" + path]
        assert [other.aborted for _, other in greedy] == [place <= number for place in range(5)]
    assert len(site.connections) == 5


async def test_a_request_at_work_is_never_closed_for_a_new_connection():
    site = Site(limits=HttpLimits(connections=3))
    site.echo.open.clear()
    clients = [site.connect("192.0.2.66") for _ in range(3)]
    for protocol, _ in clients:
        protocol.data_received(POST % (b"a", 4) + b"body")
        await site.settle()
    _, refused = site.connect()
    assert slug(refused) == "overloaded"
    assert not any(wire.closed for _, wire in clients)


async def test_a_client_that_does_not_read_its_answers_gives_way_to_a_new_connection():
    site = Site(limits=HttpLimits(connections=1))
    site.echo.open.clear()
    protocol, wire = site.connect("192.0.2.66")
    protocol.data_received((GET % b"a") * 10)
    await site.settle()
    protocol.pause_writing()
    _, new = site.connect()
    protocol.connection_lost(None)
    assert (wire.aborted, new.written) == (True, b"")


async def test_pipelined_requests_that_wait_for_their_turn_give_way_to_a_new_connection():
    site = Site(limits=HttpLimits(connections=1))
    protocol, wire = site.connect("192.0.2.66")
    protocol.data_received((GET % b"a") * 10)
    await site.until(lambda: len(wire.answers) == 1 and protocol._unparsed != b"" and not protocol._is_answering)
    _, new = site.connect()
    assert (wire.aborted, new.written) == (True, b"")


async def test_a_slow_but_steady_head_does_not_buy_time():
    site = Site(limits=LIMITS)
    protocol, wire = site.connect()
    for byte in (GET % b"abc")[:11]:
        protocol.data_received(bytes([byte]))
        site.wait(1)
    assert slug(wire) == "request-timeout"


async def test_the_time_for_headers_begins_with_their_first_byte():
    site = Site(limits=LIMITS)
    protocol, wire = site.connect()
    site.wait(9)
    protocol.data_received(b"GET / HTT")
    site.wait(10)
    assert wire.written == b""
    site.wait(1)
    assert slug(wire) == "request-timeout"


async def test_a_client_that_goes_while_nothing_is_read_is_noticed_by_the_sweep():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a")
    protocol.data_received(GET % b"b")
    await site.settle()
    site.wait(2)
    assert not wire.closed
    wire.get_extra_info("socket").is_reset = True
    site.wait(1)
    assert wire.aborted


async def test_a_request_at_work_has_all_the_time_it_needs():
    site = Site(limits=LIMITS)
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a" + b"GET / HTT")
    await site.settle()
    site.wait(1000)
    assert not wire.closed
    site.echo.open.set()
    await site.until(lambda: wire.answers == [b"200 /a"])
    await site.settle()
    site.wait(10)
    assert not wire.ended
    site.wait(1)
    assert slug(wire) == "request-timeout"


async def test_a_client_is_not_late_while_nothing_is_read():
    async def slow(scope, receive, send):
        await site.echo.open.wait()
        await site.echo(scope, receive, send)

    site = Site(slow, LIMITS)
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(POST % (b"", 200_000) + b"x" * 100_000)
    await site.settle()
    assert not wire.reading
    site.wait(1000)
    site.echo.open.set()
    await site.settle()
    assert wire.reading
    site.wait(60)
    assert wire.written == b""
    site.wait(1)
    assert slug(wire) == "request-timeout"


async def test_time_in_which_the_process_stood_still_does_not_count():
    site = Site(limits=LIMITS)
    _, wire = site.connect()
    site.clock.now_s += 3600
    site.connections.sweep()
    assert not wire.closed


async def test_a_client_that_does_not_read_is_cut_off():
    site = Site(limits=LIMITS)
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a")
    await site.settle()
    wire.unread_bytes = 100
    site.wait(31)
    assert not wire.aborted
    site.wait(1)
    assert wire.aborted
    assert len(site.connections) == 0


async def test_a_client_that_reads_in_the_end_is_not_cut_off():
    site = Site(limits=LIMITS)
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a")
    await site.settle()
    for unread_bytes in (100, 0, 100, 0):
        wire.unread_bytes = unread_bytes
        site.wait(18)
    assert not wire.closed


async def test_a_client_that_leaves_takes_every_request_along_without_a_word_in_the_log(caplog):
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received((GET % b"a") * 3)
    await site.settle()
    wire.close()
    protocol.connection_lost(None)
    site.echo.open.set()
    await site.settle()
    assert wire.written == b""
    assert len(site.echo.scopes) == 1
    assert not site.state.connections
    assert not site.state.tasks
    assert caplog.text == ""


async def test_an_answer_before_the_end_of_the_body_is_not_destroyed_by_the_close_behind_it():
    async def refuse(scope, receive, send):
        headers = [(b"connection", b"close"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})

    site = Site(refuse)
    protocol, wire = site.connect()
    protocol.data_received(POST % (b"", 1000) + b"half")
    await site.settle()
    assert wire.answers == [b"503 no"]
    assert (wire.ended, wire.closed) == (True, False)
    protocol.data_received(b"x" * 996 + GET % b"next")
    await site.settle()
    assert wire.answers == [b"503 no"]
    protocol.eof_received()
    site.wait(4)
    assert wire.closed


async def test_a_body_that_is_refused_on_a_kept_connection_is_thrown_away():
    async def refuse(scope, receive, send):
        await answer(send, b"no", 413)

    site = Site(refuse)
    protocol, wire = site.connect()
    protocol.data_received(POST % (b"", 100_000) + b"x" * 10)
    await site.settle()
    for _ in range(9):
        protocol.data_received(b"x" * 10_000)
        await site.settle()
    protocol.data_received(b"x" * 9_990 + GET % b"next")
    await site.settle()
    assert wire.answers == [b"413 no", b"413 no"]
    assert not wire.ended


async def test_a_body_that_goes_on_too_long_after_its_answer_gets_no_second_one():
    async def refuse(scope, receive, send):
        await answer(send, b"no", 413)

    site = Site(refuse, LIMITS)
    protocol, wire = site.connect()
    protocol.data_received(POST % (b"", 100_000) + b"x" * 10)
    await site.settle()
    site.wait(61)
    assert wire.answers == [b"413 no"]
    assert wire.ended


OPEN, CLOSED = (b"HTTP/1.1 503 No\r\n%s\r\n" % end for end in (b"", b"Connection: close\r\n"))


class Refusing(OpenGate):
    """Refuses every POST."""

    def refuse(self, scope, headers, keep_alive):
        return (OPEN if keep_alive else CLOSED) if scope["method"] == "POST" else None


@pytest.mark.parametrize("size", [1, 7, 10**6])
async def test_after_a_small_request_is_refused_its_connection_stays_open(size):
    site = Site(gate=Refusing())
    protocol, wire = site.connect()
    requests = (POST % (b"no", 4) + b"body") * 3 + GET % b"yes" + POST % (b"no", 0)
    for at in range(0, len(requests), size):
        await site.until(lambda: wire.reading)
        protocol.data_received(requests[at : at + size])
    await site.until(lambda: len(wire.answers) == 5)
    assert wire.answers == [b"503 "] * 3 + [b"200 /yes", b"503 "]
    assert b"lose" not in wire.written
    assert not wire.ended


async def test_refused_requests_that_came_together_take_turns_with_others():
    site = Site(gate=Refusing())
    protocol, wire = site.connect()
    protocol.data_received((POST % (b"no", 4) + b"body") * 100)
    assert len(wire.answers) == 1
    await site.until(lambda: len(wire.answers) == 100)


async def test_a_refused_request_that_stays_incomplete_gets_no_second_answer():
    site = Site(limits=LIMITS, gate=Refusing())
    protocol, wire = site.connect()
    protocol.data_received(POST % (b"no", 4) + b"bo")
    site.wait(1000)
    assert wire.answers == [b"503 "]
    assert wire.ended


@pytest.mark.parametrize("case", ["draining", "not read", "expects 100", "no length", "HTTP/1.0", "large"])
async def test_a_refusal_ends_the_connection_where_it_must(case):
    site = Site(gate=Refusing())
    protocol, wire = site.connect()
    head = POST % (b"no", MOST_THROWN_AWAY_BYTES + 1 if case == "large" else 4)
    if case == "draining":
        site.connections.draining = True
    elif case == "not read":
        protocol.pause_writing()
    elif case == "expects 100":
        head = head.replace(b"Host", b"Expect: 100-continue\r\nHost")
    elif case == "no length":
        head = head.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")
    elif case == "HTTP/1.0":
        head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
    protocol.data_received(head)
    assert wire.written == CLOSED
    assert wire.ended


async def test_a_request_can_be_refused_by_its_head_alone():
    asked = []

    class Gate(OpenGate):
        def refuse(self, scope, headers, keep_alive):
            asked.append((scope["method"], scope["path"], scope["client"]))
            return (OPEN if keep_alive else CLOSED) if scope["path"] == "/no" else None

    site = Site(gate=Gate())
    protocol, wire = site.connect()
    protocol.data_received(GET % b"yes" + GET % b"behind")
    await site.settle()
    assert wire.answers == [b"200 /yes", b"200 /behind"]
    protocol.data_received(POST % (b"no", MOST_THROWN_AWAY_BYTES + 1) + b"half")
    assert wire.answers[2] == b"503 "
    assert (wire.ended, wire.closed) == (True, False)
    await site.settle()
    asked_of = [("GET", "/yes"), ("GET", "/behind"), ("POST", "/no")]
    assert asked == [(*request, ("192.0.2.1", 5)) for request in asked_of]
    assert len(site.echo.scopes) == 2


async def test_end_of_half_a_request_is_the_end_of_the_connection():
    site = Site()
    protocol, wire = site.connect()
    protocol.data_received(POST % (b"", 9) + b"half")
    assert protocol.eof_received() is False
    assert wire.written == b""


async def test_after_a_whole_request_the_client_may_end_its_side():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a" + GET % b"b")
    await site.settle()
    assert protocol.eof_received() is True
    assert wire.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    site.echo.open.set()
    await site.until(lambda: wire.closed)
    assert wire.answers[1:] == [b"200 /a", b"200 /b"]


async def test_http_1_0_knows_no_answer_before_the_answer():
    site = Site()
    site.echo.open.clear()
    protocol, wire = site.connect()
    protocol.data_received(b"GET /a HTTP/1.0\r\n\r\n")
    await site.settle()
    assert protocol.eof_received() is True
    site.echo.open.set()
    await site.until(lambda: wire.closed)
    assert wire.answers == [b"200 /a"]


@pytest.mark.parametrize(("version", "continued"), [(b"1.0", False), (b"1.1", True)])
async def test_only_http_1_1_is_asked_for_a_body_that_it_announces(version, continued):
    """RFC 9110, 10.1.1: the expectation of an HTTP/1.0 client is ignored."""
    site = Site()
    protocol, wire = site.connect()
    head = b"POST /a HTTP/%s\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n" % version
    protocol.data_received(head)
    await site.settle()
    assert wire.written == (b"HTTP/1.1 100 Continue\r\n\r\n" if continued else b"")
    protocol.data_received(b"hi")
    await site.settle()
    assert wire.answers[-1] == b"200 /ahi"


async def test_a_server_that_ends_closes_idle_connections_and_finishes_the_answer_in_progress():
    site = Site()
    idle, idle_wire = site.connect()
    idle.data_received(GET % b"a")
    await site.until(lambda: bool(idle_wire.answers))
    idle.shutdown()
    assert idle_wire.closed
    site.echo.open.clear()
    busy, busy_wire = site.connect()
    busy.data_received(GET % b"a" + GET % b"b")
    await site.settle()
    busy.shutdown()
    assert not busy_wire.closed
    site.echo.open.set()
    await site.settle()
    assert busy_wire.ended
    assert busy_wire.answers == [b"200 /a"]
    assert b"connection: close" in busy_wire.written
    site.wait(4)
    assert busy_wire.closed


@pytest.mark.parametrize("accepted_late", [False, True])
async def test_a_new_connection_still_gets_the_answer_to_its_first_request_while_the_server_ends(accepted_late):
    site = Site()
    site.connections.draining = True
    site.connections.closed = accepted_late
    protocol, wire = site.connect()
    if not accepted_late:
        protocol.shutdown()
    assert not wire.closed
    protocol.data_received(GET % b"a")
    await site.settle()
    assert wire.answers == [b"200 /a"]
    assert b"connection: close" in wire.written
    assert wire.closed


async def test_a_new_connection_without_a_request_is_closed_soon_while_the_server_ends():
    site = Site()
    protocol, wire = site.connect()
    protocol.shutdown()
    assert not wire.closed
    await site.until(lambda: wire.closed)


async def test_while_the_server_drains_each_answer_ends_its_connection():
    site = Site()
    protocol, wire = site.connect()
    protocol.data_received(GET % b"a")
    await site.settle()
    assert not wire.closed
    site.connections.draining = True
    protocol.data_received(GET % b"b")
    await site.settle()
    assert wire.answers == [b"200 /a", b"200 /b"]
    assert wire.closed


async def test_a_forwarded_address_counts_only_from_a_trusted_proxy():
    site = Site(proxies="192.0.2.0/24")
    request = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n"
    for peer in ("192.0.2.1", "198.51.100.1"):
        site.connect(peer)[0].data_received(request)
    await site.settle()
    seen = [(scope["client"], scope["scheme"]) for scope in site.echo.scopes]
    assert seen == [(("203.0.113.7", 0), "https"), (("198.51.100.1", 5), "http")]


async def test_junk_is_logged_with_its_address_once_a_second(server_log):
    site = Site()

    def junk(count: int) -> None:
        for _ in range(count):
            site.connect("192.0.2.77")[0].data_received(b"junk\r\n\r\n")

    junk(5)
    site.wait(1)
    junk(2)
    lines = [(record.levelno, record.getMessage()) for record in server_log.records]
    assert len(lines) == 2
    assert all(level == logging.WARNING and line.startswith("192.0.2.77: ") for level, line in lines)
    assert "4 like it" in lines[1][1]
