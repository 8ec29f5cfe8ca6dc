"""The server on a real socket: start, announce, drain, end."""

import asyncio
import gc
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import uvicorn

from models.bundle import save_bundle
from server.serve import Server, listen, run, url
from server.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
MIB = 2**20


@asynccontextmanager
async def listening(site, until, said: list[str], drain_delay_s: float = 0.0):
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(site.app, lifespan="off", ws="none", log_config=None, access_log=False)
    server = Server(config, site.registry, drain_delay_s, url(listener), said.append)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    async with httpx.AsyncClient(base_url=url(listener)) as client:
        yield server, serving, client
    if not serving.done():
        server.should_exit = True
        await serving


@pytest.fixture(autouse=True)
def logging_stays_pytests(monkeypatch):
    """A server that starts in this process would take it over for good."""
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)


@pytest.fixture
def said() -> list[str]:
    """The lines that servers announced."""
    return []


@pytest.fixture
def on_a_socket(until, said):
    """`async with on_a_socket(site, drain_delay_s=…) as (server, serving, client)`."""
    return partial(listening, until=until, said=said)


async def test_a_signal_turns_the_server_unready_then_answers_what_is_in_flight_then_ends(
    serve, encode, on_a_socket, until
):
    async with serve(holds=True) as site, on_a_socket(site, drain_delay_s=3600) as (server, serving, client):
        asked = asyncio.create_task(client.post("/v1/predict", content=encode()))
        await site.engine.submitted.wait()
        server.handle_exit(signal.SIGTERM, None)
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        refused = await client.post("/v1/predict", content=encode())
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        # The delay is over.
        server._close_at_s = 0.0
        await until(lambda: server.should_exit)
        assert not asked.done()
        site.engine.release()
        assert (await asked).status_code == 200
        await serving
        with pytest.raises(httpx.ConnectError):
            await client.get("/livez")


async def test_an_interrupt_does_not_wait_for_the_delay(site, on_a_socket):
    async with on_a_socket(site, drain_delay_s=3600) as (server, serving, _):
        server.handle_exit(signal.SIGINT, None)
        await serving


async def test_a_server_that_can_never_be_ready_ends(site, on_a_socket):
    async with on_a_socket(site) as (_, serving, _):
        site.registry.failure = "warming up failed"
        await serving


async def test_readiness_is_announced_with_the_address_and_a_line_to_try(site, on_a_socket, until, said):
    async with on_a_socket(site) as (_, _, client):
        await until(lambda: len(said) == 2)
        first, second = said
        assert str(client.base_url) in first
        assert "tiny 1 on cpu" in first
        assert second.strip().startswith("curl --data-binary")


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_client_that_sends_too_much_still_gets_its_refusal_and_the_next_request_works(
    site, encode, on_a_socket, announced
):
    async def chunks():
        for _ in range(17):
            yield b"\x89" * MIB

    async with on_a_socket(site) as (_, _, client):
        content = b"\x89" * (17 * MIB) if announced else chunks()
        response = await client.post("/v1/predict", content=content, headers={"Content-Type": "image/png"})
        assert response.status_code == 413
        assert (await client.post("/v1/predict", content=encode())).status_code == 200


async def test_a_client_that_hangs_up_is_noticed(serve, encode, on_a_socket, until):
    async with serve(holds=True) as site, on_a_socket(site) as (_, _, client):
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        image = encode()
        writer.write(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(image), image))
        await site.engine.submitted.wait()
        writer.close()
        await until(lambda: not site.engine.waiting)
        assert site.metric("offramp_cancelled_total", phase="queued") == 1


def test_a_taken_port_is_one_sentence_and_exit_code_1(bundle, tmp_path, capsys):
    save_bundle(bundle, tmp_path / "tiny", "card")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(Settings(model=[tmp_path / "tiny"], port=port)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"offramp: cannot listen on 127.0.0.1 port {port}: .*--port", line)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"model": [Path("nowhere")]}, "nowhere/model.json: no such file"),
        ({"device": "cuda:99"}, "'cuda:99' is not there"),
        ({"device": "abacus"}, "'abacus' is unknown"),
        ({"device": "meta"}, "'meta' is not supported"),
    ],
    ids=["no bundle", "no such GPU", "no device", "odd device"],
)
def test_what_cannot_be_served_is_one_sentence_and_exit_code_1(capsys, options, word):
    assert run(Settings(**options)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert word in line


@pytest.mark.timeout(600)
def test_sigterm_ends_the_process_with_code_0(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "tiny", "card")
    code = (
        "import sys; from pathlib import Path; from server.serve import run; from server.settings import Settings; "
        "sys.exit(run(Settings(model=[Path(sys.argv[1])], port=0, threads=1, drain_delay_s=0)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "tiny"], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        address = re.search(r"http://[\d.:]+", process.stderr.readline())
        assert address is not None
        assert httpx.get(f"{address[0]}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


async def test_a_server_whose_engine_has_ended_ends(serve, on_a_socket, until, said):
    async with serve() as site, on_a_socket(site) as (_, serving, _):
        await until(lambda: said)
        site.engine.alive = False
        await serving
        assert site.registry.failure == "the engine of tiny version 1 has ended"


def test_the_garbage_collector_leaves_alone_what_is_there_before_serving(monkeypatch):
    frozen = []

    def serve_nothing(self, sockets):
        frozen.append(gc.get_freeze_count())
        sockets[0].close()

    monkeypatch.setattr("server.serve.Server.run", serve_nothing)
    try:
        assert run(Settings(port=0)) == 0
    finally:
        gc.unfreeze()
    # What importing torch alone leaves is more than this.
    assert frozen[0] > 100_000
