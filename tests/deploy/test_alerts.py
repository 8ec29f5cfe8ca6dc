"""The alerts and queries of the chart: they parse, ring when they should, and ask for metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.deploy.conftest import CHART
from tests.deploy.queries import check_asked_for, check_queries, run

RULES = CHART / "files/alerts.yaml"
CASES = Path(__file__).with_name("alerts.test.yaml")


def test_every_alert_rings_when_it_should(promtool):
    run(promtool, "check", "rules", RULES)
    run(promtool, "test", "rules", CASES)
    tested = set(re.findall(r"alertname: (\w+)\n +exp_alerts", CASES.read_text()))
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text()))


def test_the_alerts_ask_for_metrics_that_there_are():
    check_asked_for("\n".join(re.findall(r"expr: ((?:.|\n)*?)\n        (?:for|labels):", RULES.read_text())))


def test_autoscaling_asks_for_metrics_that_there_are(one, promtool, tmp_path):
    triggers = one("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]
    queries = [each["metadata"]["query"] for each in triggers]
    check_queries(promtool, queries, tmp_path)
    values: dict[str, Any] = {"autoscaling": {"enabled": True, "type": "hpa"}}
    metrics = one("HorizontalPodAutoscaler", values)["spec"]["metrics"]
    check_asked_for("\n".join(each["pods"]["metric"]["name"] for each in metrics))


def test_the_operators_rules_are_the_same(one, values_of):
    assert one("PrometheusRule", {"prometheusRule": {"enabled": True}})["spec"] == values_of("files/alerts.yaml")
