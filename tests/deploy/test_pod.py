"""The pod that the chart describes: settings, threads, times, memory, bundles, keys and rights."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from offramp.server.processes.supervisor import END_S
from offramp.server.settings import Settings
from tests.deploy.conftest import Manifest, Values, mebibytes, sizing_mib
from tests.deploy.settings_schema import OF_THE_CHART


def env(deployment: Manifest) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_a_setting_reaches_the_server_as_its_variable(one):
    given = {"max_queue": 1_000_000, "max_wait_s": 0.25, "access_log": True, "allowed_hosts": "a.example,*.b.example"}
    found = env(one("Deployment", {"settings": given}))
    assert found["OFFRAMP_MAX_QUEUE"] == "1000000"
    assert found["OFFRAMP_MAX_WAIT_S"] == "0.25"
    assert found["OFFRAMP_ACCESS_LOG"] == "true"
    assert found["OFFRAMP_ALLOWED_HOSTS"] == "a.example,*.b.example"
    known = {f"OFFRAMP_{option.name.upper()}" for option in fields(Settings)}
    assert set(found) <= known


def test_the_chart_says_what_the_server_would_have_done_by_itself(chart):
    settings, defaults = chart.values["settings"], Settings()
    assert settings.pop("host") == "0.0.0.0"
    assert settings == {name: getattr(defaults, name) for name in settings}
    assert OF_THE_CHART.isdisjoint(settings)


def test_threads_follow_the_cores_asked_for_unless_they_are_given(one):
    cores = {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}}
    found = env(one("Deployment"))
    assert found["OFFRAMP_THREADS"] == found["OFFRAMP_DECODE_THREADS"] == cores
    found = env(one("Deployment", {"settings": {"threads": 3, "frontends": 2, "decode_threads": 1}}))
    assert (found["OFFRAMP_THREADS"], found["OFFRAMP_DECODE_THREADS"]) == ("3", "1")


@pytest.mark.parametrize("pre_stop_s", [0, 5, 20])
@pytest.mark.parametrize("drain_delay_s", [0, 0.5, 12.25])
@pytest.mark.parametrize("drain_timeout_s", [1, 30, 600])
def test_the_grace_period_covers_all_that_may_come_before_the_end(one, pre_stop_s, drain_delay_s, drain_timeout_s):
    settings = {"drain_delay_s": drain_delay_s, "drain_timeout_s": drain_timeout_s}
    pod = one("Deployment", {"settings": settings, "shutdown": {"preStopSeconds": pre_stop_s}})["spec"]["template"][
        "spec"
    ]
    # The supervisor gives the frontends END_S beyond their drain, and then the engine as much.
    needed_s = pre_stop_s + drain_delay_s + drain_timeout_s + 2 * END_S
    assert math.ceil(needed_s) < pod["terminationGracePeriodSeconds"] <= math.ceil(needed_s) + 5
    (container,) = pod["containers"]
    if pre_stop_s:
        assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": pre_stop_s}}}
    else:
        assert "lifecycle" not in container


@pytest.mark.parametrize("load", [0.1, 0.25, 1])
def test_replicas_are_scaled_by_a_share_of_the_limits_at_which_they_refuse(one, load):
    values: Values = {
        "settings": {"max_wait_s": 0.4, "max_queue": 2000},
        "autoscaling": {"enabled": True, "targetLoad": load},
    }
    triggers = one("ScaledObject", values)["spec"]["triggers"]
    assert [float(each["metadata"]["threshold"]) for each in triggers] == pytest.approx([load * 0.4, load * 2000])
    values["autoscaling"]["type"] = "hpa"
    metrics = one("HorizontalPodAutoscaler", values)["spec"]["metrics"]
    targets = [each["pods"]["target"]["averageValue"] for each in metrics]
    assert targets == [f"{load * 400:.0f}m", f"{load * 2_000_000:.0f}m"]
    assert "replicas" not in one("Deployment", values)["spec"]


IMAGE = {"source": "image", "image": {"reference": "registry.example/photos:1"}}
CLAIM = {"source": "claim", "claim": {"name": "bundles"}}
INIT = {"source": "initContainer", "initContainer": {"image": "fetch"}}


@pytest.mark.parametrize(
    ("bundle", "models"),
    [
        ({}, []),
        ({"paths": ["/photos", "/birds"]}, ["/photos", "/birds"]),
        (IMAGE, ["/bundles"]),
        (CLAIM, ["/bundles"]),
        ({**CLAIM, "paths": ["photos", "birds"]}, ["/bundles/photos", "/bundles/birds"]),
        (INIT, ["/bundles"]),
    ],
)
def test_the_server_loads_the_bundles_that_are_mounted(one, bundle, models):
    pod = one("Deployment", {"bundle": bundle})["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["serve", *(part for model in models for part in ("--model", model))]
    mounted = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/bundles"]
    assert bool(mounted) == ("source" in bundle)
    assert all(mount["readOnly"] for mount in mounted)


def test_an_init_container_writes_where_the_server_reads(one):
    pod = one("Deployment", {"bundle": INIT})["spec"]["template"]["spec"]
    (fetch,), (container,) = pod["initContainers"], pod["containers"]
    assert {"name": "bundles", "mountPath": "/bundles"} in fetch["volumeMounts"]
    assert {"name": "bundles", "mountPath": "/bundles", "readOnly": True} in container["volumeMounts"]
    assert fetch["securityContext"] == container["securityContext"]
    # It never asks for a GPU.
    assert set(fetch["resources"]["limits"]) <= {"cpu", "memory"}


def test_keys_come_as_a_file_that_only_the_servers_group_reads(one):
    pod = one("Deployment", {"apiKeys": {"existingSecret": "keys"}})["spec"]["template"]["spec"]
    assert env({"spec": {"template": {"spec": pod}}})["OFFRAMP_API_KEYS_FILE"] == "/etc/offramp/keys"
    (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret == {"secretName": "keys", "defaultMode": 0o440, "items": [{"key": "keys", "path": "keys"}]}
    assert pod["securityContext"]["fsGroup"] == 10001


def test_the_pod_meets_the_restricted_security_standard(one):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards"""
    pod = one("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    # A Service named offramp would set OFFRAMP_PORT to tcp://….
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("file", ["", "values-cpu.yaml", "values-gpu.yaml"])
def test_memory_is_what_the_sizing_asks_for(one, values_of, file):
    deployment = one("Deployment", values_of(file))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    cores = container["resources"]["requests"]["cpu"]
    found = env(deployment)
    frontends = int(found.get("OFFRAMP_FRONTENDS", 0))
    threads = int(found["OFFRAMP_DECODE_THREADS"]) if frontends else cores
    assert mebibytes(container["resources"]["limits"]["memory"]) >= sizing_mib(threads, frontends)
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
