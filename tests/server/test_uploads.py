"""Memory for request bodies: one budget, and half of it at most for one client."""

import asyncio
import base64

import httpx
import pytest

from server.settings import Settings
from server.uploads import Upload, UploadBudget
from tests.server.test_lifecycle import Client

MIB = 2**20


def test_one_client_holds_half_of_the_budget_and_all_together_the_whole():
    budget = UploadBudget(100)
    assert budget.take("a", 50)
    assert not budget.take("a", 1)
    assert budget.take("b", 30)
    assert budget.take("c", 20)
    assert not budget.take("d", 1)
    budget.give_back("a", 50)
    assert budget.take("d", 50)
    assert budget.held_bytes == 100


def test_an_upload_holds_its_weight_and_gives_all_of_it_back():
    budget = UploadBudget(100)
    upload = Upload(budget, "a", weight=3)
    assert upload.grow(10)
    assert upload.grow(5), "a body does not shrink"
    assert budget.held_bytes == 30
    assert not upload.grow(17)
    assert budget.held_bytes == 30
    upload.release()
    upload.release()
    assert budget.held_bytes == 0


SETTINGS = Settings(max_uploads_mib=6, max_body_mib=1, decode_threads=1)


async def test_uploads_that_never_end_leave_room_for_others(serve, encode, until):
    async with serve(settings=SETTINGS) as site:
        pending = [Client(b"\x89" * (MIB - 9), more=True) for _ in range(4)]
        tasks = [client.post(site.app) for client in pending]
        await until(lambda: any(client.sent for client in pending))
        refused = [client for client in pending if client.sent]
        assert [client.sent[0]["status"] for client in refused] == [503]
        headers = dict(refused[0].sent[0]["headers"])
        assert headers[b"retry-after"] == b"1"
        # Another client has the other half.
        transport = httpx.ASGITransport(site.app, client=("192.0.2.2", 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://offramp") as other:
            assert (await other.post("/v1/predict", content=encode())).status_code == 200
        for client in pending:
            client.gone.set()
        await asyncio.gather(*tasks)
        again = Client(b"\x89" * MIB, more=True)
        task = again.post(site.app)
        await asyncio.sleep(0)
        again.gone.set()
        await task
        assert again.sent[0]["status"] == 499


async def test_an_answered_request_holds_nothing(serve, encode):
    async with serve(settings=SETTINGS) as site:
        for _ in range(30):
            images = [base64.b64encode(encode(200, "BMP", (200, 200))).decode()] * 2
            response = await site.client.post("/v1/predict", json={"images": images})
            assert response.status_code == 200


@pytest.mark.parametrize("body_mib", [1.1, 2])
def test_a_budget_that_holds_no_whole_request_is_refused(body_mib):
    with pytest.raises(ValueError, match="max_uploads_mib 6"):
        Settings(max_uploads_mib=6, max_body_mib=body_mib)


async def test_a_deadline_holds_while_a_picture_is_decoded(site, encode):
    response = await site.client.post("/v1/predict?deadline_ms=1", content=encode(255, "PNG", (4000, 4000)))
    assert response.status_code == 504
    assert site.engine.contracts == []


async def test_a_client_that_leaves_while_its_picture_is_decoded_is_not_waited_for(site, encode, until):
    client = Client(encode(255, "PNG", (4900, 4900)))
    asked = client.post(site.app)
    await until(lambda: client.read)
    client.gone.set()
    await asked
    assert (client.sent[0]["status"], site.engine.contracts) == (499, [])
