"""Connections from a shared socket go to the process that has fewest, and to another if it does not accept them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import partial

import pytest

from offramp.server.processes.acceptor import Acceptor


class OpenConnection(asyncio.Protocol):
    """A connection that stays in its process's set while it is open."""

    def __init__(self, connections: set[OpenConnection]) -> None:
        self.connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)


class Exhausted(socket.socket):
    """A listening socket that finds no file descriptor free, once."""

    failures = 1

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener


@pytest.fixture
def memory():
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def acceptor(
    listener: socket.socket, memory: int, number: int, connections: set[OpenConnection], **options
) -> Acceptor:
    return Acceptor(listener, partial(OpenConnection, connections), connections, memory, 2, number, **options)


def clients_of(listener: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


async def close(*connections: set[OpenConnection]) -> None:
    for connection in [connection for of_process in connections for connection in of_process]:
        connection.transport.close()
    while any(connections):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_connections_that_come_at_once_are_shared(listener, memory, until):
    clients = clients_of(listener, 20)
    open_here: list[set[OpenConnection]] = [set(), set()]
    listeners = [listener.dup() for _ in range(2)]
    acceptors = [acceptor(listeners[number], memory, number, open_here[number]) for number in range(2)]
    await until(lambda: sum(map(len, open_here)) == 20)
    # Not exactly: a process that is held up misses some.
    assert min(map(len, open_here)) >= 5
    for one_acceptor in acceptors:
        await one_acceptor.close()
    for connected in (*listeners, *clients):
        connected.close()
    await close(*open_here)


async def test_a_process_with_fewer_gets_the_next(listener, memory, until):
    first_open: set[OpenConnection] = set()
    second_open: set[OpenConnection] = set()
    with listener.dup() as other:
        first = acceptor(listener, memory, 0, first_open)
        clients = clients_of(listener, 3)
        await until(lambda: len(first_open) == 3)
        await first.close()
        patient = acceptor(listener, memory, 0, first_open, courtesy_s=3600)
        second = acceptor(other, memory, 1, second_open)
        clients += clients_of(listener, 3)
        await until(lambda: len(second_open) == 3)
        await patient.close()
        await second.close()
    for client in clients:
        client.close()
    await close(first_open, second_open)


async def test_where_the_other_is_dead_one_takes_all(listener, memory, until):
    open_here: set[OpenConnection] = set()
    clients = clients_of(listener, 5)
    only = acceptor(listener, memory, 0, open_here)
    await until(lambda: len(open_here) == 5)
    await only.close()
    for client in clients:
        client.close()
    await close(open_here)


async def test_a_closed_acceptor_takes_nothing_more(listener, memory, until):
    first_open: set[OpenConnection] = set()
    second_open: set[OpenConnection] = set()
    with listener.dup() as other:
        await acceptor(listener, memory, 0, first_open).close()
        second = acceptor(other, memory, 1, second_open)
        [client] = clients_of(listener, 1)
        await until(lambda: len(second_open) == 1)
        assert not first_open
        await second.close()
    client.close()
    await close(second_open)


async def test_an_error_of_the_system_is_a_pause_and_not_the_end(listener, memory, until):
    with Exhausted(fileno=os.dup(listener.fileno())) as exhausted:
        open_here: set[OpenConnection] = set()
        only = acceptor(exhausted, memory, 0, open_here, pause_s=0.0)
        [client] = clients_of(listener, 1)
        await until(lambda: len(open_here) == 1)
        assert exhausted.failures == 0
        await only.close()
    client.close()
    await close(open_here)
