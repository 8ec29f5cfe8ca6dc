"""What runners' libraries raise, in our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.server.engine.errors import DeviceLost, EngineError


@contextmanager
def as_sentence(who: str, way_out: str) -> Iterator[None]:
    """Whatever is raised here becomes a ValueError that names who cannot run the network, why, and the way out.

    Our own errors stay as they are: ValueError, EngineError, and ImportError for what is not installed.
    """
    try:
        yield
    except (ValueError, EngineError, ImportError):
        raise
    except Exception as error:
        # Libraries raise what they like, and so does a network of one's own.
        raise ValueError(f"{who} cannot run this network: {sentence(error)}; {way_out}") from error


@contextmanager
def device_lost() -> Iterator[None]:
    """Errors after which every call of this process fails, such as an illegal access, become DeviceLost.

    Too little memory is another error.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """The line of a message that says what happened."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    if not lines:
        return type(error).__name__
    # CUDA's advice comes behind it; where in OpenVINO's own source it was found comes in front.
    line = lines[0] if lines[0].startswith("CUDA") else lines[-1]
    return line if isinstance(error, RuntimeError) else f"{type(error).__name__}: {line}"


def first_cause(error: BaseException) -> BaseException:
    """The error that came first: what is raised while another is handled takes its place."""
    while error.__context__ is not None:
        error = error.__context__
    return error
