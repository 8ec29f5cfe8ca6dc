"""Answers before the application is called: to overload, by the headers, and to invalid requests."""

import asyncio
import json
from dataclasses import replace

import pytest

from offramp.server.engine.errors import Overloaded
from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.protocol import HttpProtocol
from offramp.server.settings import Settings
from tests.server.http_wire import Site as WiredSite
from tests.server.http_wire import Wire

LIMITS = HttpLimits(head_bytes=5000)


def scope(path="/v1/predict", method="POST", **headers: str):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"method": method, "path": path, "headers": raw, "client": ("192.0.2.1", 5)}


HEADERS = [(b"x-content-type-options", b"nosniff")]


def asked(site, scope):
    return site.app.state.gate.refuse(scope, HEADERS, False)


def connected(site) -> tuple[HttpProtocol, Wire]:
    """A connection to the whole server, but for its sockets."""
    wired = WiredSite(site.app, LIMITS, gate=site.app.state.gate)
    wired.state.default_headers = HEADERS
    return wired.connect()


async def test_an_overloaded_server_refuses_predictions_by_their_headers(site):
    site.engine.overloaded = Overloaded(3.2)
    answer = asked(site, scope(x_request_id="abc"))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert {b"retry-after: 4", b"connection: close", b"x-request-id: abc"} <= set(lines)
    assert b"x-content-type-options: nosniff" in lines
    problem = json.loads(body)
    assert (problem["type"], problem["instance"]) == ("urn:offramp:problem:overloaded", "/v1/predict")
    assert site.metric("offramp_requests_total", model="tiny", code="503") == 1
    assert site.metric("offramp_rejections_total", reason="overloaded") == 1


@pytest.mark.parametrize(
    ("path", "method"),
    [("/livez", "GET"), ("/v1/predict", "GET"), ("/v1/models/other/predict", "POST"), ("/v1/models", "POST")],
)
async def test_what_is_no_prediction_of_an_overloaded_model_passes(serve, bundle, path, method):
    async with serve(bundles=[bundle, replace(bundle, name="other")]) as site:
        site.engine.overloaded = Overloaded(1.0)
        assert asked(site, scope(path, method)) is None


async def test_one_version_with_room_is_enough(serve, bundle):
    async with serve(bundles=[bundle, replace(bundle, version="2")]) as site:
        site.engine.overloaded = Overloaded(1.0)
        assert asked(site, scope()) is None


async def test_a_client_without_a_key_gets_that_error_and_not_the_load(serve):
    async with serve(settings=Settings(api_keys="k", decode_threads=1)) as site:
        site.engine.overloaded = Overloaded(1.0)
        assert asked(site, scope()) is None
        assert asked(site, scope(x_api_key="wrong")) is None
        assert asked(site, scope(x_api_key="k")).startswith(b"HTTP/1.1 503")


async def test_a_server_with_room_lets_everything_pass(site):
    assert asked(site, scope()) is None


async def test_the_engine_is_asked_once_before_the_body(site, encode):
    """And once before decoding, and by `submit`. The gate is not asked about a request behind another."""
    picture = encode()
    request = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
    await site.client.post("/v1/predict", content=picture)
    assert site.engine.asks == 3
    protocol, wire = connected(site)
    protocol.data_received(request + request)
    while len(wire.answers) < 2:  # noqa: ASYNC110 - what changes here knows nothing of events
        await asyncio.sleep(0)
    assert [answer[:3] for answer in wire.answers] == [b"200", b"200"]
    assert site.engine.asks == 9


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 6000, "431"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
    ],
)
async def test_rejections_of_invalid_requests_are_counted_and_logged(serve, server_log, sent, code):
    async with serve(settings=Settings(access_log=True, decode_threads=1)) as site:
        assert site.metric("offramp_http_rejections_total", code=code) == 0
        protocol, wire = connected(site)
        protocol.data_received(sent)
        assert wire.answers[0].startswith(code.encode())
        assert b"\r\nx-content-type-options: nosniff\r\n" in wire.written
        assert site.metric("offramp_http_rejections_total", code=code) == 1
        [line] = [each.getMessage() for each in server_log.records if each.name == "offramp.server.http.request_log"]
        request_id = json.loads(wire.answers[0][4:])["request_id"]
        assert line == f"192.0.2.1 - - {code} 0.0 ms {request_id}"


async def test_a_request_cut_off_in_its_answer_is_not_counted_as_answered_twice(site):
    async def answers_early(scope, receive, send):
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"no", "more_body": True})
        await receive()

    wired = WiredSite(answers_early, LIMITS, gate=site.app.state.gate)
    protocol, wire = wired.connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    await wired.settle()
    protocol.data_received(b"nonsense\r\n")
    assert wire.written.startswith(b"HTTP/1.1 413")
    assert site.metric("offramp_http_rejections_total", code="400") == 0


async def test_refusals_by_the_gate_are_logged_as_others_are(serve, server_log):
    async with serve(settings=Settings(access_log=True, decode_threads=1), overloaded=Overloaded(1.0)) as site:
        asked(site, scope(x_request_id="abc"))
        [line] = [each.getMessage() for each in server_log.records if each.name == "offramp.server.http.request_log"]
        assert line == "192.0.2.1 POST /v1/predict 503 0.0 ms abc"
