"""The alerts and queries of the chart: they parse, ring when they should, and ask for metrics that there are."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.metrics import Metrics
from tests.deploy.conftest import CHART, needed_program

RULES = CHART / "files/alerts.yaml"
CASES = Path(__file__).with_name("alerts.test.yaml")
METRIC = re.compile(r"\b((?:offramp|process)_\w+)(?:\{([^}]*)\})?")


@pytest.fixture(scope="session")
def promtool() -> str:
    return needed_program("promtool")


def run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_rings_when_it_should(promtool):
    run(promtool, "check", "rules", RULES)
    run(promtool, "test", "rules", CASES)
    tested = set(re.findall(r"alertname: (\w+)\n +exp_alerts", CASES.read_text()))
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text()))


def check_asked_for(queries: str) -> None:
    """Every metric in them is exposed from the start, with the labels that a cluster does not add."""
    exposed = asyncio.run(Metrics().expose()).decode()
    asked = METRIC.findall(queries)
    assert asked
    for name, selector in asked:
        assert re.search(rf"^# TYPE {name} ", exposed, re.MULTILINE), name
        for label in re.findall(r'\w+="[^"]*"', selector):
            if not label.startswith(("namespace=", "service=")):
                assert re.search(rf"^{name}\{{[^}}]*{re.escape(label)}", exposed, re.MULTILINE), (name, label)


def test_the_alerts_ask_for_metrics_that_there_are():
    check_asked_for("\n".join(re.findall(r"expr: ((?:.|\n)*?)\n        (?:for|labels):", RULES.read_text())))


def test_autoscaling_asks_for_metrics_that_there_are(one, promtool, tmp_path):
    triggers = one("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]
    queries = [each["metadata"]["query"] for each in triggers]
    check_asked_for("\n".join(queries))
    rules = [{"record": f"asked:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))
    run(promtool, "check", "rules", file)
    values: dict[str, Any] = {"autoscaling": {"enabled": True, "type": "hpa"}}
    metrics = one("HorizontalPodAutoscaler", values)["spec"]["metrics"]
    check_asked_for("\n".join(each["pods"]["metric"]["name"] for each in metrics))


def test_the_operators_rules_are_the_same(one, values_of):
    assert one("PrometheusRule", {"prometheusRule": {"enabled": True}})["spec"] == values_of("files/alerts.yaml")
