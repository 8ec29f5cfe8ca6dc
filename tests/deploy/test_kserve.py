"""KServe's resources. test_container.py runs what they start."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from offramp.server.processes.supervisor import END_S
from offramp.server.settings import Settings
from tests.deploy.conftest import changed, load, mebibytes, sizing_mib
from tests.deploy.queries import check_queries
from tests.project import needed

FILES = {name: f"kserve/{name}.yaml" for name in ("custom", "runtime", "photos")}


def container_in(name: str) -> dict[str, Any]:
    spec = load(FILES[name])["spec"]
    (container,) = spec.get("predictor", spec)["containers"]
    return dict(container)


@pytest.mark.parametrize("name", FILES)
def test_the_manifest_is_valid(check, name):
    check(load(FILES[name]))


@pytest.mark.parametrize(
    ("name", "place", "wrong"),
    [
        ("custom", ("spec", "predictor", "minreplicas"), 1),
        ("custom", ("spec", "predictor", "containers", 0, "readinessprobe"), {}),
        ("custom", ("spec", "predictor", "model"), {"modelFormat": {"name": "offramp"}}),
        ("runtime", ("spec", "containers", 0, "resources", "requests"), "2 cores"),
        ("runtime", ("spec", "supportedModelFormats"), ["offramp"]),
        ("runtime", ("spec", "protocolVersions"), ["offramp"]),
        ("photos", ("spec", "predictor", "model", "storageUri"), "models/photos"),
        ("photos", ("spec", "predictor", "model", "format"), "offramp"),
        ("photos", ("spec", "predictor", "autoScaling", "metrics", 0, "external", "target", "value"), 0.125),
        ("photos", ("spec", "predictor", "terminationGracePeriodSeconds"), "long"),
    ],
)
def test_a_wrong_field_would_be_refused(check, name, place, wrong):
    with pytest.raises(needed("jsonschema").ValidationError):
        check(changed(load(FILES[name]), place, wrong))


def test_both_ways_start_the_same_server():
    custom, runtime = container_in("custom"), container_in("runtime")
    assert {"name": "OFFRAMP_MODEL", "value": "/mnt/models"} in runtime["env"]
    runtime["env"].remove({"name": "OFFRAMP_MODEL", "value": "/mnt/models"})
    # The user is the pod's in one and the container's in the other, where KServe has no place for the pod's.
    custom["securityContext"] |= load(FILES["custom"])["spec"]["predictor"]["securityContext"]
    custom["securityContext"].pop("fsGroup")
    assert custom == runtime


def test_the_container_is_as_kserve_and_the_server_want_it():
    container = container_in("runtime")
    assert container["name"] == "kserve-container"
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert set(env) <= {f"OFFRAMP_{option.name.upper()}" for option in fields(Settings)}
    (port,) = container["ports"]
    assert port == {"name": "http1", "containerPort": int(env["OFFRAMP_PORT"]), "protocol": "TCP"}
    for probe, path in {"readinessProbe": "/readyz", "livenessProbe": "/livez"}.items():
        assert container[probe]["httpGet"] == {"path": path, "port": port["containerPort"]}
    assert env["OFFRAMP_THREADS"] == env["OFFRAMP_DECODE_THREADS"] == container["resources"]["requests"]["cpu"]
    memory = container["resources"]["limits"]["memory"]
    assert mebibytes(memory) >= sizing_mib(int(env["OFFRAMP_DECODE_THREADS"]))
    assert memory == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("name", ["custom", "photos"])
def test_the_grace_period_covers_all_that_may_come_before_the_end(name):
    waits_s = container_in("runtime")["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = waits_s + Settings.drain_delay_s + Settings.drain_timeout_s + 2 * END_S
    grace_s = load(FILES[name])["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert math.ceil(needed_s) < grace_s <= math.ceil(needed_s) + 5


def test_the_service_names_the_runtime_and_a_format_of_its():
    runtime, model = load(FILES["runtime"]), load(FILES["photos"])["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [{key: each[key] for key in ("name", "version")} for each in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"] in formats


def test_replicas_are_scaled_as_in_the_chart(promtool, tmp_path):
    service = load(FILES["photos"])
    (metric,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    query = metric["external"]["metric"]["query"]
    check_queries(promtool, [query], tmp_path)
    assert f'service="{service["metadata"]["name"]}-predictor"' in query
    share = load("helm/offramp/values.yaml")["autoscaling"]["targetLoad"]
    assert float(metric["external"]["target"]["value"]) == share * Settings.max_wait_s
