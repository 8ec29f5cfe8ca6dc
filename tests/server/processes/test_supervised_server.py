"""A real server of several processes: it answers as one process does, and outlives the death of any of them."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from offramp.models.bundle import save_bundle
from offramp.server.http.app import create_app
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.settings import Settings
from tests.project import PROJECT
from tests.server.processes.supervised import (
    CODE,
    FRONTENDS,
    OPTIONS,
    POLL_S,
    RUN,
    Server,
    encoded_pictures,
    serving,
    total,
    until,
)


@pytest.fixture(scope="module")
def tiny(bundle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    save_bundle(bundle, path, "card")
    return path


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory) -> Iterator[Server]:
    with serving(tiny, tmp_path_factory.mktemp("run")) as server:
        yield server


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return encoded_pictures()


@pytest.fixture
async def server(shared, pictures) -> Server:
    """The server of most tests here. All its processes run."""
    await until(lambda: shared.every_frontend_answers(pictures))
    return shared


def requests_of(pictures: list[bytes]) -> list[dict]:
    several = {"images": [base64.b64encode(picture).decode() for picture in pictures]}
    return [
        *({"content": picture, "params": {"threshold": "0.12", "detail": "true"}} for picture in pictures),
        {"json": several, "params": {"threshold": "0.3", "max_exit": "3", "top_k": "10"}},
        {"content": pictures[0], "params": {"threshold": "nan"}},
        {"content": pictures[0], "params": {"deadline_ms": "0.000001"}},
        {"content": b"not a picture", "params": {}},
    ]


async def ask(client: httpx.AsyncClient, request: dict) -> tuple[int, dict]:
    response = await client.post("/v1/predict", **request)
    answer = response.json()
    for varying in ("timing_ms", "request_id"):
        answer.pop(varying, None)
    return response.status_code, answer


async def test_answers_are_those_of_one_process(server, tiny, pictures):
    metrics, settings = Metrics(), Settings(model=[tiny], **OPTIONS)
    registry = load_registry(settings, metrics)
    app = create_app(registry, settings, metrics)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://single") as single,
        httpx.AsyncClient(base_url=server.address) as several,
    ):
        while registry.why_not_ready() is not None:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        for request in requests_of(pictures):
            assert await ask(several, request) == await ask(single, request)
        for path in ("/v1/models", "/v1/models/tiny", "/v1/models/none"):
            answers = [(await client.get(path)).json() for client in (single, several)]
            assert len({str({**answer, "request_id": ""}) for answer in answers}) == 1
        # How many batch sizes are timed at the start depends on how busy the machine is.
        names = [
            {
                re.sub(r'batch_size="\d+"', "", line).split(" ")[0]
                for line in (await client.get("/metrics")).text.splitlines()
            }
            for client in (single, several)
        ]
        # One process's own metrics are the whole server's here, and named alike.
        assert names[0] == names[1]


async def test_counters_are_the_sum_over_all_processes(server, pictures):
    before = await server.samples()
    assert await server.predict(pictures * 4) == {200}

    async def idle() -> bool:
        return total(await server.samples(), "offramp_inflight_samples") == 0

    # What a frontend knows of the engine is a little old, and answers go out before they are counted.
    await until(idle)
    after = await server.samples()

    def more(name: str, label: str = "") -> float:
        return total(after, name, label) - total(before, name, label)

    assert more("offramp_requests_total", "200") == 24
    assert more("offramp_samples_total", "confident") == 24
    assert more("offramp_request_duration_seconds_count") == 24
    assert more("offramp_request_duration_seconds_bucket", "+Inf") == 24
    assert more("offramp_decode_duration_seconds_count") == 24
    assert more("offramp_stage_batch_size_sum") == 24
    assert more("process_cpu_seconds_total") > 0
    for gauge in ("offramp_model_info", "offramp_build_info"):
        assert total(after, gauge) == 1
    assert total(after, "offramp_requests_total") == sum(map(server.answered_by, FRONTENDS))


async def read_log(server: Server, phrase: str) -> str:
    """The log up to the line with a phrase."""
    assert server.process.stderr is not None
    log = ""
    while phrase not in log:
        line = await asyncio.to_thread(server.process.stderr.readline)
        assert line, log
        log += line
    return log


async def in_flight(server: Server, asked: Sequence[asyncio.Task[httpx.Response]]) -> bool:
    """Whether a frontend says so, or has given up already: it does 5 s after an engine has been stopped."""
    seen = await asyncio.gather(*(server.samples() for _ in range(2 * len(FRONTENDS))))
    return any(total(samples, "offramp_inflight_samples") > 0 for samples in seen) or all(task.done() for task in asked)


async def with_requests_in_flight(server: Server, pictures: list[bytes], then: Callable[[int], object]) -> list:
    """The answers to requests that the engine process had when `then` was called with its process id."""
    [engine] = server.children("engine")
    async with httpx.AsyncClient(base_url=server.address, timeout=None) as client:
        os.kill(engine, signal.SIGSTOP)
        asked = [asyncio.create_task(client.post("/v1/predict", content=picture)) for picture in pictures]
        await until(lambda: in_flight(server, asked))
        then(engine)
        return await asyncio.gather(*asked)


def is_asked_to_try_again(response: httpx.Response) -> bool:
    kind = response.json().get("type")
    assert response.json()["detail"] == "the engine is starting again; try again, or another replica"
    return (response.status_code, kind, response.headers["Retry-After"]) == (503, "urn:offramp:problem:not-ready", "5")


async def test_when_the_engine_is_killed_its_requests_get_503_and_another_takes_over(server, pictures):
    answers = await with_requests_in_flight(server, pictures, lambda engine: os.kill(engine, signal.SIGKILL))
    assert all(is_asked_to_try_again(answer) for answer in answers)
    ready = await server.get("/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (503, "the engine is starting again")
    await until(lambda: server.every_frontend_answers(pictures))


async def test_while_the_engine_is_stopped_deadlines_hold_and_the_server_is_not_ready(server, pictures):
    async def not_ready() -> bool:
        return (await server.get("/readyz")).status_code == 503

    async with httpx.AsyncClient(base_url=server.address, timeout=None) as client:
        [engine] = server.children("engine")
        os.kill(engine, signal.SIGSTOP)
        late = await client.post("/v1/predict", content=pictures[0], params={"deadline_ms": 200})
        assert late.json()["type"] == "urn:offramp:problem:deadline-exceeded"
        await until(not_ready)
        os.kill(engine, signal.SIGCONT)
    await until(lambda: server.every_frontend_answers(pictures))


async def test_an_engine_that_hangs_is_killed_and_another_takes_over(server, pictures):
    answers = await with_requests_in_flight(server, pictures, lambda engine: None)
    assert all(is_asked_to_try_again(answer) for answer in answers)
    await until(lambda: server.every_frontend_answers(pictures))


async def test_when_a_frontend_is_killed_the_other_goes_on_and_no_counter_falls(server, pictures):
    before, killed = await server.samples(), min(server.children("frontend"))

    async def gone() -> bool:
        return killed not in server.children()

    os.kill(killed, signal.SIGKILL)
    await until(gone)
    assert await server.predict(pictures) == {200}
    after = await server.samples()
    assert total(after, "offramp_requests_total", "200") == total(before, "offramp_requests_total", "200") + 6
    rising = [name for name in before if any(end in name for end in ("_total'", "_bucket'", "_count'", "_sum'"))]
    assert [name for name in rising if after[name] < before[name]] == []
    await until(lambda: server.every_frontend_answers(pictures))


async def test_without_any_frontend_requests_are_refused_at_once_until_one_has_started(tiny, tmp_path, pictures):
    with serving(tiny, tmp_path) as own:
        for frontend in own.children("frontend"):
            os.kill(frontend, signal.SIGKILL)
        log = await read_log(own, "no frontend runs")
        async with httpx.AsyncClient(base_url=own.address, timeout=None) as client:
            refused = await client.post("/v1/predict?threshold=0.5", content=bytes(2**20))
            assert (refused.status_code, refused.headers["connection"], refused.headers["retry-after"]) == (
                503,
                "close",
                "5",
            )
            assert refused.json()["type"] == "urn:offramp:problem:not-ready"
            assert refused.json()["instance"] == "/v1/predict"
            assert [(await client.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 503]
            assert (await client.head("/livez")).content == b""
        for _ in FRONTENDS:
            log += await read_log(own, "is ready again")
        await until(lambda: own.every_frontend_answers(pictures))
        own.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(own.process.communicate)
    assert log.count("has died: killed by SIGKILL; the next starts at once\n") == 2
    assert all(f"{frontend} is ready again\n" in log for frontend in FRONTENDS)


async def test_sigterm_answers_what_is_in_flight_and_leaves_nothing_behind(tiny, tmp_path, pictures):
    def drain(engine: int) -> None:
        own.process.send_signal(signal.SIGTERM)
        os.kill(engine, signal.SIGCONT)

    # The engine is stopped for a while, and not taken for dead.
    with serving(tiny, tmp_path, hung_after_s=3600) as own:
        children = own.children()
        [answer] = await with_requests_in_flight(own, pictures[:1], drain)
        assert own.process.stderr is not None
        said = await asyncio.to_thread(own.process.stderr.read)
        await asyncio.to_thread(own.process.wait)
    # On a busy machine the engine may have been stopped for so long that the request was given up.
    assert answer.status_code == (503 if "silent for 5 s" in said else 200)
    assert own.process.returncode == 0
    # No complaints but of the engine that was stopped for a while.
    curl, draining, stopped = [line for line in said.splitlines() if "engine process" not in line]
    assert curl.split()[0] == "curl"
    assert draining.endswith("draining: at most 30 s; Ctrl-C again ends at once")
    assert stopped.endswith("stopped")
    assert list(tmp_path.glob(RUN)) == []
    assert len(children) == 3
    assert not any(map(psutil.pid_exists, children))


async def test_a_second_ctrl_c_ends_all_at_once_and_leaves_nothing_behind(tiny, tmp_path, pictures):
    async def closed() -> bool:
        try:
            await own.get("/livez")
        except httpx.TransportError:
            return True
        return False

    # The engine is stopped for a while, and not taken for dead.
    with serving(tiny, tmp_path, hung_after_s=3600) as own:
        children = own.children()
        [engine] = own.children("engine")
        # A request that is never answered: it holds up the end that the first signal asks for.
        os.kill(engine, signal.SIGSTOP)
        async with httpx.AsyncClient(base_url=own.address, timeout=None) as client:
            asked = asyncio.create_task(client.post("/v1/predict", content=pictures[0]))
            await until(lambda: in_flight(own, [asked]))
            own.process.send_signal(signal.SIGINT)
            await until(closed)
            assert own.process.poll() is None
            own.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(own.process.communicate)
            # The connection ends, or the answer is an error: which of the two comes first is open.
            await asyncio.gather(asked, return_exceptions=True)
    assert own.process.returncode == -signal.SIGINT
    await until(lambda: all_gone(children))
    assert list(tmp_path.glob(RUN)) == []


async def test_a_process_that_waits_to_be_started_again_holds_up_no_end(tiny, tmp_path):
    with serving(tiny, tmp_path, restart_delays_s=[3600]) as own:
        killed = min(own.children("frontend"))
        os.kill(killed, signal.SIGKILL)
        log = await read_log(own, "has died")
        assert log.endswith("has died: killed by SIGKILL; the next starts in 3600 s\n")
        assert killed not in own.children()
        own.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(own.process.communicate)
    assert own.process.returncode == 0
    assert list(tmp_path.glob(RUN)) == []


async def test_without_their_supervisor_the_others_end_and_clear_up(tiny, tmp_path):
    with serving(tiny, tmp_path) as server:
        children = server.children()
        server.process.kill()
        await until(lambda: all_gone(children))
    assert len(children) == 3
    assert list(tmp_path.glob(RUN)) == []


async def all_gone(children: set[int]) -> bool:
    return not any(map(psutil.pid_exists, children))


@pytest.mark.parametrize("options", [{}, {"device": "abacus"}], ids=["no bundle", "no device"])
def test_what_cannot_be_served_is_one_sentence_and_exit_code_1(tmp_path, options):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", CODE, str(tmp_path / "nowhere"), repr(OPTIONS | options), "{}"]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if "ready in some seconds" not in line]
    assert re.fullmatch(r"offramp: .*(nowhere/model.json: no such file|'abacus' is unknown).*", line)
    assert list(tmp_path.glob(RUN)) == []


def test_a_folder_that_can_hold_no_socket_is_one_sentence_and_exit_code_1(tiny, tmp_path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    environment = {**os.environ, "TMPDIR": str(deep)}
    command = [sys.executable, "-c", CODE, str(tiny), repr(OPTIONS), "{}"]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert re.fullmatch(r"offramp: .*cannot hold a socket .*path too long.*TMPDIR.*", line)
