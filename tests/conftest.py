"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; without it a test is skipped, and under CI it fails."""
    named = os.environ.get("OFFRAMP_DATA_ROOT")
    root = Path(named) if named else PROJECT.parent / "shared" / "data"
    if root.is_dir():
        return root
    reason = f"no data root at {root}; name it with OFFRAMP_DATA_ROOT"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)
