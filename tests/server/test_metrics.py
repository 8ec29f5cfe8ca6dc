"""Metrics: complete from the start, documented by name, exact in their counts."""

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from offramp.models.cost import count_cost
from offramp.models.exit_policy import ExitReason
from offramp.server.engine.admission import EngineLoad
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.stats import AuditReport, BrownoutLevel, CancelStats, SampleStats, StepStats
from offramp.server.metrics import Metrics
from tests.server.engine.scripted import Recorder, ScriptedRunner, contract, picture, started

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(offramp_\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)


async def exposed_metrics(metrics: Metrics) -> dict:
    return {metric.name: metric for metric in text_string_to_metric_families((await metrics.expose()).decode())}


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    rows = ROW.findall(DOCUMENT.read_text())
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


@pytest.fixture
def metrics(bundle):
    metrics = Metrics()
    metrics.add_model(bundle, count_cost(bundle.config), "cpu")
    return metrics


async def test_every_metric_is_documented_with_its_type_and_labels(site):
    # What steps cost is known only when an engine has measured it.
    site.metrics.series("step_cost_seconds", "tiny", "1", "1", "32").set(0.1)
    exposed = {}
    for name, metric in (await exposed_metrics(site.metrics)).items():
        if name.startswith("offramp_"):
            full_name = f"{name}_total" if metric.type == "counter" else name
            assert metric.samples, f"{full_name} has no series before the first request"
            labels = frozenset(label for sample in metric.samples for label in sample.labels) - {"le"}
            exposed[full_name] = (metric.type, labels)
    assert exposed == documented()


async def test_every_bounded_series_is_there_at_zero(site):
    for exit in "1234":
        for reason in ExitReason:
            labels = {"model": "tiny", "version": "1", "exit": exit, "reason": reason.value}
            assert site.metric("offramp_samples_total", **labels) == 0
        assert site.metric("offramp_sample_latency_seconds_count", model="tiny", exit=exit) == 0
        assert site.metric("offramp_stage_queue_depth", model="tiny", stage=exit) == 0
    for code in ("200", "400", "404", "413", "415", "422", "429", "499", "500", "503", "504"):
        assert site.metric("offramp_requests_total", model="tiny", code=code) == 0
    for refusal in ("overloaded", "draining", "not_ready", "client_limit"):
        assert site.metric("offramp_rejections_total", reason=refusal) == 0
    for phase in ("upload", "queued", "running"):
        assert site.metric("offramp_cancelled_total", phase=phase) == 0
    assert site.metric("offramp_inflight_samples", model="tiny") == 0


async def test_requests_samples_and_compute_add_up(site, encode, bundle):
    spent = count_cost(bundle.config).sequential_multiply_adds
    images = [base64.b64encode(encode(red)).decode() for red in (255, 255, 10)]
    await site.client.post("/v1/predict?threshold=0.3", json={"images": images})
    await site.client.post("/v1/predict?threshold=nan", content=encode())
    await site.client.post("/v1/models/none/predict", content=encode())
    await site.client.get("/v1/models/none")

    def answered(exit: str, reason: str) -> float | None:
        return site.metric("offramp_samples_total", model="tiny", version="1", exit=exit, reason=reason)

    # Confidence at exit 1 of red 255: 0.1 + 0.9 / 4 = 0.325.
    assert answered("1", "confident") == 2
    assert answered("4", "final") == 1
    assert site.metric("offramp_requests_total", model="tiny", code="200") == 1
    assert site.metric("offramp_requests_total", model="tiny", code="422") == 1
    assert site.metric("offramp_requests_total", model="(none)", code="404") == 1
    assert site.metric("offramp_request_duration_seconds_count", model="tiny") == 2
    assert site.metric("offramp_decode_duration_seconds_count", model="tiny") == 1
    assert site.metric("offramp_compute_multiply_adds_total", model="tiny") == 2 * spent[0] + spent[3]
    assert site.metric("offramp_compute_saved_multiply_adds_total", model="tiny") == 2 * (spent[3] - spent[0])
    assert site.metric("offramp_exit_confidence_sum", model="tiny", exit="1") == pytest.approx(0.65)


def test_what_the_engine_reports_becomes_series(metrics, bundle):
    observer = metrics.add_model(replace(bundle, version="2"), count_cost(bundle.config), "cpu")

    def value(name: str, **labels: str) -> float | None:
        return metrics._collectors.get_sample_value(name, {"model": "tiny", **labels})

    observer(CostProfile(8, (1, 8), ((0.1, 0.2), (0.3, 0.4))))
    observer(StepStats(2, 8, 0.004))
    observer(StepStats(1, 5, 0.002))
    observer(SampleStats(2, ExitReason.DEADLINE, 0.75, 0.01, 0.02))
    observer(CancelStats("running"))
    assert value("offramp_audit_disagreement_upper_bound", version="2", exit="1") == 1.0
    observer(AuditReport(1, True, 0.1, 0.7, 0.0, True, 2e6))
    observer(AuditReport(4, False, 0.0, 1.0, None, False, 0.0))
    observer(BrownoutLevel(2))
    assert value("offramp_audited_samples_total", version="2", exit="1") == 1
    assert value("offramp_audited_samples_total", version="2", exit="4") == 1
    assert value("offramp_audit_disagreements_total", version="2", exit="1") == 1
    assert value("offramp_audit_disagreement_lower_bound", version="2", exit="1") == 0.1
    assert value("offramp_audit_disagreement_upper_bound", version="2", exit="1") == 0.7
    assert value("offramp_audit_disagreement_upper_bound", version="2", exit="4") == 0
    assert value("offramp_audit_alarm", version="2", promise="threshold") == 1
    assert value("offramp_audit_evidence", version="2", promise="threshold") == 2e6
    assert value("offramp_brownout_level", version="2") == 2
    assert value("offramp_step_cost_seconds", version="2", stage="2", batch_size="1") == 0.3
    assert value("offramp_stage_batch_size_sum", stage="2") == 8
    assert value("offramp_stage_duration_seconds_sum", stage="1") == 0.002
    assert value("offramp_samples_total", version="2", exit="2", reason="deadline") == 1
    assert value("offramp_samples_total", version="1", exit="2", reason="deadline") == 0
    assert value("offramp_sample_latency_seconds_sum", exit="2") == 0.02
    assert value("offramp_queue_duration_seconds_sum") == 0.01
    assert metrics._collectors.get_sample_value("offramp_cancelled_total", {"phase": "running"}) == 1


class WaitingEngine:
    """Has samples waiting, and nothing else."""

    def __init__(self, *queue_depths: int) -> None:
        self.queue_depths = queue_depths
        self.inflight_samples = sum(queue_depths)
        self.load = EngineLoad(self.inflight_samples, 1, 0.25)


def test_gauges_sum_the_versions_of_a_model_of_different_depths(metrics):
    metrics.watch("tiny", WaitingEngine(5, 1, 0))
    metrics.watch("tiny", WaitingEngine(1, 0, 0, 2))
    metrics.watch("other", WaitingEngine(9, 9))

    def value(name: str, **labels: str) -> float | None:
        return metrics._collectors.get_sample_value(name, {"model": "tiny", **labels})

    assert [value("offramp_stage_queue_depth", stage=stage) for stage in "1234"] == [6, 1, 0, 2]
    assert value("offramp_inflight_samples") == 9
    assert value("offramp_predicted_wait_seconds") == 9 * 0.25


@pytest.mark.parametrize("accepted", ["gzip", "deflate, gzip;q=0.5", "identity"])
async def test_the_exposition_is_compressed_for_a_client_that_accepts_it(site, accepted):
    response = await site.client.get("/metrics", headers={"Accept-Encoding": accepted})
    assert response.headers.get("Content-Encoding") == ("gzip" if "gzip" in accepted else None)
    assert "offramp_build_info" in response.text


async def test_queue_depths_are_the_engines_own_at_the_moment_of_asking(metrics):
    """No step tells of them: none may come for long after waiting samples were dropped."""
    runner, observer = ScriptedRunner(gated=True), Recorder()
    async with started(runner, observer) as engine, started(ScriptedRunner(num_stages=5), Recorder()) as deeper:
        metrics.watch("tiny", engine)
        metrics.watch("tiny", deeper)

        def depths() -> list[float | None]:
            labels = [{"model": "tiny", "stage": stage} for stage in "12345"]
            return [metrics._collectors.get_sample_value("offramp_stage_queue_depth", each) for each in labels]

        [running] = engine.submit([picture(0)], contract(0.0))
        await runner.entered()
        waiting = engine.submit([picture(1), picture(2)], contract(0.0))
        assert depths() == [2, 0, 0, 0, 0]
        for future in waiting:
            future.cancel()
        runner.let_all()
        await running
        await observer.until_cancelled(2)
        assert depths() == [0, 0, 0, 0, 0]
        assert len(observer.steps) == 1


@pytest.fixture
def promtool() -> str:
    """Prometheus's own checker; without it a test is skipped, and under CI it fails."""
    path = shutil.which("promtool")
    if path is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed")
    return path


def run_promtool(promtool: str, what: str, text: bytes) -> subprocess.CompletedProcess:
    return subprocess.run([promtool, "check", what], input=text, capture_output=True, check=False)


async def test_the_exposition_satisfies_promtool(site, encode, promtool):
    await site.client.post("/v1/predict", content=encode())
    response = await site.client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    result = run_promtool(promtool, "metrics", response.content)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_every_query_of_the_document_parses(promtool, tmp_path):
    blocks = re.findall(r"(?:^    .*\n)+", DOCUMENT.read_text(), re.MULTILINE)
    queries = [query for block in blocks for query in re.split(r"\n(?=    \S)", block.rstrip("\n"))]
    assert len(queries) > 15
    # promtool checks queries as the rules of a file; JSON is YAML.
    rules = [{"record": f"documented:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "documented", "rules": rules}]}))
    result = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
