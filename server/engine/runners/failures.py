"""Errors of the runners' libraries as our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.server.engine.errors import DeviceLost, EngineError


@contextmanager
def as_sentence(subject: str, fix: str) -> Iterator[None]:
    """Raise any error of the block as a ValueError that says what cannot run the network, why, and the fix.

    ValueError, EngineError and ImportError stay as they are.
    """
    try:
        yield
    except (ValueError, EngineError, ImportError):
        raise
    except Exception as error:
        # Libraries, and networks of users, raise errors of any type.
        raise ValueError(f"{subject} cannot run this network: {sentence(error)}; {fix}") from error


@contextmanager
def device_lost() -> Iterator[None]:
    """Raise DeviceLost for errors after which every call of this process fails, such as an illegal access.

    Too little memory is no such error.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """The line of an error's message that says what happened."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    if not lines:
        return type(error).__name__
    # CUDA adds advice after this line, OpenVINO a place in its source before it.
    line = lines[0] if lines[0].startswith("CUDA") else lines[-1]
    return line if isinstance(error, RuntimeError) else f"{type(error).__name__}: {line}"


def first_cause(error: BaseException) -> BaseException:
    """The first error of a chain: an error that is raised in a handler hides the one before."""
    while error.__context__ is not None:
        error = error.__context__
    return error
