"""Slots for pictures: seen by two processes, never given to two pictures at once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from offramp.models.exit_policy import Calibration
from offramp.models.preprocess import Preprocessing
from offramp.server.processes.shared_pictures import FreeSlots, Layout, Segment, picture_bytes

NUM_SLOTS = 6


class SlotsInUse(RuleBasedStateMachine):
    """Takes and gives back in any order, and knows who must have what."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = FreeSlots(NUM_SLOTS)
        self.taken: list[int] = []

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        slots = self.slots.take(count)
        if count > NUM_SLOTS - len(self.taken):
            assert slots is None
            return
        assert slots is not None
        assert len(slots) == count
        assert not set(slots) & set(self.taken)
        self.taken += slots

    @rule(index=st.integers(0, NUM_SLOTS))
    def give_back(self, index: int) -> None:
        if self.taken:
            self.slots.give_back(self.taken.pop(index % len(self.taken)))

    @rule(slot=st.integers(0, NUM_SLOTS - 1))
    def give_back_what_nobody_has(self, slot: int) -> None:
        if slot not in self.taken:
            with pytest.raises(KeyError):
                self.slots.give_back(slot)

    @invariant()
    def the_rest_is_free(self) -> None:
        assert len(self.slots) == NUM_SLOTS - len(self.taken)
        assert all(0 <= slot < NUM_SLOTS for slot in self.taken)


TestSlotsInUse = SlotsInUse.TestCase


@pytest.fixture
def memory():
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def layout_of(size: int, num_slots: int = 3) -> Layout:
    return Layout(num_slots, picture_bytes(size), b"")


def test_what_one_end_writes_the_other_sees(memory):
    ours, theirs = (Segment(memory, layout_of(4)).pictures(4) for _ in range(2))
    pictures = np.random.default_rng(0).integers(0, 256, ours.shape, dtype=np.uint8)
    ours[...] = pictures
    assert np.array_equal(theirs, pictures)


def test_another_process_sees_it_too(memory):
    Segment(memory, layout_of(2)).pictures(2)[1] = 7
    code = (
        "import sys; from offramp.server.processes.shared_pictures import *; "
        "print(*Segment(int(sys.argv[1]), Layout(3, picture_bytes(2), b'')).pictures(2).sum(axis=(1, 2, 3)))"
    )
    command = [sys.executable, "-c", code, str(memory)]
    result = subprocess.run(command, pass_fds=[memory], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", str(12 * 7), "0"]


def test_a_smaller_model_uses_a_part_of_each_slot(memory):
    segment = Segment(memory, layout_of(4))
    small, large = segment.pictures(2), segment.pictures(4)
    large[...] = 0
    small[1] = 5
    assert large[0].sum() == large[2].sum() == 0
    assert large[1].sum() == 5 * picture_bytes(2)
    assert small.flags.writeable


def test_the_memory_lives_as_long_as_a_picture_is_looked_at():
    fd = os.memfd_create("test")
    picture = Segment(fd, layout_of(4)).pictures(4)[1]
    os.close(fd)
    picture[...] = 9
    assert picture.min() == 9


def test_a_layout_fits_the_largest_model_and_every_models_pictures(bundle):
    layout = Layout.of([bundle, replace(bundle, version="2")], max_samples=10)
    assert (layout.num_slots, layout.slot_bytes) == (20, 32 * 32 * 3)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"name": "other"},
        {"labels": tuple("abcdefghij")},
        {"threshold": 0.75},
        {"calibration": Calibration((1.0, 1.0, 1.0, 1.5), (0.0,) * 4)},
        {"preprocessing": Preprocessing(32, crop_fraction=0.875)},
        {"digest": "of other weights"},
    ],
)
def test_another_bundle_has_another_digest(bundle, change):
    assert Layout.of([bundle], 10).digest == Layout.of([replace(bundle)], 10).digest
    assert Layout.of([bundle], 10).digest != Layout.of([replace(bundle, **change)], 10).digest
