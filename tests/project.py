"""Where the project lies, how its programs find its packages, and what tests need of the machine."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# For a process of its own: the packages of this checkout, whichever is installed, and `benchmarks` and `tests`.
PYTHONPATH = os.pathsep.join([str(PROJECT / "build/tree"), str(PROJECT)])


def absent(what: str) -> None:
    """Skip the test; under CI fail it."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed", allow_module_level=True)


def needed(name: str, extra: str = "deploy") -> ModuleType:
    """A module of an extra."""
    try:
        # What libraries do to each other at import is their affair.
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(name)
    except ModuleNotFoundError:
        absent(f"{name} (extra `{extra}`)")
        raise


def needed_program(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name)
    if path is None:
        absent(name)
    return str(path)
