"""Slots for pictures, which two processes see."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from offramp.models.exit_policy import Calibration
from offramp.models.preprocess import Preprocessing
from offramp.server.processes.shared_pictures import Layout


@pytest.fixture
def memory():
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def test_what_one_end_writes_the_other_sees(memory):
    [written], [read] = (Layout(3, (4,)).map(memory) for _ in range(2))
    pictures = np.random.default_rng(0).integers(0, 256, written.shape, dtype=np.uint8)
    written[...] = pictures
    assert np.array_equal(read, pictures)


def test_another_process_sees_it_too(memory):
    [pictures] = Layout(3, (2,)).map(memory)
    pictures[1] = 7
    code = (
        "import sys; from offramp.server.processes.shared_pictures import Layout; "
        "print(*Layout(3, (2,)).map(int(sys.argv[1]))[0].sum(axis=(1, 2, 3)))"
    )
    command = [sys.executable, "-c", code, str(memory)]
    result = subprocess.run(command, pass_fds=[memory], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", str(12 * 7), "0"]


def test_a_smaller_model_uses_a_part_of_each_slot(memory):
    small, large = Layout(3, (2, 4)).map(memory)
    large[...] = 0
    small[1] = 5
    assert large[0].sum() == large[2].sum() == 0
    assert large[1].sum() == 5 * small[1].size
    assert small.flags.writeable


def test_the_memory_lives_as_long_as_a_picture_is_used():
    fd = os.memfd_create("test")
    picture = Layout(3, (4,)).map(fd)[0][1]
    os.close(fd)
    picture[...] = 9
    assert picture.min() == 9


def test_a_layout_has_a_slot_for_each_picture_in_flight(bundle, memory):
    layout = Layout.of([bundle, replace(bundle, version="2")], max_samples=10)
    assert (layout.num_slots, layout.sizes) == (20, (32, 32))
    layout.map(memory)
    assert os.fstat(memory).st_size == 20 * 32 * 32 * 3


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
