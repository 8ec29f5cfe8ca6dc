"""The chart of deploy/helm: every combination renders, and what it renders is valid."""

from __future__ import annotations

import itertools
import json
import tomllib

import pytest

from tests.deploy.conftest import CHART, Values, changed
from tests.deploy.settings_schema import SCHEMA, settings_schema
from tests.project import needed

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
    "fenced": {
        "networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 443}]}], "ingressFrom": [{"podSelector": {}}]}
    },
    "shown": {
        "ingress": {"enabled": True, "className": "nginx", "hosts": ["a.example"], "tls": [{"hosts": ["a.example"]}]}
    },
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
    # All switches on and off with each other would be 512 a case. Every pair is met, with the chart's own values.
    together = itertools.combinations(SWITCHES, 1 if file else 2)
    for switched in [(), *together, tuple(SWITCHES)]:
        if bundle == "init container" and file == "values-cpu.yaml" and "fenced" not in switched:
            continue
        for manifest in render(merged(base, *(SWITCHES[name] for name in switched))):
            check(manifest)
            kinds.add(manifest["kind"])
    always = {
        "Deployment",
        "Service",
        "ServiceAccount",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "Ingress",
        "Pod",
        "Notes",
    }
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
    manifest = one(kind, values_of("values-cpu.yaml"))
    check(manifest)
    with pytest.raises(needed("jsonschema").ValidationError):
        check(changed(manifest, place, wrong))


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
        ({"fullnameOverride": "123"}, "/fullnameOverride"),
        ({"fullnameOverride": "-"}, "/fullnameOverride"),
        ({"nameOverride": "A_b"}, "/nameOverride"),
        ({"image": {"repository": "a: b"}}, "/image/repository"),
        ({"replicaCount": 1_000_000}, "/replicaCount"),
        ({"shutdown": {"preStopSeconds": 1_000_000}}, "/shutdown/preStopSeconds"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "/podLabels"),
        ({"podAnnotations": {"kubectl.kubernetes.io/default-container": "x"}}, "/podAnnotations"),
        ({"apiKeys": {"existingSecret": "a b"}}, "/apiKeys/existingSecret"),
        ({"apiKeys": {"key": "a/b"}}, "/apiKeys/key"),
        ({"settings": {"port": 0}}, "/settings/port"),
        ({"settings": {"host": "127.0.0.1"}}, "/settings/host"),
    ],
)
def test_a_typo_or_a_contradiction_in_the_values_is_refused(helm, render, values, words):
    with pytest.raises(helm.HelmValuesError, match=words):
        render(values)


def test_a_download_behind_a_closed_network_is_refused(helm, render):
    values = {"bundle": BUNDLES["init container"], "networkPolicy": {"enabled": True}}
    with pytest.raises(helm.HelmRenderError, match=r"networkPolicy\.egress"):
        render(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}}, "minReplicas 3 is above"),
        (
            {"autoscaling": {"enabled": True, "type": "hpa", "minReplicas": 3, "maxReplicas": 2}},
            "minReplicas 3 is above",
        ),
        ({"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}, 'extraVolumes has "tmp"'),
    ],
)
def test_values_that_contradict_each_other_are_refused(helm, render, values, words):
    with pytest.raises(helm.HelmRenderError, match=words):
        render(values)


def test_names_that_yaml_reads_as_other_types_stay_texts(render, check):
    values = {"nameOverride": "true", "apiKeys": {"existingSecret": "123", "key": "1e3"}, "priorityClassName": "1"}
    for manifest in render(values):
        check(manifest)


def test_recreate_drops_the_rolling_update(render):
    (deployment,) = (each for each in render({"strategy": {"type": "Recreate"}}) if each["kind"] == "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_schema_knows_the_servers_settings_and_no_others():
    written = json.loads(SCHEMA.read_text())["properties"]["settings"]
    assert written == settings_schema(), "run python -m tests.deploy.settings_schema"


def test_the_chart_is_of_the_servers_version(chart):
    project = tomllib.loads((CHART.parents[2] / "pyproject.toml").read_text())["project"]
    assert chart.metadata["appVersion"] == project["version"]
