"""Overload is refused by the headers, before the application is called."""

import json
from dataclasses import replace

import pytest

from server.engine.errors import Overloaded
from server.settings import Settings


def scope(path="/v1/predict", method="POST", **headers: str):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"method": method, "path": path, "headers": raw, "client": ("192.0.2.1", 5)}


def gate_of(site):
    return site.app.state.gate


async def test_an_overloaded_server_refuses_predictions_by_their_headers(site):
    site.engine.overloaded = Overloaded(3.2)
    answer = gate_of(site)(scope(x_request_id="abc"))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert {b"retry-after: 4", b"connection: close", b"x-request-id: abc"} <= set(lines)
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
        assert gate_of(site)(scope(path, method)) is None


async def test_one_version_with_room_is_enough(serve, bundle):
    async with serve(bundles=[bundle, replace(bundle, version="2")]) as site:
        site.engine.overloaded = Overloaded(1.0)
        assert gate_of(site)(scope()) is None


async def test_who_has_no_key_hears_of_that_and_not_of_the_load(serve):
    async with serve(settings=Settings(api_keys="k", decode_threads=1)) as site:
        site.engine.overloaded = Overloaded(1.0)
        assert gate_of(site)(scope()) is None
        assert gate_of(site)(scope(x_api_key="wrong")) is None
        assert gate_of(site)(scope(x_api_key="k")).startswith(b"HTTP/1.1 503")


async def test_a_server_with_room_lets_everything_pass(site):
    assert gate_of(site)(scope()) is None
