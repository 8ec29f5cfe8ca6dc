"""SlotPool: a row belongs to one holder at a time, and comes back however the holder goes."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.server.engine.errors import EngineError
from offramp.server.engine.runners.cuda.slots import PADDING_ROW, OutOfSlots, SlotPool


def test_there_is_room_for_all_in_flight_and_the_batch_of_a_step():
    pool = SlotPool(1, max_samples=5, max_batch_size=3)
    assert pool.capacity == 8
    assert sorted(pool.free_rows) == list(range(1, 9))


def test_no_row_is_given_twice_and_the_padding_row_never():
    pool = SlotPool(1, 5, 3)
    rows = [slot.row for slots in (pool.take(3), pool.take(5)) for slot in slots]
    # The slots of the first call were dropped only after the second: the list comprehension held on to both.
    assert sorted(rows) == list(range(1, 9))
    assert PADDING_ROW not in rows


def test_a_row_comes_back_with_the_last_reference_to_its_slot():
    pool = SlotPool(1, 5, 3)
    slots = pool.take(8)
    also_held = slots[2]
    row = slots[5].row
    del slots[5], slots[2]
    assert pool.free_rows == (row,)
    assert [slot.row for slot in pool.take(1)] == [row]
    del also_held
    assert len(pool.free_rows) == 2


def test_too_many_are_refused_by_the_name_of_the_setting_and_nothing_is_taken():
    pool = SlotPool(2, max_samples=5, max_batch_size=3)
    held = pool.take(6)
    with pytest.raises(
        OutOfSlots,
        match=r"3 slots after stage 2 are out of range: 2 of 8 .* 5 samples in flight: .* --max-queue",
    ):
        pool.take(3)
    assert issubclass(OutOfSlots, EngineError)
    assert len(pool.free_rows) == 2
    del held[0]
    assert len(pool.take(3)) == 3


def test_a_pool_knows_its_own():
    ours, theirs = SlotPool(1, 2, 2), SlotPool(1, 2, 2)
    mine, foreign = ours.take(2), theirs.take(1)
    assert ours.owns(mine)
    assert not ours.owns([*mine, *foreign])
    assert not ours.owns([*mine, None])


def test_rows_let_go_on_other_threads_while_some_are_taken_are_neither_lost_nor_doubled():
    pool = SlotPool(1, max_samples=64, max_batch_size=8)
    held: list = [pool.take(8) for _ in range(9)]

    def let_go() -> None:
        while held:
            try:
                held.pop()
            except IndexError:
                return

    threads = [threading.Thread(target=let_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    mine: list = []
    while len(mine) < 30:
        if len(pool.free_rows) >= 3:
            mine += pool.take(3)
    for thread in threads:
        thread.join()
    assert sorted([*(slot.row for slot in mine), *pool.free_rows]) == list(range(1, 73))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20)), max_size=40))
def test_whatever_is_taken_and_dropped_free_and_held_rows_are_all_rows_once(turns):
    pool, held = SlotPool(1, 12, 4), []
    for taken, dropped in turns:
        if taken <= len(pool.free_rows):
            held += pool.take(taken)
        del held[:dropped:2]
        assert sorted([*(slot.row for slot in held), *pool.free_rows]) == list(range(1, 17))
