"""A bundle's weights: a safetensors file from a stranger. Its header is checked before any tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

LENGTH_BYTES = 8
STORED_TYPES = ("F16", "F32")
# The header of a network of a thousand layers has about 100 kB.
MOST_HEADER_BYTES = 16 * 1024**2


class WeightsError(ValueError):
    """A file that is not whole, or belongs to another network; the message says what is wrong."""


@dataclass(frozen=True)
class Stored:
    """A tensor's entry in the header. kind: its type in the words of safetensors, such as "F16"."""

    kind: str
    shape: tuple[int, ...]


def load_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named in `expected` from the file: float32, on the CPU. `expected` may be on the meta device.

    Raises WeightsError for a file that is not whole or has other names, shapes or types, before a tensor takes memory.
    Raises it also for values that are not finite, and for too little memory.
    """
    try:
        _check(read_header(path), expected)
        # Copied, since the tensors of `load_file` may be the file itself.
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise _not_whole(error) from error
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError for too little memory.
        raise WeightsError(f"no memory for {len(expected)} tensors ({error}); free some") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"tensor {name!r} holds values that are not finite numbers; the run diverged")
    return weights


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor's type and shape, by name. It reads no tensor, whatever the file's length.

    Raises WeightsError for a header that is too long, cut off or malformed, and for a file that is longer or shorter
    than its header says; OSError for a file that cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if length > MOST_HEADER_BYTES:
            raise _not_whole(f"a header of {length:,} bytes, above the limit of {MOST_HEADER_BYTES:,}")
        text = file.read(length)
    if len(start) < LENGTH_BYTES or len(text) < length:
        raise _not_whole("it ends before its header does")
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        stored = {name: Stored(str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise _not_whole(f"a malformed header ({type(error).__name__}: {error})") from error
    size, expected = path.stat().st_size, LENGTH_BYTES + length + end
    if size != expected:
        raise _not_whole(f"{size:,} bytes long, where its header tells of {expected:,}")
    return stored


def _check(stored: Mapping[str, Stored], expected: Mapping[str, Tensor]) -> None:
    if missing := sorted(expected.keys() - stored.keys()):
        raise WeightsError(
            f"{len(missing)} tensors are missing, such as {missing[0]!r}; the file is of another network"
        )
    if extra := sorted(stored.keys() - expected.keys()):
        raise WeightsError(f"{len(extra)} tensors too many, such as {extra[0]!r}; the file is of another network")
    for name, tensor in stored.items():
        needed = tuple(expected[name].shape)
        if tensor.shape != needed:
            raise WeightsError(f"tensor {name!r} has shape {list(tensor.shape)}, the network needs {list(needed)}")
        if tensor.kind not in STORED_TYPES:
            raise WeightsError(f"tensor {name!r} is of type {tensor.kind}; weights are F16 or F32")


def _not_whole(cause: object) -> WeightsError:
    return WeightsError(f"not a whole safetensors file ({cause}); copy or train the bundle again")
