"""API keys and each client's own limit."""

import asyncio

import httpx
import pytest

from offramp.server.settings import Settings

OPEN = ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/docs/swagger-ui.css")


def of_every_protected_path(app) -> list[tuple[str, str]]:
    paths = [
        (method.upper(), path.replace("{model}", "tiny"))
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    ]
    assert len(paths) == 4
    return paths


async def test_without_keys_every_client_may_ask(site):
    for method, path in of_every_protected_path(site.app):
        assert (await site.client.request(method, path)).status_code not in {401, 403}


async def test_every_path_of_the_api_wants_a_key(serve):
    async with serve(settings=Settings(api_keys="right,other")) as site:
        for method, path in [*of_every_protected_path(site.app), ("GET", "/v1/nothing")]:
            missing = await site.client.request(method, path)
            assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert missing.headers["Content-Type"] == "application/problem+json"
            assert "X-Request-Id" in missing.headers
            wrong = await site.client.request(method, path, headers={"X-API-Key": "wrong"})
            assert wrong.status_code == 403
        for path in OPEN:
            assert (await site.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer right"}, 200),
        ({"Authorization": "bearer  right "}, 200),
        ({"X-API-Key": "other"}, 200),
        ({"Authorization": "Bearer right", "X-API-Key": "wrong"}, 200),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic cmlnaHQ="}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "righ"}, 403),
        ({"X-API-Key": "right,other"}, 403),
        ([(b"X-API-Key", b"\xff\xfe")], 403),
    ],
)
async def test_a_key_comes_as_bearer_or_header(serve, headers, status):
    async with serve(settings=Settings(api_keys="right,other")) as site:
        request = httpx.Request("GET", "http://offramp/v1/models", headers=headers)
        assert (await site.client.send(request)).status_code == status


async def test_refused_predictions_are_counted(serve):
    async with serve(settings=Settings(api_keys="right")) as site:
        await site.client.post("/v1/predict")
        await site.client.get("/v1/models")
        assert site.metric("offramp_requests_total", model="(none)", code="401") == 1


async def test_a_client_beyond_its_limit_is_refused_and_others_are_not(serve, encode):
    settings = Settings(api_keys="one,two", client_max_inflight=2)
    async with serve(settings=settings, holds=True) as site:

        async def ask(key: str) -> httpx.Response:
            return await site.client.post("/v1/predict", content=encode(), headers={"X-API-Key": key})

        waiting = []
        for key in ("one", "one", "two"):
            site.engine.submitted.clear()
            waiting.append(asyncio.create_task(ask(key)))
            await site.engine.submitted.wait()
        refused = await ask("one")
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:offramp:problem:client-limit"
        assert refused.headers["Retry-After"] == "1"
        assert site.metric("offramp_rejections_total", reason="client_limit") == 1
        site.engine.release()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3
        site.engine.holds = False
        assert (await ask("one")).status_code == 200
