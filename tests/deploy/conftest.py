"""What lies in deploy/, checked without a cluster. Helm's own library renders the chart."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from offramp.server.settings import Settings
from tests.deploy.crds import CRDS, pods_of
from tests.project import PROJECT, needed, needed_program

DEPLOY = PROJECT / "deploy"
CHART = DEPLOY / "helm/offramp"

# The oldest that Chart.yaml allows. Volumes from images came with the one after it.
OLDEST, IMAGE_VOLUMES = "1.30", "1.31"

Values = dict[str, Any]
Manifest = dict[str, Any]


def load(path: str) -> Manifest:
    """A YAML file of deploy/."""
    yaml = needed("yaml")
    loaded: Manifest = yaml.load((DEPLOY / path).read_text(), yaml.CSafeLoader)
    return loaded


def changed(manifest: Manifest, place: tuple[str | int, ...], value: Any) -> Manifest:
    """A copy with another value at a place."""
    result = copy.deepcopy(manifest)
    at: Any = result
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    return result


def mebibytes(quantity: str) -> float:
    """Of a quantity of Kubernetes or Compose."""
    number, unit = re.fullmatch(r"([\d.]+)(Mi|Gi|m)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"Mi": 1, "m": 1, "Gi": 1024}[unit]


def sizing_mib(threads: int, frontends: int = 0) -> float:
    """docs/operations.md, Sizing: the embedded model with its queue, and what clients send to each HTTP process."""
    clients = Settings.decode_memory_mib + 24 * threads + Settings.max_uploads_mib
    return 0.8 * 1024 + max(1, frontends) * clients + 270 * frontends


@pytest.fixture(scope="session")
def check() -> Callable[[Manifest], None]:
    """Validates a manifest against Kubernetes' own schemas, and the custom resource's; each content once."""
    kubernetes, jsonschema = needed("kubernetes_validate"), needed("jsonschema")
    seen = set()

    def checked(manifest: Manifest) -> None:
        content = json.dumps(manifest, sort_keys=True)
        if manifest["kind"] == "Notes" or content in seen:
            return
        seen.add(content)
        oldest = IMAGE_VOLUMES if '"reference"' in content else OLDEST
        custom = manifest["kind"] in CRDS
        if custom:
            jsonschema.validate(manifest, CRDS[manifest["kind"]])
        for known in pods_of(manifest) if custom else [manifest]:
            for version in (oldest, kubernetes.latest_version()):
                kubernetes.validate(known, version, strict=True)

    return checked


@pytest.fixture(scope="session")
def promtool() -> str:
    return needed_program("promtool")


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
