"""The number of connections, and which of them end for new ones."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import pytest

from offramp.server.http.connections import PIPELINE_PAUSE_S, Connections, PipelineQueue
from offramp.server.http.http_limits import HttpLimits, connections_of_one_process
from offramp.server.http.proxies import TrustedProxies
from offramp.server.request.accounts import GROUP_SIZE, Accounts
from tests.server.http_wire import Clock


class Client:
    """A connection that is idle since some moment, or busy (None). waits_since_s: it sends or reads too slowly."""

    def __init__(
        self, everyone: Connections, address: str, idle_since_s: float | None, waits_since_s: float | None = None
    ) -> None:
        self.everyone = everyone
        self.address = address
        self.idle_since_s = idle_since_s
        self.slow_since_s = waits_since_s
        self.ended = False
        self.checked: list[float] = []

    @property
    def waits_since_s(self) -> float | None:
        return self.slow_since_s if self.idle_since_s is None else self.idle_since_s

    def check(self, now_s: float) -> None:
        self.checked.append(now_s)

    def end(self) -> None:
        self.ended = True
        self.everyone.leave(self)


def of(limit: int, of_one: int = 0, proxies: str = "") -> Connections:
    limits = HttpLimits(connections=limit, client_connections=of_one)
    return Connections(limits, TrustedProxies(proxies), clock=Clock())


def enter(everyone: Connections, *clients: tuple[str, float | None]) -> list[Client]:
    made = [Client(everyone, address, idle_since_s) for address, idle_since_s in clients]
    assert [everyone.enter(client) for client in made] == [None] * len(made)
    return made


def test_silent_connections_never_shut_others_out():
    everyone = of(10)
    silent = enter(everyone, *(("a", float(i)) for i in range(10)))
    other = enter(everyone, ("b", 0.0), ("c", None), ("b", 0.0))
    assert [client.ended for client in silent] == [True] * 3 + [False] * 7
    assert not any(client.ended for client in other)
    assert len(everyone) == 10


def enter_slow(everyone: Connections, *clients: tuple[str, float]) -> list[Client]:
    slow = [Client(everyone, address, None, waits_since_s) for address, waits_since_s in clients]
    assert [everyone.enter(client) for client in slow] == [None] * len(slow)
    return slow


def test_half_sent_requests_never_shut_others_out():
    everyone = of(10)
    half_sent = enter_slow(everyone, *(("a", float(9 - i)) for i in range(10)))
    other = enter(everyone, ("b", 0.0), ("c", None))
    # Its own new connections take the place of its old ones.
    more = enter_slow(everyone, ("a", 10.0), ("a", 11.0))
    assert [client.ended for client in half_sent] == [False] * 6 + [True] * 4
    assert not any(client.ended for client in (*other, *more))
    assert len(everyone) == 10


def test_idle_connections_give_way_before_half_sent_requests():
    everyone = of(3)
    [half_sent] = enter_slow(everyone, ("a", 1.0))
    [busy, idle] = enter(everyone, ("a", None), ("a", 2.0))
    enter(everyone, ("b", 3.0))
    assert [client.ended for client in (half_sent, busy, idle)] == [False, False, True]
    enter(everyone, ("c", 3.0))
    assert [client.ended for client in (half_sent, busy)] == [True, False]


def test_an_address_at_its_own_limit_keeps_its_half_sent_requests():
    everyone = of(100, of_one=2)
    half_sent = enter_slow(everyone, ("a", 1.0), ("a", 2.0))
    assert everyone.enter(Client(everyone, "a", 0.0)) is not None
    assert not any(client.ended for client in half_sent)


def test_a_client_that_is_refused_does_not_keep_others_out():
    everyone = of(4)
    idle = enter(everyone, ("a", 1.0), ("a", 1.0))
    enter(everyone, ("b", None), ("b", None))
    assert everyone.enter(Client(everyone, "b", 0.0)) is not None
    enter(everyone, ("c", None))
    assert any(client.ended for client in idle)


def test_a_refused_connection_gives_its_place_to_no_other():
    clock = Clock()
    everyone = Connections(HttpLimits(connections=2), clock=clock)
    busy = enter(everyone, ("a", None), ("a", None))
    for address in ("b", "b", "c"):
        assert everyone.enter(Client(everyone, address, -1.0)) is not None
        clock.now_s += 1
        everyone.sweep()
    assert not any(client.ended for client in busy)


def test_the_address_with_most_connections_gives_way_and_what_is_in_use_stays():
    everyone = of(5)
    one, *many = enter(everyone, ("light", 1.0), ("heavy", None), ("heavy", 3.0), ("heavy", 2.0), ("heavy", None))
    enter(everyone, ("new", 4.0))
    assert [client.ended for client in (one, *many)] == [False, False, False, True, False]


def test_where_everything_is_in_use_the_newcomer_is_refused():
    everyone = of(3)
    busy = enter(everyone, ("a", None), ("a", None), ("b", None))
    refusal = everyone.enter(Client(everyone, "c", 0.0))
    assert refusal is not None
    assert (refusal.kind.status, refusal.headers) == (503, {"Retry-After": "1"})
    assert not any(client.ended for client in busy)


def test_no_connection_is_closed_for_an_address_that_has_more_itself():
    everyone = of(4)
    clients = enter(everyone, ("greedy", None), ("greedy", None), ("greedy", None), ("light", 1.0))
    assert everyone.enter(Client(everyone, "greedy", 0.0)) is not None
    assert not any(client.ended for client in clients)


def test_no_connection_is_closed_for_an_address_that_has_as_many():
    everyone = of(4)
    clients = enter(everyone, ("one", 1.0), ("one", 1.0), ("other", None), ("other", None))
    assert everyone.enter(Client(everyone, "other", 0.0)) is not None
    assert not any(client.ended for client in clients)


def test_where_everything_is_in_use_it_is_looked_at_again_with_the_next_sweep():
    clock = Clock()
    everyone = Connections(HttpLimits(connections=1), clock=clock)
    [one] = enter(everyone, ("a", None))
    refused = Client(everyone, "b", None)
    assert everyone.enter(refused) is not None
    everyone.leave(refused)
    one.idle_since_s = 0.0
    assert everyone.enter(refused) is not None
    everyone.leave(refused)
    clock.now_s += 1
    everyone.sweep()
    assert everyone.enter(refused) is None
    assert one.ended


async def test_pipelined_requests_take_turns_with_pauses_in_which_the_event_loop_is_free(until):
    pipelined = PipelineQueue()
    loop = asyncio.get_running_loop()
    times_s: dict[str, float] = {}

    def take(name: str) -> None:
        times_s[name] = loop.time()

    for name in ("a", "b", "c"):
        pipelined.put(partial(take, name))
    await until(lambda: len(times_s) == 3)
    assert list(times_s) == ["a", "b", "c"]
    assert times_s["b"] - times_s["a"] > PIPELINE_PAUSE_S / 2
    assert times_s["c"] - times_s["b"] > PIPELINE_PAUSE_S / 2


def test_a_refused_connection_counts_until_it_leaves():
    everyone = of(1)
    [one] = enter(everyone, ("a", None))
    refused = Client(everyone, "b", 0.0)
    assert everyone.enter(refused) is not None
    assert len(everyone) == 2
    for client in (refused, refused, one):
        everyone.leave(client)
    assert len(everyone) == 0


@pytest.mark.parametrize("proxies", ["", "192.0.2.0/24"])
def test_one_address_has_a_limit_of_its_own_unless_it_is_a_trusted_proxy(proxies):
    everyone = of(100, of_one=2, proxies=proxies)
    enter(everyone, ("192.0.2.1", None), ("192.0.2.1", None), ("192.0.2.2", None))
    refusal = everyone.enter(Client(everyone, "192.0.2.1", 0.0))
    if proxies:
        assert refusal is None
    else:
        assert refusal is not None
        assert (refusal.kind.status, refusal.fields["limit"]) == (429, "max_connections")


def test_an_address_at_its_limit_makes_room_by_its_own_idle_connections():
    everyone = of(100, of_one=2)
    old, new = enter(everyone, ("a", 1.0), ("a", 2.0))
    enter(everyone, ("a", 3.0))
    assert (old.ended, new.ended) == (True, False)


def test_all_are_looked_at_once_a_sweep():
    clock = Clock()
    everyone = Connections(clock=clock)
    [client] = enter(everyone, ("a", 0.0))
    for seconds in (1.0, 1.5, 1000.0):
        clock.now_s += seconds
        everyone.sweep()
    assert client.checked == [1.0, 2.5, 4.5]


@pytest.mark.parametrize(
    ("wanted", "processes", "descriptors", "each"),
    [
        (0, 1, 10**6, 10_000),
        (0, 1, 1024, 896),
        (0, 4, 1024, 896),
        (0, 1, 64, 32),
        (500, 1, 1024, 500),
        (500, 3, 1024, 167),
    ],
)
def test_connections_leave_descriptors_for_everything_else(wanted, processes, descriptors, each):
    assert connections_of_one_process(wanted, processes, descriptors) == each


def test_the_limit_of_an_address_holds_over_all_processes():
    fd = os.memfd_create("test")
    limits = HttpLimits(client_connections=2)
    processes = [Connections(limits, accounts=Accounts(fd, 2, number)) for number in range(2)]
    first, second = (Client(everyone, "a", None) for everyone in processes)
    assert [everyone.enter(client) for everyone, client in zip(processes, (first, second), strict=True)] == [None, None]
    refused = Client(processes[0], "a", None)
    assert processes[0].enter(refused) is not None
    assert processes[0].enter(Client(processes[0], "b", None)) is None
    processes[0].leave(refused)
    processes[1].leave(second)
    assert processes[0].enter(Client(processes[0], "a", None)) is None
    os.close(fd)


def test_a_connection_that_found_no_room_in_the_accounts_gives_its_client_no_other_for_free():
    everyone = Connections(HttpLimits(client_connections=1), accounts=Accounts(num_groups=1))
    others = [Client(everyone, str(number), None) for number in range(GROUP_SIZE)]
    uncounted, counted, refused = (Client(everyone, "late", None) for _ in range(3))
    for connection in (*others, uncounted):
        assert everyone.enter(connection) is None
    for connection in (others[0], uncounted):
        everyone.leave(connection)
    assert everyone.enter(counted) is None
    assert everyone.enter(refused) is not None
