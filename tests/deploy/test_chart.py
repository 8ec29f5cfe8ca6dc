"""The chart of deploy/helm: every combination renders, and what it renders is valid."""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from server.processes.supervisor import END_S
from server.settings import Settings
from tests.deploy.conftest import CHART, Manifest, Values, needed
from tests.deploy.crds import CRDS
from tests.deploy.settings_schema import OF_THE_CHART, SCHEMA, settings_schema

# The oldest that Chart.yaml allows. Volumes from images came with the one after it.
OLDEST, IMAGE_VOLUMES = "1.30", "1.31"

BUNDLES: dict[str, Values] = {
    "embedded": {},
    "in the server's image": {"source": "server", "paths": ["/photos", "/birds"]},
    "image": {"source": "image", "image": {"reference": "registry.example/photos:1"}},
    "claim": {"source": "claim", "claim": {"name": "bundles"}, "paths": ["photos", "birds"]},
    "init container": {
        "source": "initContainer",
        "initContainer": {"image": "curl:8", "command": ["sh", "-c"], "args": ["curl … | tar -xC /bundles"]},
    },
}
SCALING: dict[str, Values] = {
    "fixed": {"enabled": False},
    "keda": {"enabled": True, "type": "keda", "keda": {"authenticationRef": "prometheus"}},
    "hpa": {"enabled": True, "type": "hpa"},
}
# Each is on or off, in all combinations.
SWITCHES: dict[str, Values] = {
    "keys": {"apiKeys": {"existingSecret": "keys"}},
    "watched": {"serviceMonitor": {"enabled": True, "labels": {"release": "x"}}, "prometheusRule": {"enabled": True}},
    "fenced": {"networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 443}]}], "ingressFrom": [{"podSelector": {}}]}},
    "shown": {"ingress": {"enabled": True, "className": "nginx", "hosts": ["a.example"], "tls": [{"hosts": ["a.example"]}]}},
    "disruptable": {"podDisruptionBudget": {"enabled": False}},
    "minimum": {"podDisruptionBudget": {"minAvailable": "50%", "maxUnavailable": None}},
    "account": {"serviceAccount": {"create": False, "name": "other"}},
    "frontends": {"settings": {"frontends": 2, "decode_threads": 1}},
    "everything else": {
        "fullnameOverride": "pictures",
        "image": {"tag": "1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "shutdown": {"preStopSeconds": 0},
        "strategy": {"type": "Recreate", "rollingUpdate": None},
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "pictures"},
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "nets", "configMap": {"name": "nets"}}],
        "extraVolumeMounts": [{"name": "nets", "mountPath": "/nets"}],
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    },
}


def merged(*layers: Values) -> Values:
    """Values of later layers over those of earlier ones, as Helm merges files."""
    result: Values = {}
    for layer in layers:
        for name, value in layer.items():
            below = result.get(name)
            result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


@pytest.fixture(scope="session")
def check() -> Callable[[Manifest], None]:
    """Validates a manifest against Kubernetes' own schemas, or the custom resource's; each content once."""
    kubernetes, jsonschema = needed("kubernetes_validate"), needed("jsonschema")
    seen = set()

    def checked(manifest: Manifest) -> None:
        content = json.dumps(manifest, sort_keys=True)
        if manifest["kind"] == "Notes" or content in seen:
            return
        seen.add(content)
        if manifest["kind"] in CRDS:
            jsonschema.validate(manifest, CRDS[manifest["kind"]])
            return
        oldest = IMAGE_VOLUMES if '"reference"' in content else OLDEST
        for version in (oldest, kubernetes.latest_version()):
            kubernetes.validate(manifest, version, strict=True)

    return checked


def test_lint_finds_nothing_but_the_missing_icon(helm):
    found = helm.lint(CHART, strict=True)
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]
    assert found["errors"] == []


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("scaling", SCALING)
@pytest.mark.parametrize("file", ["", "values-cpu.yaml", "values-gpu.yaml"])
def test_every_combination_renders_and_is_valid(render, check, values_of, file, bundle, scaling):
    base = merged(values_of(file), {"bundle": BUNDLES[bundle], "autoscaling": SCALING[scaling]})
    kinds = set()
    # All switches on and off with each other would be 512 a case; every pair is met here.
    for switched in [(), *itertools.combinations(SWITCHES, 2), tuple(SWITCHES)]:
        if bundle == "init container" and file == "values-cpu.yaml" and "fenced" not in switched:
            continue
        for manifest in render(merged(base, *(SWITCHES[name] for name in switched))):
            check(manifest)
            kinds.add(manifest["kind"])
    always = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Ingress", "Pod", "Notes"}
    scaler = {"fixed": set(), "keda": {"ScaledObject"}, "hpa": {"HorizontalPodAutoscaler"}}[scaling]
    assert kinds == always | scaler | {"ServiceMonitor", "PrometheusRule"}


@pytest.mark.parametrize(
    ("kind", "place", "wrong"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readinessprobe"), {}),
        ("Deployment", ("spec", "template", "spec", "terminationGracePeriodSeconds"), "long"),
        ("PodDisruptionBudget", ("spec", "maxunavailable"), 1),
        ("NetworkPolicy", ("spec", "ingress", 0, "ports", 0, "portNumber"), 1),
        ("ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), 0.125),
        ("ScaledObject", ("spec", "minReplicas"), 1),
        ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "15 s"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "severity"), "info"),
    ],
)
def test_a_wrong_field_would_be_refused(one, check, values_of, kind, place, wrong):
    manifest = json.loads(json.dumps(one(kind, values_of("values-cpu.yaml"))))
    check(manifest)
    at: Any = manifest
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = wrong
    with pytest.raises(needed("jsonschema").ValidationError):
        check(manifest)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"setings": {}}, "setings"),
        ({"settings": {"max_batchsize": 1}}, "max_batchsize"),
        ({"settings": {"max_batch_size": 0}}, "/settings/max_batch_size"),
        ({"settings": {"policy": "fastest"}}, "/settings/policy"),
        ({"settings": {"port": "8000"}}, "/settings/port"),
        ({"settings": {"api_keys": "secret"}}, "api_keys"),
        ({"settings": {"drain_timeout_s": None}}, "drain_timeout_s"),
        ({"settings": {"frontends": 2}}, "decode_threads"),
        ({"bundle": {"source": "s3"}}, "/bundle/source"),
        ({"bundle": {"source": "claim"}}, "/bundle/claim/name"),
        ({"bundle": {"source": "image"}}, "/bundle/image/reference"),
        ({"bundle": {"source": "initContainer"}}, "/bundle/initContainer/image"),
        ({"bundle": {"paths": ["photos"]}}, "/bundle/paths/0"),
        ({"bundle": {"source": "claim", "claim": {"name": "a"}, "paths": ["/photos"]}}, "/bundle/paths/0"),
        ({"podDisruptionBudget": {"minAvailable": 1}}, "/podDisruptionBudget"),
        ({"autoscaling": {"type": "cpu"}}, "/autoscaling/type"),
        ({"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
        ({"ingress": {"enabled": True}}, "/ingress/hosts"),
        ({"resources": {"limits": {"memory": "2 GB"}}}, "/resources/limits/memory"),
        ({"livenessProbe": {"timeout": 1}}, "timeout"),
    ],
)
def test_a_typo_or_a_contradiction_in_the_values_is_refused(helm, render, values, words):
    with pytest.raises(helm.HelmValuesError, match=words):
        render(values)


def test_a_download_behind_a_closed_network_is_refused(helm, render):
    values = {"bundle": BUNDLES["init container"], "networkPolicy": {"enabled": True}}
    with pytest.raises(helm.HelmRenderError, match=r"networkPolicy\.egress"):
        render(values)


def test_the_schema_knows_the_servers_settings_and_no_others():
    written = json.loads(SCHEMA.read_text())["properties"]["settings"]
    assert written == settings_schema(), "run python -m tests.deploy.settings_schema"


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
    pod = one("Deployment", {"settings": settings, "shutdown": {"preStopSeconds": pre_stop_s}})["spec"]["template"]["spec"]
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
    values: Values = {"settings": {"max_wait_s": 0.4, "max_queue": 2000}, "autoscaling": {"enabled": True, "targetLoad": load}}
    triggers = one("ScaledObject", values)["spec"]["triggers"]
    assert [float(each["metadata"]["threshold"]) for each in triggers] == pytest.approx([load * 0.4, load * 2000])
    values["autoscaling"]["type"] = "hpa"
    metrics = one("HorizontalPodAutoscaler", values)["spec"]["metrics"]
    targets = [each["pods"]["target"]["averageValue"] for each in metrics]
    assert targets == [f"{load * 400:.0f}m", f"{load * 2_000_000:.0f}m"]
    assert "replicas" not in one("Deployment", values)["spec"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_server_loads_the_bundles_that_are_mounted(one, bundle):
    pod = one("Deployment", {"bundle": BUNDLES[bundle]})["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    models = {
        "embedded": [],
        "in the server's image": ["/photos", "/birds"],
        "claim": ["/bundles/photos", "/bundles/birds"],
    }.get(bundle, ["/bundles"])
    assert container["args"] == ["serve", *(part for model in models for part in ("--model", model))]
    mounted = any(mount["mountPath"] == "/bundles" for mount in container["volumeMounts"])
    assert mounted == any(model.startswith("/bundles") for model in models)


def test_keys_come_as_a_file_that_only_the_servers_group_reads(one):
    pod = one("Deployment", SWITCHES["keys"])["spec"]["template"]["spec"]
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


def mebibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"Mi": 1, "Gi": 1024}[unit]


@pytest.mark.parametrize("file", ["", "values-cpu.yaml", "values-gpu.yaml"])
def test_memory_is_what_the_sizing_asks_for(one, values_of, file):
    """docs/operations.md, Sizing: the embedded model with its queue, and what clients send to each HTTP process."""
    deployment = one("Deployment", values_of(file))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    cores = container["resources"]["requests"]["cpu"]
    found = env(deployment)
    frontends = int(found.get("OFFRAMP_FRONTENDS", 0))
    threads = int(found["OFFRAMP_DECODE_THREADS"]) if frontends else cores
    clients = Settings.decode_memory_mib + 24 * threads + Settings.max_uploads_mib
    sizing = 0.8 * 1024 + max(1, frontends) * clients + 270 * frontends
    assert mebibytes(container["resources"]["limits"]["memory"]) >= sizing
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_the_chart_is_of_the_servers_version(chart):
    project = tomllib.loads((Path(CHART).parents[2] / "pyproject.toml").read_text())["project"]
    assert chart.metadata["appVersion"] == project["version"]
