"""Clients take turns, and each client's items keep their order."""

from collections import defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st

from offramp.server.engine.fair_queue import FairQueue


def emptied(queue: FairQueue) -> list:
    return [queue.popleft() for _ in range(len(queue))]


def test_clients_take_turns():
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        queue.append(item[0], item)
    assert emptied(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert (len(queue), queue.num_clients) == (0, 0)


def test_one_client_alone_has_a_plain_queue():
    queue: FairQueue[int] = FairQueue()
    for item in range(5):
        queue.append("a", item)
    assert emptied(queue) == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=60), st.sampled_from("abcd"))
def test_nothing_is_lost_and_a_wait_is_never_longer_than_predicted(steps, client):
    queue: FairQueue[tuple[str, int]] = FairQueue()
    expected: dict[str, deque] = defaultdict(deque)
    for number, step in enumerate(steps):
        if step is not None:
            queue.append(step, (step, number))
            expected[step].append((step, number))
        elif len(queue):
            item = queue.popleft()
            assert expected[item[0]].popleft() == item
    predicted = queue.ahead(client)
    queue.append(client, (client, -1))
    left = emptied(queue)
    assert len(left) == sum(map(len, expected.values())) + 1
    assert left.index((client, -1)) <= predicted
