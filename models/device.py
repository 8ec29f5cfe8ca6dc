"""The device that networks run on: one choice for training, evaluation and serving."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the first GPU, else the CPU.

    For a GPU it switches TF32 off in the whole process, so that float32 means float32, and evaluation, calibration and
    engine take the same exits. Mixed precision stays as it is. Raises ValueError for a device that does not exist or
    does not compute.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device {name!r} is unknown: give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: give auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device {name!r} is not there: torch finds {torch.cuda.device_count()} GPUs; give auto or cpu"
            )
        check_usable(device)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 itself; torch also counts older GPUs, which emulate it."""
    return computes_bfloat16(torch.cuda.get_device_capability(device))


def computes_bfloat16(capability: tuple[int, int]) -> bool:
    """Whether GPUs of a compute capability compute in bfloat16: from Ampere on, 8.0."""
    return capability >= (8, 0)


def check_usable(device: torch.device) -> None:
    """Compute one number. Raises ValueError for a device without kernels, or one that another process holds."""
    try:
        torch.ones(1, device=device).item()
    except RuntimeError as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {_first_line(error)}; give --device cpu") from error


@contextmanager
def device_errors(when_full: str, when_lost: str = "start the command again") -> Iterator[None]:
    """Turn errors of a GPU into ValueError, with advice for full memory and for a device that computes no more."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{_first_line(error)}; {when_full}") from error
    except torch.AcceleratorError as error:
        raise ValueError(f"{_first_line(error)}; {when_lost}") from error


def _first_line(error: RuntimeError) -> str:
    """The error itself; CUDA's advice is in the lines after it."""
    return str(error).strip().splitlines()[0].rstrip(".")


def hardware(device: torch.device) -> str:
    """The device in words, and the versions, for cards and result files."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = f"{len(models)} x {models[0]}" if models else platform.processor() or platform.machine()
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
