"""A bundle's weights: a safetensors file from a stranger. Its header is checked before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

STORED_TYPES = ("F16", "F32")


class WeightsError(ValueError):
    """A file that is not whole, or belongs to another network; the message says what is wrong."""


def load_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named in `expected` from the file: float32, on the CPU. `expected` may be on the meta device.

    Raises WeightsError for a file that is not whole or has other names, shapes or types, before a tensor takes memory.
    Raises it also for values that are not finite, and for too little memory.
    """
    try:
        # Opening checks the header, and that the file is exactly as long as its header says.
        with safe_open(path, framework="pt") as file:
            _check_header(file, expected)
            # Copied, since a tensor of an open file is the file itself.
            weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in expected}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"not a whole safetensors file ({error}); copy or train the bundle again") from error
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError for too little memory.
        raise WeightsError(f"no memory for {len(expected)} tensors ({error}); free some") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"tensor {name!r} holds values that are not finite numbers; the run diverged")
    return weights


def _check_header(file: Any, expected: Mapping[str, Tensor]) -> None:
    names = set(file.keys())
    if missing := sorted(expected.keys() - names):
        raise WeightsError(
            f"{len(missing)} tensors are missing, such as {missing[0]!r}; the file is of another network"
        )
    if extra := sorted(names - expected.keys()):
        raise WeightsError(f"{len(extra)} tensors too many, such as {extra[0]!r}; the file is of another network")
    for name, tensor in expected.items():
        stored, needed = file.get_slice(name), list(tensor.shape)
        if stored.get_shape() != needed:
            raise WeightsError(f"tensor {name!r} has shape {stored.get_shape()}, the network needs {needed}")
        if stored.get_dtype() not in STORED_TYPES:
            raise WeightsError(f"tensor {name!r} is of type {stored.get_dtype()}; weights are F16 or F32")
