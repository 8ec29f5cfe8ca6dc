"""Blocks: used again once nothing refers to them, within bounds."""

import threading

import numpy as np
import pytest

from offramp.server.engine.runners.openvino.blocks import Block, BlockPool


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool((2, 2, 3), np.uint16, classes=5, spare_rows=8)


def address(block: Block) -> int:
    return block.memory.features_BHWC.ctypes.data


def test_a_block_has_the_shapes_and_types_asked_for(pool):
    block = pool.block(4)
    assert (block.memory.features_BHWC.shape, block.memory.features_BHWC.dtype) == ((4, 2, 2, 3), np.uint16)
    assert (block.memory.accumulated_BC.shape, block.memory.accumulated_BC.dtype) == ((4, 5), np.float32)
    assert len(block) == 4


def test_a_block_is_used_again_only_once_nothing_refers_to_it(pool):
    block = pool.block(4)
    other = pool.block(4)
    assert address(other) != address(block)
    before = address(block)
    del block
    again = pool.block(4)
    assert address(again) == before
    assert address(pool.block(4)) not in (before, address(other))


@pytest.mark.parametrize(("rows", "reused"), [(5, False), (4, True), (3, True), (2, False)])
def test_the_smallest_that_fits_is_taken_unless_it_is_twice_too_large(pool, rows, reused):
    block = pool.block(4)
    before = address(block)
    del block
    assert (address(pool.block(rows)) == before) is reused


def test_no_more_rows_are_kept_than_asked_for_and_the_latest_are(pool):
    blocks = [pool.block(2), *(pool.block(4) for _ in range(3))]
    addresses = [address(block) for block in blocks]
    # One after the other, so that the order is known.
    while blocks:
        del blocks[0]
    assert address(pool.block(4)) in addresses[2:]
    assert sum(len(memory.features_BHWC) for memory in pool._spare) <= 8


def test_rows_of_one_block_and_of_several_are_copied_in_order(pool):
    one, other, into = (pool.block(4) for _ in range(3))
    for block, first in ((one, 0), (other, 10)):
        block.memory.features_BHWC[:] = np.arange(first, first + 4)[:, None, None, None]
        block.memory.accumulated_BC[:] = np.arange(first, first + 4)[:, None]
    for rows, expected in (([(one, 2), (one, 0)], [2, 0]), ([(other, 3), (one, 1), (other, 0)], [13, 1, 10])):
        into.fill(rows)
        assert into.memory.features_BHWC[: len(rows), 0, 0, 0].tolist() == expected
        assert into.memory.accumulated_BC[: len(rows), 4].tolist() == expected


def test_blocks_may_be_let_go_of_on_another_thread_while_some_are_taken():
    pool = BlockPool((1, 1, 1), np.uint16, classes=1, spare_rows=1000)
    handed: list[tuple[int, Block]] = []
    done, written_over = threading.Event(), []

    def let_go() -> None:
        while not done.is_set() or handed:
            if handed:
                number, block = handed.pop(0)
                if not (block.memory.accumulated_BC == number).all():
                    written_over.append(number)
                del block

    thread = threading.Thread(target=let_go)
    thread.start()
    for number in range(5000):
        block = pool.block(2)
        block.memory.accumulated_BC[:] = number
        handed.append((number, block))
    done.set()
    del block
    thread.join()
    assert written_over == []
    spare = [memory.features_BHWC.ctypes.data for memory in pool._spare]
    assert len(spare) == len(set(spare))
