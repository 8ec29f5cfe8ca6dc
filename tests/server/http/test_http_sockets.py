"""What only real sockets, and the event loop that serves, can show."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import uvloop

from offramp.server.http.http_limits import HttpLimits
from offramp.server.http.protocol import HttpProtocol
from offramp.server.http.tcp import accept_waiting
from offramp.server.serve import listen
from tests.server.http_wire import Site, answer

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
MB = 1_000_000
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@asynccontextmanager
async def listening(site: Site) -> AsyncIterator[tuple[str, int]]:
    loop = asyncio.get_running_loop()
    make_protocol = partial(HttpProtocol, site.config, site.state, {})
    server = await loop.create_server(make_protocol, sock=listen("127.0.0.1", 0))
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for connection in list(site.state.connections):
            assert isinstance(connection, HttpProtocol)
            connection._transport.abort()
        await site.until(lambda: not site.state.connections)
        await server.wait_closed()


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request) -> Callable[[Awaitable[None]], None]:
    """Run a coroutine on the loop that serves, and on the other, which the tests of the application use."""

    def run(coroutine) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(coroutine, 60))

    return run


async def read_all(reader: asyncio.StreamReader) -> bytes:
    return await reader.read()


def read_to_the_end(client: socket.socket) -> None:
    while client.recv(2**20):
        pass


def test_a_half_closed_client_gets_its_answer(run):
    async def check() -> None:
        site = Site()
        site.echo.open.clear()
        async with listening(site) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(GET % b"a")
            writer.write_eof()
            assert await reader.readexactly(len(CONTINUE)) == CONTINUE
            site.echo.open.set()
            assert (await read_all(reader)).count(b"HTTP/1.1 200") == 1
            writer.close()

    run(check())


def test_a_half_closed_client_gets_the_answers_to_all_its_requests(run):
    async def check() -> None:
        async with listening(Site()) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(GET % b"a" + GET % b"b")
            writer.write_eof()
            answers = await read_all(reader)
            assert answers.count(b"HTTP/1.1 200") == 2
            assert answers.index(b"/a") < answers.index(b"/b")
            writer.close()

    run(check())


def test_a_client_that_has_gone_is_noticed(run):
    async def check() -> None:
        gone = asyncio.Event()

        async def work(scope, receive, send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        site = Site(work)
        async with listening(site) as address:
            _, writer = await asyncio.open_connection(*address)
            writer.write(GET % b"a")
            await writer.drain()
            await site.until(lambda: bool(site.state.tasks))
            writer.close()
            await gone.wait()

    run(check())


def test_a_client_that_goes_after_half_closing_is_noticed(run):
    async def check() -> None:
        site = Site()
        site.echo.open.clear()
        async with listening(site) as address:
            client = socket.create_connection(address)
            client.sendall(GET % b"a")
            client.shutdown(socket.SHUT_WR)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(client, 100) == CONTINUE
            [connection] = site.state.connections
            # A reset, where a mere close would go unseen: there is nothing more to write to it.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

            def sweep() -> bool:
                site.wait(1)
                return connection not in site.state.connections

            await site.until(sweep)

    run(check())


def test_connections_that_wait_when_the_server_ends_are_answered(run):
    async def check() -> None:
        site = Site()
        site.connections.closed = site.connections.draining = True
        listener = listen("127.0.0.1", 0)
        streams = [await asyncio.open_connection(*listener.getsockname()) for _ in range(3)]
        await accept_waiting(listener, partial(HttpProtocol, site.config, site.state, {}))
        listener.close()
        for reader, writer in streams:
            writer.write(GET % b"a")
            assert b"/a" in await read_all(reader)
            writer.close()

    run(check())


def test_a_last_answer_is_not_destroyed_by_what_the_client_still_sends(run):
    async def check() -> None:
        site = Site(limits=HttpLimits(head_bytes=8192))
        async with listening(site) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1_000_000)
            answer = await read_all(reader)
            assert answer.startswith(b"HTTP/1.1 431 ")
            writer.close()

    run(check())


def test_endless_headers_are_refused_long_before_they_fill_the_memory(run):
    async def check() -> None:
        site = Site()
        async with listening(site) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
            refused = asyncio.create_task(read_all(reader))
            while not refused.done():
                writer.write(b"X: y\r\n" * 1000)
                await asyncio.sleep(0)
            assert (await refused).startswith(b"HTTP/1.1 431 ")
            writer.close()

    run(check())


def test_a_client_that_never_reads_is_cut_off(run):
    async def large(scope, receive, send) -> None:
        await answer(send, b"x" * 20_000)

    async def check() -> None:
        site = Site(large, HttpLimits(write_s=30))
        async with listening(site) as address:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(address)
                client.sendall((GET % b"a") * 1000)
                await site.until(lambda: bool(site.state.connections))
                [connection] = site.state.connections
                assert isinstance(connection, HttpProtocol)
                await site.until(lambda: connection._flow.write_paused)
                # As many as the buffers of both sides hold: some 200 kB.
                assert site.state.total_requests < 30
                site.wait(40)
                await site.until(lambda: not site.state.connections and not site.state.tasks)
                with pytest.raises(ConnectionResetError):
                    read_to_the_end(client)

    run(check())


def test_a_client_that_reads_slowly_is_not_cut_off(run):
    async def large(scope, receive, send) -> None:
        headers = [(b"content-length", b"%d" % (60 * MB))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for count in range(60):
            await send({"type": "http.response.body", "body": b"x" * MB, "more_body": count < 59})

    async def check() -> None:
        site = Site(large, HttpLimits(write_s=30))
        async with listening(site) as address:
            with socket.create_connection(address) as client:
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(client, GET % b"a")
                read = seconds = 0
                # At one megabyte a second something waits all the time, but nothing for long.
                while read < 60 * MB:
                    read += len(await loop.sock_recv(client, MB))
                    while seconds < read // MB:
                        site.wait(1)
                        seconds += 1

    run(check())


def test_a_connection_beyond_the_limit_reads_why(run):
    async def check() -> None:
        site = Site(limits=HttpLimits(connections=1))
        site.echo.open.clear()
        async with listening(site) as address:
            _, first = await asyncio.open_connection(*address)
            first.write(GET % b"a")
            await site.until(lambda: bool(site.state.tasks))
            reader, second = await asyncio.open_connection(*address)
            second.write(GET % b"b")
            answer = await read_all(reader)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in answer
            site.echo.open.set()
            second.close()
            first.close()

    run(check())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_that_offers_http_2_is_answered(run):
    async def check() -> None:
        site = Site()
        async with listening(site) as (host, port):
            command = ("curl", "-sS", "--http2", "--data-binary", "@-", f"http://{host}:{port}/a")
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            body = b"x" * 300_000
            said, _ = await process.communicate(body)
            assert said == b"/a" + body
        assert dict(site.echo.scopes[0]["headers"])[b"upgrade"] == b"h2c"

    run(check())
