"""Checkpoint files: whole or not at all, and read without executing anything."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
import torch

from offramp.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

WEIGHTS = torch.arange(3000.0)
STATE = {"epoch": 3, "weights": WEIGHTS, "identity": {"seed": 1}}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_checkpoint_comes_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path / "run.pt", {**STATE, "epoch": epoch})
    loaded = load_checkpoint(tmp_path / "run.pt")
    assert loaded["epoch"] == 2
    assert loaded["identity"] == {"seed": 1}
    assert torch.equal(loaded["weights"], WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", STATE)
    (tmp_path / ".run.pt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"run.pt: .*No space left on device.*free disk space.*--resume"):
        save_checkpoint(tmp_path / "run.pt", {**STATE, "epoch": 4})
    assert load_checkpoint(tmp_path / "run.pt")["epoch"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_save_that_was_killed_half_way_leaves_the_old_checkpoint_and_the_next_save_works(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", STATE)
    (tmp_path / ".run.pt.partial").write_bytes(b"half a checkpoint")
    assert load_checkpoint(tmp_path / "run.pt")["epoch"] == 3
    save_checkpoint(tmp_path / "run.pt", {**STATE, "epoch": 4})
    assert load_checkpoint(tmp_path / "run.pt")["epoch"] == 4


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/run.pt: the checkpoint could not be written"):
        save_checkpoint(tmp_path / "file" / "run.pt", STATE)


def test_no_checkpoint_says_to_start_without_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run.pt: no checkpoint to resume from; start the run without --resume"):
        load_checkpoint(tmp_path / "run.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95, 0.999])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"run.pt: not a usable checkpoint .* without --resume"):
        load_checkpoint(path)


def test_a_damaged_checkpoint_is_refused_by_name_wherever_the_damage_is(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for place in range(0, 600, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        # Some bytes carry no meaning; what must not happen is any other error.
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path)


def test_no_pickled_code_is_executed(tmp_path: Path) -> None:
    path, sprung = tmp_path / "run.pt", tmp_path / "sprung"
    torch.save({"epoch": 1, "trap": Trap(sprung)}, path)
    with pytest.raises(CheckpointError, match="not a usable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CheckpointError, match="not a usable checkpoint"):
        load_checkpoint(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()
