"""Checkpoints of a training run: written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

# Stands for a field that only the other of two runs has.
ABSENT = object()


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or continued; the message names the file and the fix."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path` and move it into place. So an interrupted write leaves the old file.

    Raises CheckpointError when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a full disk into a RuntimeError.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: the checkpoint could not be written ({error}); free disk space or choose another --output. "
            "The last complete checkpoint is untouched: continue with --resume"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are accepted.

    Raises CheckpointError when the file is missing, truncated, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint to resume from; start the run without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a usable checkpoint ({error}); delete it and start the run again without --resume"
        ) from error
    return state


def check_identity(path: Path, run: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise CheckpointError, with a field that differs, when the checkpoint at `path` belongs to another run."""
    # The recipe last: other data change its mean colour too, and the data are the cause to name.
    run, stored = _comparable(run), _comparable(stored)
    for key in reversed({**stored, **run}):
        here, there = run.get(key), stored.get(key)
        if there == here:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            field = next(name for name in {**here, **there} if here.get(name, ABSENT) != there.get(name, ABSENT))
            key, there, here = f"{key} {field}", there.get(field), here.get(field)
        raise CheckpointError(
            f"{path}: was trained with {key} {there}, not {here}; "
            "give the same options to resume, or another --output to start anew"
        )


def _comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """The values that must be equal to resume: all but the number of parts of a step, which memory decides."""
    recipe = {name: value for name, value in identity["recipe"].items() if name != "accumulate"}
    return {**identity, "recipe": recipe}
