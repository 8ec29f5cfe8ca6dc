"""The Compose file, what its Prometheus reads and what its Grafana shows."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from offramp.server.processes.supervisor import END_S
from offramp.server.settings import Settings
from tests.deploy.compose_schema import COMPOSE
from tests.deploy.conftest import DEPLOY, changed, load, mebibytes, sizing_mib
from tests.deploy.queries import check_queries, run
from tests.project import needed

FOLDER = DEPLOY / "compose"
PROJECT = DEPLOY.parent
# Grafana puts the width of a rate in its place.
WIDTH = "$__rate_interval"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load("compose/compose.yaml")


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "grafana/board.json").read_text()))


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Files and folders that a service is given, by their paths inside; defaults for variables."""
    found = {}
    for volume in service["volumes"]:
        source, path, *_ = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", volume).split(":")
        if source.startswith("."):
            found[path] = FOLDER / source
    return found


def test_the_file_is_valid(compose):
    needed("jsonschema").validate(compose, COMPOSE)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("services", "offramp", "memlimit"), "1g"),
        (("services", "offramp", "mem_limit"), "1.5 GiB"),
        (("services", "prometheus", "healthcheck", "start"), "5s"),
        (("services", "grafana", "depends_on", "prometheus", "condition"), "healthy"),
        (("service",), {}),
    ],
)
def test_a_wrong_field_would_be_refused(compose, place, wrong):
    jsonschema = needed("jsonschema")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(compose, place, wrong), COMPOSE)


def test_every_service_is_confined_and_starts_again(compose):
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["user"].partition(":")[0]) > 0
        assert service["restart"] == "unless-stopped"
        assert "mem_limit" in service
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert re.fullmatch(r"[\w/.]+:v?\d+\.\d+\.\d+", service["image"])
        # Ours has it in its image.
        assert "healthcheck" in service or "build" in service


def test_the_server_is_the_images(compose):
    service, dockerfile = compose["services"]["offramp"], (PROJECT / "Dockerfile").read_text()
    assert (FOLDER / service["build"]).resolve() == PROJECT
    assert f"USER {service['user']}" in dockerfile
    assert "HEALTHCHECK" in dockerfile
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert service["image"] == f"offramp:{version}"


def test_memory_and_threads_are_what_the_sizing_asks_for(compose):
    service = compose["services"]["offramp"]
    threads = int(service["environment"]["OFFRAMP_DECODE_THREADS"])
    assert threads == int(service["environment"]["OFFRAMP_THREADS"]) == service["cpus"]
    assert mebibytes(service["mem_limit"]) >= sizing_mib(threads)


def test_the_server_has_time_to_end(compose):
    grace_s = int(compose["services"]["offramp"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.drain_delay_s + Settings.drain_timeout_s + 2 * END_S


def test_what_is_mounted_is_there(compose):
    for service in compose["services"].values():
        for source in mounts(service).values():
            assert source.exists(), source
    assert (mounts(compose["services"]["offramp"])["/bundle"] / "model.json").exists()


def test_prometheus_reads_its_configuration_and_the_charts_alerts(compose, promtool, tmp_path):
    service = compose["services"]["prometheus"]
    for path, source in mounts(service).items():
        assert Path(path).parent == Path("/etc/prometheus")
        shutil.copy(source, tmp_path / Path(path).name)
    assert f"--config.file=/etc/prometheus/{(tmp_path / 'prometheus.yml').name}" in service["command"]
    run(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert mounts(service)["/etc/prometheus/alerts.yaml"].resolve() == DEPLOY / "helm/offramp/files/alerts.yaml"
    configuration = load("compose/prometheus.yml")
    assert configuration["rule_files"] == ["alerts.yaml"]
    (job,) = configuration["scrape_configs"]
    assert job == {"job_name": "offramp", "static_configs": [{"targets": ["offramp:8000"]}]}


def test_a_wrong_prometheus_configuration_would_be_refused(promtool, tmp_path):
    file = tmp_path / "prometheus.yml"
    file.write_text((FOLDER / "prometheus.yml").read_text().replace("static_configs", "static_config"))
    with pytest.raises(AssertionError, match="static_config not found"):
        run(promtool, "check", "config", file)


def test_grafana_finds_prometheus_and_the_board(compose, board):
    inside = mounts(compose["services"]["grafana"])
    (source,) = load("compose/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load("compose/grafana/provisioning/dashboards/offramp.yaml")["providers"]
    shown = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(shown).parent) == provider["options"]["path"]
    assert json.loads(inside[shown].read_text()) == board
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}


def test_the_board_asks_for_metrics_that_there_are(board, promtool, tmp_path):
    queries = [target["expr"].replace(WIDTH, "1m") for panel in board["panels"] for target in panel["targets"]]
    check_queries(promtool, queries, tmp_path)


@pytest.mark.parametrize("query", ["sum(rate(offramp_request_total[1m]))", "offramp_rejections_total{reason='busy'}"])
def test_a_query_for_what_there_is_not_would_be_refused(promtool, tmp_path, query):
    with pytest.raises(AssertionError):
        check_queries(promtool, [query.replace("'", '"')], tmp_path)


def test_the_board_fits_a_screen_and_names_units(board):
    panels = board["panels"]
    assert len(panels) <= 12
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert len(panel["title"]) <= 24
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in taken) < 24
        assert cells.isdisjoint(taken)
        cells |= taken
