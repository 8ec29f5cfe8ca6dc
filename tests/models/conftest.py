"""Fixtures of the models tests: tiny networks, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from offramp.models.bundle import Bundle, save_bundle
from tests.bundles import tiny_bundle


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="tiny_bundle")
def tiny() -> Bundle:
    """See `tests.bundles.tiny_bundle`."""
    return tiny_bundle()


@pytest.fixture
def saved_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """The tiny bundle's folder."""
    path = tmp_path / "bundle"
    save_bundle(tiny_bundle, path, "# the card\n")
    return path
