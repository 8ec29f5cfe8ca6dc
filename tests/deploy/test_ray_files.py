"""Ray's configuration and KubeRay's manifest. test_ray.py runs the application."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.models.bundle import EMBEDDED
from offramp.server.settings import Settings
from tests.deploy.conftest import DEPLOY, changed, load
from tests.project import needed

MANIFEST = "ray/rayservice.yaml"
PROJECT = DEPLOY.parent


@pytest.fixture(scope="module")
def read() -> Callable[[dict[str, Any]], Any]:
    """Ray's reading of a configuration. Ray drops fields that it does not know: they are refused here."""
    schema, autoscaling = needed("ray.serve.schema", "ray"), needed("ray.serve.config", "ray")

    def checked(config: dict[str, Any]) -> Any:
        known = schema.ServeDeploySchema.model_validate(config)
        assert known.model_dump(mode="json", exclude_unset=True) == config
        for described in (each for application in config["applications"] for each in application["deployments"]):
            wanted = described["autoscaling_config"]
            assert autoscaling.AutoscalingConfig.model_validate(wanted).model_dump(exclude_unset=True) == wanted
        return known

    return checked


@pytest.fixture
def config() -> dict[str, Any]:
    return load("ray/serve.yaml")


def test_ray_takes_the_configuration_and_the_application_its_arguments(read, config):
    from offramp.server.ray_app import app

    applications = read(config).applications
    assert {each.route_prefix for each in applications} == {"/photos", "/cifar"}
    for each in applications:
        assert each.import_path == "offramp.server.ray_app:app"
        # The path of a bundle is the user's.
        given = {name: str(EMBEDDED) if name == "model" else value for name, value in each.args.items()}
        deployment = app(given)._bound_deployment
        assert [described.name for described in each.deployments] == [deployment.name]
        # A replica of 64 pictures/s is at a quarter of its longest wait when Ray adds replicas.
        (described,) = each.deployments
        target = described.autoscaling_config["target_ongoing_requests"]
        assert target <= 64 * Settings.max_wait_s / 4
        assert target < deployment.max_ongoing_requests


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("applications", 0, "route"), "/a"),
        (("applications", 1, "name"), "photos"),
        (("applications", 0, "deployments", 0, "replicas"), 2),
        (("applications", 0, "deployments", 0, "autoscaling_config", "max_replicas"), 0),
        (("applications", 0, "deployments", 0, "autoscaling_config", "target_requests"), 32),
    ],
)
def test_a_wrong_configuration_would_be_refused(read, config, place, wrong):
    with pytest.raises((ValueError, AssertionError)):
        read(changed(config, place, wrong))


def test_the_manifest_is_valid(check):
    check(load(MANIFEST))


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("spec", "serveConfig"), ""),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0, "ports", 0, "port"), 1),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "replica"), 1),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resource"), {}),
    ],
)
def test_a_wrong_field_would_be_refused(check, place, wrong):
    with pytest.raises(needed("jsonschema").ValidationError):
        check(changed(load(MANIFEST), place, wrong))


def test_the_manifest_has_the_same_configuration(config):
    yaml = needed("yaml")
    assert yaml.load(load(MANIFEST)["spec"]["serveConfigV2"], yaml.CSafeLoader) == config


def test_the_workers_have_room_for_the_fewest_and_the_most_replicas(config):
    (group,) = load(MANIFEST)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cores = int(container["resources"]["limits"]["cpu"])
    for end in ("min", "max"):
        wanted = [
            each["args"]["cpus"] * each["deployments"][0]["autoscaling_config"][f"{end}_replicas"]
            for each in config["applications"]
        ]
        assert sum(wanted) == cores * group[f"{end}Replicas"]


def test_head_and_workers_find_the_bundles_where_the_configuration_says(config):
    (path,) = (each["args"]["model"] for each in config["applications"] if "model" in each["args"])
    cluster = load(MANIFEST)["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert Path(path).parent in [Path(mount["mountPath"]) for mount in container["volumeMounts"]]


def test_the_image_the_manifest_and_the_constraints_name_one_ray():
    (pinned,) = re.findall(r"^ray==(.+)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    assert load(MANIFEST)["spec"]["rayClusterConfig"]["rayVersion"] == pinned
    assert f"FROM rayproject/ray:{pinned}-" in (DEPLOY / "ray/Dockerfile").read_text()
