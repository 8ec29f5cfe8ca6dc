"""Decoding processes: they do with little shared memory, and when they end or stand still, the walk says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.preprocess import Preprocessing
from offramp.training.data import Batches, DataError, FolderSet
from offramp.training.data.batches import TIMEOUT_S
from tests.project import PROJECT

COUNT = 24

WALKS = """
import sys
from pathlib import Path

import torch

from tests.training.data.test_workers import pictures, walk

in_one, in_two = (walk(pictures(Path(sys.argv[1])), workers) for workers in (0, 2))
assert len(in_one) == len(in_two) == 3
assert all(torch.equal(a, b) for one, two in zip(in_one, in_two) for a, b in zip(one, two))
print("the same pictures")
"""


def pictures(folder: Path, kind: type[FolderSet] = FolderSet) -> FolderSet:
    """COUNT pictures of 128 pixels, made where they are not there yet: 393 kB a batch of 8."""
    names = tuple(f"{number}.png" for number in range(COUNT))
    for number, name in enumerate(names):
        if not (folder / name).exists():
            Image.new("RGB", (16, 16), (number, 2 * number, 3 * number)).save(folder / name)
    return kind(folder, names, np.arange(COUNT) % 2, ("a", "b"), Preprocessing(size=128))


def walk(pictures: FolderSet, workers: int, timeout_s: float = TIMEOUT_S) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All batches of one walk; copies, as shared memory is to be free again."""
    batches = Batches(pictures, 8, torch.device("cpu"), workers=workers, timeout_s=timeout_s)
    return [(images_BHWC.clone(), labels_B.clone()) for images_BHWC, labels_B in batches.epoch()]


def run_with_shared_memory(size: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """WALKS with a /dev/shm of that size, in a mount namespace of its own. Skips where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("a small /dev/shm needs unshare, which is not installed")
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    allowed = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"a small /dev/shm needs the right to mount: {allowed.stderr.strip()}")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-W", "ignore", "-c", WALKS]
    return subprocess.run([*command, str(folder)], cwd=PROJECT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("size", "warning"),
    [
        pytest.param("512k", "shared memory is too small for decoded pictures", id="one batch fits"),
        pytest.param("256k", "shared memory is too small for decoded pictures", id="no batch fits"),
        pytest.param("4k", "decoding processes cannot start", id="no semaphore fits"),
    ],
)
def test_little_shared_memory_is_warned_of_once_and_changes_no_picture(size: str, warning: str, tmp_path: Path) -> None:
    done = run_with_shared_memory(size, tmp_path)
    assert (done.returncode, done.stdout) == (0, "the same pictures\n"), done.stderr
    assert done.stderr.count(warning) == 1
    assert done.stderr.count("--shm-size") == 1
    assert "No space left on device" in done.stderr


def test_enough_shared_memory_is_not_warned_of(tmp_path: Path) -> None:
    done = run_with_shared_memory("64m", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the same pictures\n", "")


class Stuck(FolderSet):
    """Pictures that are never decoded."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        threading.Event().wait()
        raise AssertionError("nothing sets the event")


class Killed(FolderSet):
    """Pictures that end the process that decodes them, as the kernel does when memory is short."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the process has ended")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "timeout_s", "cause"),
    [(Stuck, 1, "DataLoader timed out after 1 seconds"), (Killed, 100, r"DataLoader worker \(pid.* (killed|exited)")],
)
def test_a_pass_ends_with_the_cause_when_the_workers_fail(
    kind: type[FolderSet], timeout_s: float, cause: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"(?s)decoding processes give no more pictures \({cause}.*--workers"):
        walk(pictures(tmp_path, kind), 1, timeout_s=timeout_s)
