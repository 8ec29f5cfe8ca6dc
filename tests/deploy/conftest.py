"""The chart, rendered by Helm's own library, without a cluster."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHART = Path(__file__).resolve().parents[2] / "deploy/helm/offramp"

Values = dict[str, Any]
Manifest = dict[str, Any]


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


@pytest.fixture(scope="session")
def helm() -> ModuleType:
    return needed("helm_python")


@pytest.fixture(scope="session")
def chart(helm) -> Iterator[Any]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def values_of() -> Callable[[str], Values]:
    """The values of a file beside the chart's own; none for an empty name."""
    yaml = needed("yaml")
    return lambda name: yaml.load((CHART / name).read_text(), yaml.CSafeLoader) if name else {}


@pytest.fixture(scope="session")
def render(chart) -> Callable[..., list[Manifest]]:
    """All manifests for some values, as release `demo` in namespace `prod`; NOTES.txt as kind `Notes`."""
    yaml = needed("yaml")

    def rendered(values: Values | None = None) -> list[Manifest]:
        files = chart.render(values or {}, name="demo", namespace="prod")
        notes = files.pop("offramp/templates/NOTES.txt")
        parsed = [yaml.load(text, yaml.CSafeLoader) for text in files.values() if text.strip()]
        return [*parsed, {"kind": "Notes", "text": notes}]

    return rendered


@pytest.fixture(scope="session")
def one(render) -> Callable[..., Manifest]:
    """The one manifest of a kind."""

    def find(kind: str, values: Values | None = None) -> Manifest:
        (found,) = (manifest for manifest in render(values) if manifest["kind"] == kind)
        return found

    return find
