"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.project import PROJECT

# Before torch is imported. Tiny tensors gain nothing from a second thread, and the workers have a core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline says how busy the machine is, not what the code does.
settings.register_profile("offramp", deadline=None)
settings.load_profile("offramp")


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


@pytest.fixture
def own_networks() -> Iterator[None]:
    """Leaves the process without the networks, modules and search paths that a test loaded."""
    from offramp.models.backbones import BACKBONES

    backbones, paths, modules = dict(BACKBONES), list(sys.path), set(sys.modules)
    yield
    BACKBONES.clear()
    BACKBONES.update(backbones)
    added = set(sys.path) - set(paths)
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if str(Path(getattr(sys.modules[name], "__file__", None) or "").parent) in added:
            del sys.modules[name]
