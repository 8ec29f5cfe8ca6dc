"""The short way of predictions answers exactly as the routes behind it."""

import base64
import re
from contextlib import asynccontextmanager

import pytest

from offramp.server.http import express
from offramp.server.http.express import model_in
from offramp.server.settings import Settings

# What is of one request alone.
OWN = re.compile(rb'"(total|decode|queue|inference)":[0-9.e-]+|"request_id": ?"[^"]*"')
OWN_HEADERS = {"x-request-id", "server-timing", "content-length"}


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/predict", ""),
        ("/v1/models/tiny/predict", "tiny"),
        ("/v1/models/a%20b/predict", "a%20b"),
        ("/v1/models//predict", None),
        ("/v1/models/predict", None),
        ("/v1/models/a/b/predict", None),
        ("/v1/predict/", None),
        ("/v1/models/tiny", None),
        ("/metrics", None),
    ],
)
def test_which_paths_ask_for_a_prediction(path, model):
    assert model_in(path) == model


def requests(picture: bytes) -> dict[str, tuple[str, dict]]:
    json_body = {"images": [base64.b64encode(picture).decode()]}
    return {
        "raw": ("/v1/predict?threshold=0.3", {"content": picture}),
        "named": ("/v1/models/tiny/predict", {"content": picture}),
        "form": ("/v1/predict", {"files": [("image", picture)], "data": {"threshold": "0.9"}}),
        "JSON": ("/v1/predict", {"json": {**json_body, "top_k": 2}}),
        "several": ("/v1/predict", {"json": {"images": json_body["images"] * 3}}),
        "unknown model": ("/v1/models/other/predict", {"content": picture}),
        "unknown version": ("/v1/models/tiny/predict?version=9", {"content": picture}),
        "no picture": ("/v1/predict", {"content": b"hello"}),
        "empty": ("/v1/predict", {"content": b""}),
        "broken": ("/v1/predict", {"content": picture[:40]}),
        "too long": ("/v1/predict", {"content": bytes(3 * 2**20)}),
        "bad parameter": ("/v1/predict?threshold=7", {"content": picture}),
        "unknown parameter": ("/v1/predict?treshold=0.5", {"content": picture}),
        "bad JSON": ("/v1/predict", {"content": b"{", "headers": {"content-type": "application/json"}}),
        "no such path": ("/v1/predictions", {"content": picture}),
        "no key": ("/v1/predict", {"content": picture, "headers": {"x-api-key": "wrong"}}),
    }


@asynccontextmanager
async def the_long_way(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(express, "model_in", lambda path: None)
        yield


@pytest.mark.parametrize("name", requests(b"").keys())
async def test_it_answers_as_the_routes_do(name, serve, encode, monkeypatch):
    path, request = requests(encode(200))[name]
    settings = Settings(decode_threads=1, max_body_mib=1, api_keys="right")
    request["headers"] = {"x-api-key": "right", **request.get("headers", {})}
    async with serve(settings=settings) as site:
        short = await site.client.post(path, **request)
        async with the_long_way(monkeypatch):
            long = await site.client.post(path, **request)
    assert short.status_code == long.status_code
    assert OWN.sub(b"", short.content) == OWN.sub(b"", long.content)
    assert short.headers.keys() == long.headers.keys()
    for name in short.headers.keys() - OWN_HEADERS:
        assert short.headers[name] == long.headers[name]


async def test_a_fault_of_ours_is_a_500_on_both_ways(serve, encode, monkeypatch):
    async def fail(*_):
        raise ZeroDivisionError

    async with serve() as site:
        monkeypatch.setattr("offramp.server.request.predict.Predictor.answer", fail)
        short = await site.client.post("/v1/predict", content=encode())
        async with the_long_way(monkeypatch):
            long = await site.client.post("/v1/predict", content=encode())
    assert short.status_code == long.status_code == 500
    assert OWN.sub(b"", short.content) == OWN.sub(b"", long.content)
