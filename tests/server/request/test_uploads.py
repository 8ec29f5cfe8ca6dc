"""Memory for request bodies: one budget, of which a client holds at most as much as it leaves free."""

import asyncio
import base64

import httpx
import pytest

from offramp.server.request.uploads import SMALL_BODY_BYTES, Upload, UploadBudget
from offramp.server.settings import Settings
from tests.server.test_lifecycle import Client

MIB = 2**20


def test_a_client_holds_at_most_as_much_as_it_leaves_free():
    budget = UploadBudget(100)
    assert not budget.take("a", 51)
    assert budget.take("a", 50)
    assert not budget.take("a", 1)
    assert not budget.take("b", 26)
    assert budget.take("b", 25)
    assert budget.take("c", 12)
    budget.give_back("a", 50)
    assert budget.take("d", 31)
    assert not budget.take("d", 1)
    assert budget.held_bytes == 68


def test_the_last_eighth_is_for_small_bodies():
    budget = UploadBudget(800)
    for client, size_bytes in (("a", 400), ("b", 200), ("c", 100)):
        assert budget.take(client, size_bytes, is_small=False)
    assert not budget.take("d", 1, is_small=False)
    assert budget.take("d", 50)
    assert budget.held_bytes == 750


def test_no_number_of_clients_holds_more_than_the_budget():
    budget = UploadBudget(100)
    assert [budget.take(str(client), 1) for client in range(200)] == [True] * 99 + [False] * 101
    assert not budget.fits("another", 1)


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


def test_an_announcement_reserves_nothing():
    budget = UploadBudget(100)
    upload = Upload(budget, "a", weight=3)
    assert upload.announce(16)
    assert not upload.announce(17)
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("announced_bytes", "body_bytes", "fits"),
    [
        (0, SMALL_BODY_BYTES, True),
        (0, SMALL_BODY_BYTES + 1, False),
        (SMALL_BODY_BYTES, 1, True),
        (SMALL_BODY_BYTES + 1, 1, False),
    ],
)
def test_a_body_is_as_large_as_announced_or_larger(announced_bytes, body_bytes, fits):
    budget = UploadBudget(4 * MIB)
    upload = Upload(budget, "another")
    upload.announce(announced_bytes)
    for client, size_mib in (("a", 2), ("b", 1), ("c", 0.5)):
        assert budget.take(client, round(size_mib * MIB), is_small=False)
    assert upload.grow(body_bytes) == fits


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


@pytest.mark.parametrize("announced_bytes", [MIB, 10, None])
async def test_requests_whose_body_never_comes_hold_nothing(serve, encode, until, announced_bytes):
    async with serve(settings=SETTINGS) as site:
        clients = [
            Client(b"", True, f"192.0.2.{10 + number % 2}", "application/json", announced_bytes) for number in range(8)
        ]
        tasks = [client.post(site.app) for client in clients]
        await until(lambda: all(client.read for client in clients))
        images = [base64.b64encode(encode(200, "BMP", (300, 300))).decode()] * 2
        assert (await site.client.post("/v1/predict", json={"images": images})).status_code == 200
        assert not any(client.sent for client in clients)
        for client in clients:
            client.gone.set()
        await asyncio.gather(*tasks)


async def test_small_bodies_are_read_while_large_ones_fill_the_memory(serve, encode, until):
    async with serve(settings=SETTINGS) as site:
        # Each sends all but the last byte of as many bodies as there is room for.
        large = [Client(b"\x89" * (MIB - 1), True, f"192.0.2.{10 + number}") for number in range(20)]
        tasks = [client.post(site.app) for client in large]
        await until(lambda: all(client.read for client in large))
        await until(lambda: sum(not client.sent for client in large) == 5)
        assert (await site.client.post("/v1/predict", content=encode())).status_code == 200
        refused = await site.client.post("/v1/predict", content=encode(200, "BMP", (800, 300)))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        for client in large:
            client.gone.set()
        await asyncio.gather(*tasks)


async def test_a_body_without_room_is_refused_before_it_is_read(serve):
    async with serve(settings=SETTINGS) as site:
        first = [Client(b"\x89" * (MIB - 1), True, announced_bytes=MIB) for _ in range(2)]
        tasks = [client.post(site.app) for client in first]
        await asyncio.sleep(0)
        late = Client(b"", media_type="application/json", announced_bytes=MIB)
        await late.post(site.app)
        assert (late.sent[0]["status"], late.read) == (503, False)
        for client in first:
            client.gone.set()
        await asyncio.gather(*tasks)


async def test_an_answered_request_holds_nothing(serve, encode):
    async with serve(settings=SETTINGS) as site:
        for _ in range(30):
            images = [base64.b64encode(encode(200, "BMP", (200, 200))).decode()] * 2
            response = await site.client.post("/v1/predict", json={"images": images})
            assert response.status_code == 200


@pytest.mark.parametrize("body_mib", [1.1, 2])
def test_a_budget_that_holds_no_whole_request_is_refused(body_mib):
    with pytest.raises(ValueError, match="--max-uploads-mib 6"):
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
