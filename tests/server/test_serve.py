"""The server on a real socket: start, announce, drain, end."""

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import save_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.server.engine.engine import Engine
from offramp.server.engine.errors import InferenceFailed
from offramp.server.engine.step_watch import ENGINE_THREAD
from offramp.server.http.app import create_app
from offramp.server.metrics import Metrics
from offramp.server.registry import Registry, ServedModel
from offramp.server.serve import Server, http_config, listen, log_keys, run, url
from offramp.server.settings import Settings
from tests.project import PROJECT
from tests.server.engine.scripted import Recorder, ScriptedRunner, contract

MIB = 2**20


@asynccontextmanager
async def listening(site, until, said: list[str], drain_delay_s: float = 0.0, settings: Settings | None = None):
    listener = listen("127.0.0.1", 0)
    config = http_config(site.app, settings or Settings())
    # The application's is the fixture's.
    config.lifespan = "off"
    server = Server(config, site.registry, drain_delay_s, url(listener), said.append)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    async with httpx.AsyncClient(base_url=url(listener)) as client:
        yield server, serving, client
    if not serving.done():
        server.should_exit = True
        await serving


def run_here(settings: Settings) -> int:
    """A server that starts in this process would take over its logging for good."""
    return run(settings, configure_logging=lambda config: None)


@pytest.fixture
def said() -> list[str]:
    """The lines that servers announced."""
    return []


@pytest.fixture
def on_a_socket(until, said):
    """`async with on_a_socket(site, drain_delay_s=…) as (server, serving, client)`."""
    return partial(listening, until=until, said=said)


async def test_a_signal_turns_the_server_unready_then_answers_what_is_in_flight_then_ends(
    serve, encode, on_a_socket, until, server_log
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
        assert "draining: 1 request in flight, at most 30 s; Ctrl-C again ends at once" in server_log.messages
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
        # So that a connection accepted meanwhile is closed too.
        assert server.config.connections.closed


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
        assert run_here(Settings(model=[tmp_path / "tiny"], port=port)) == 1
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
    assert run_here(Settings(**options)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert word in line


@pytest.fixture(scope="module")
def tiny(bundle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    save_bundle(bundle, path, "card")
    return path


CODE = """
import gc, signal, sys
from pathlib import Path
from offramp.server.serve import run
from offramp.server.settings import Settings

signal.signal(signal.SIGUSR1, lambda *_: print(gc.get_freeze_count(), flush=True))
options = dict(model=[Path(sys.argv[1])], port=0, device="cpu", runner="torch", threads=1)
sys.exit(run(Settings(**options, drain_delay_s=float(sys.argv[2]))))
"""


@contextmanager
def serving(tiny: Path, drain_delay_s: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, ready, and its address. On SIGUSR1 it prints how many objects are frozen."""
    command = [sys.executable, "-c", CODE, str(tiny), str(drain_delay_s)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        loading = process.stderr.readline()
        assert loading.endswith(f"offramp.server.loading: loading {tiny} on cpu; ready in some seconds\n"), loading
        address = re.search(r"http://[\d.:]+", process.stderr.readline())
        assert address is not None
        yield process, address[0]
        if process.poll() is None:
            process.kill()


def answers(address: str) -> bool:
    try:
        httpx.get(f"{address}/livez")
    except httpx.TransportError:
        return False
    return True


def test_sigterm_ends_the_process_with_code_0(tiny):
    with serving(tiny) as (process, address):
        assert httpx.get(f"{address}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = process.stderr.read()
        assert process.wait() == 0
    _, draining, stopped = log.splitlines()
    assert draining.endswith(
        "INFO offramp.server.serve: draining: 0 requests in flight, at most 30 s; Ctrl-C again ends at once"
    )
    assert stopped.endswith("INFO offramp.server.serve: stopped")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(tiny, second):
    with serving(tiny, drain_delay_s=3600) as (process, address):
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{address}/readyz").status_code == 200:
            pass
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait() == -second


def test_ctrl_c_twice_does_not_wait_for_a_request_that_never_comes_to_an_end(tiny):
    with serving(tiny) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
            # Asked for its body: it is being read.
            assert client.recv(1024).startswith(b"HTTP/1.1 100")
            process.send_signal(signal.SIGINT)
            while answers(address):
                pass
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait() == -signal.SIGINT


def test_the_garbage_collector_leaves_alone_what_is_there_before_serving(tiny):
    with serving(tiny) as (process, _):
        process.send_signal(signal.SIGUSR1)
        assert process.stdout is not None
        # What importing torch alone leaves is more than this.
        assert int(process.stdout.readline()) > 100_000


async def test_a_server_whose_engine_has_ended_ends(serve, on_a_socket, until, said):
    async with serve() as site, on_a_socket(site) as (_, serving, _):
        await until(lambda: said)
        site.engine.alive = False
        await serving
        assert site.registry.failure == "the engine of tiny version 1 is not running"


@pytest.mark.timeout(60)
async def test_a_server_whose_step_does_not_end_turns_unready_and_ends(bundle, on_a_socket, until, said):
    runner = ScriptedRunner(gated=True)
    engine = Engine(runner, Recorder(), clock=runner.clock, hung_after_s=0.06)
    metrics = Metrics()
    registry = Registry([ServedModel(bundle, count_cost(bundle.config), "cpu", engine, lambda: None)])
    app = create_app(registry, Settings(decode_threads=1), metrics)
    await registry.start()
    async with on_a_socket(Hung(app, registry)) as (_, serving, _):
        await until(lambda: said)
        [asked] = engine.submit([np.zeros((32, 32, 3), np.uint8)], contract())
        await serving
    assert registry.failure == "the engine of tiny version 1 is not running"
    assert isinstance(asked.exception(), InferenceFailed)
    await registry.drain()
    runner.let_all()


@dataclass
class Hung:
    """What `on_a_socket` needs."""

    app: FastAPI
    registry: Registry


LINGERING = """
import atexit, sys, threading
from offramp.server.serve import end_process

never = threading.Event()
threading.Thread(target=never.wait, name=sys.argv[1], daemon=True).start()
# As a driver waits for its device on the way out.
atexit.register(never.wait, float(sys.argv[2]))
print("said before", file=sys.stderr)
end_process(1)
"""


@pytest.mark.timeout(60)
def test_a_process_whose_step_hangs_ends_without_waiting_for_the_device():
    hung = subprocess.run([sys.executable, "-c", LINGERING, ENGINE_THREAD, "1000"], cwd=PROJECT, capture_output=True)
    assert (hung.returncode, hung.stderr) == (1, b"said before\n")
    other = subprocess.run([sys.executable, "-c", LINGERING, "another", "0"], cwd=PROJECT, capture_output=True)
    assert (other.returncode, other.stderr) == (1, b"said before\n")


OWN_NETWORK = """
import torch
from torch import nn

from offramp.models.attach import attach_exits


class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(torch.special.bessel_j0(self.b(self.a(x).relu())).mean((2, 3)))


BACKBONES = {"own": lambda config: attach_exits(Own(config.num_classes), ["a"], config.input_size)}
"""


@pytest.mark.usefixtures("own_networks")
def test_a_network_that_the_runner_cannot_run_is_one_sentence_and_exit_code_1(bundle, tmp_path, capsys):
    source = tmp_path / "served_nets.py"
    source.write_text(OWN_NETWORK)
    load_backbones(str(source))
    config = ModelConfig("own", 10, input_size=32)
    net = MultiExitNet(config).eval()
    calibration = Calibration.neutral(net.num_exits)
    save_bundle(replace(bundle, config=config, net=net, calibration=calibration, exits=()), tmp_path / "own", "card")
    settings = Settings(model=[tmp_path / "own"], backbones=str(source), device="cpu", runner="openvino", port=0)
    assert run_here(settings) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("offramp: OpenVINO cannot convert stage 2: ")
    assert line.endswith("serve this network with --runner torch")


async def test_answers_are_not_to_be_taken_for_another_type(site, on_a_socket):
    async with on_a_socket(site) as (_, _, client):
        for path in ("/livez", "/nothing", "/" + "a" * 10_000):
            assert (await client.get(path)).headers["X-Content-Type-Options"] == "nosniff"


async def test_silent_connections_are_closed_by_the_servers_own_ticks(site, on_a_socket):
    settings = Settings(header_timeout_s=0.1)
    async with on_a_socket(site, settings=settings) as (_, _, client):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()


CODE_OF_LOGGING = """
import logging, warnings
from offramp.server.serve import configure_logging, log_config
configure_logging(log_config("info"))
warnings.warn("pixels were odd")
"""


def test_warnings_of_libraries_are_lines_of_the_log():
    command = [sys.executable, "-c", CODE_OF_LOGGING]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stderr
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ WARNING py.warnings: .*pixels were odd", said)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_keys_that_everybody_can_read_are_warned_about(tmp_path, server_log, mode, warned):
    file = tmp_path / "keys"
    file.write_text("key")
    file.chmod(mode)
    log_keys(Settings(api_keys_file=file))
    log_keys(Settings(api_keys="key,other"))
    log_keys(Settings())
    assert [record.levelname for record in server_log.records] == ["WARNING"] * warned + ["INFO"] * 2
    assert server_log.messages[-2:] == ["API keys read: 1", "API keys read: 2"]
    assert (f"{file} is open to every user" in server_log.text) is warned


def test_a_process_may_open_as_many_descriptors_as_the_system_allows():
    code = "import resource; from offramp.server.http.http_limits import raise_descriptor_limit; "
    code += "raise_descriptor_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    command = ["bash", "-c", 'ulimit -Sn 100; exec "$0" -c "$1"', sys.executable, code]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == said[1] != "100"
