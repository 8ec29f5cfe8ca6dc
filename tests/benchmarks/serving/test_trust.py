"""Parts of `offramp bench trust`: whole small measurements of real servers, and their pieces."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.open_loop import Sent
from benchmarks.harness.pictures import TestPictures, as_png
from benchmarks.options import TRUST_PARTS, TrustOptions
from benchmarks.serving.answers import (
    Answer,
    accuracy,
    ask_each,
    disagreement,
    exit_mix,
    mean_compute,
    read_answers,
    read_metrics,
    reasons,
    total,
)
from benchmarks.serving.trust.audit import repeat
from benchmarks.serving.trust.brownout import Level, level_changes, recovery_s
from benchmarks.serving.trust.privacy import auroc
from benchmarks.serving.trust.setup import TrustSetup, prepare
from benchmarks.tables import fill_document
from offramp.models.bundle import save_bundle
from tests.benchmarks.served_here import served_here
from tests.bundles import certificate_of_nothing, tiny_bundle

ANSWERS = [Answer(0, 5, 1, "confident", 0.25), Answer(1, 6, 4, "final", 1.0), Answer(2, 7, 1, "brownout", 0.25)]
METRICS = """# TYPE offramp_audit_alarm gauge
offramp_audit_alarm{promise="0.01"} 1.0
offramp_audit_alarm{promise="0.05"} 0.0
# TYPE offramp_wait histogram
offramp_wait_bucket{le="1.0"} 3.0
offramp_wait_count 3.0
# TYPE offramp_audited_samples counter
offramp_audited_samples_total{exit="1"} 3.0
offramp_audited_samples_total{exit="2"} 4.0
"""


# At 0.05, all pictures leave at exit 1.
CERTIFICATE = certificate_of_nothing({0.01: 0.9, 0.05: 0.3})


@pytest.fixture
def setup(tmp_path: Path) -> TrustSetup:
    save_bundle(replace(tiny_bundle(), certificate=CERTIFICATE), tmp_path / "tiny", "A card.")
    options = TrustOptions(
        model=tmp_path / "tiny",
        rounds=1,
        seconds=1,
        open_seconds=1,
        warmup_seconds=0.2,
        recovery_seconds=1,
        stream=40,
        chunk=20,
        truth=10,
        clean=40,
        alone=5,
        attacked=8,
        attack_steps=2,
        kinds="contrast",
        severities="5",
        output=tmp_path / "results" / "trust.json",
    )
    images_NHWC = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    pictures = TestPictures(images_NHWC, as_png(images_NHWC), tuple(range(20)), ())
    return prepare(options, tmp_path, pictures)


@pytest.mark.usefixtures("wrk")
@pytest.mark.parametrize("name", TRUST_PARTS)
def test_a_small_measurement_of_each_part_is_written_as_json_and_renders(setup: TrustSetup, name: str) -> None:
    output = setup.options.output
    replace(setup, start=served_here, options=replace(setup.options, only=name)).publish("trust", TRUST_PARTS)
    text = fill_document(f"<!-- results: {output.name}#{name} -->\n<!-- end of results -->", output.parent)
    assert f"tiny 1, calibration {CERTIFICATE.calibration_id}" in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) > 2
    CHECKS[name](json.loads(output.read_text())["parts"][name])


def test_a_server_is_the_command_with_the_options_that_a_part_gives(setup: TrustSetup) -> None:
    query = "max_disagreement=0.01"
    with setup.serve("--runner", "torch", "--api-keys", "one") as server:
        with pytest.raises(BenchmarkError, match="20 of 20 requests failed, such as: 401"):
            ask_each(server, setup.requests(query), connections=4)
        answers = ask_each(server, setup.requests(query, key="one"), connections=4)
    assert [answer.picture for answer in answers] == [*range(20)]
    assert {answer.class_id for answer in answers} <= {0, 1, 2}


def check_certified(part: dict[str, Any]) -> None:
    assert [row["max_disagreement"] for row in part["rows"]] == [0.01, 0.05]
    assert all(sum(row["exit_mix"]) == pytest.approx(1.0) for row in part["rows"])


def check_audit(part: dict[str, Any]) -> None:
    assert part["clean"]["pictures"] == 40 or part["clean"]["watched"]["alarm"]
    assert 0 < part["clean"]["watched"]["audited"] <= 40
    assert [(row["kind"], row["severity"]) for row in part["corrupted"]] == [("contrast", 5)]
    assert [row["of"] for row in part["wrong_certificate"]] == [0.05]
    assert [row["on_alarm"] for row in part["reactions"]] == ["report", "tighten", "full-depth"]


def check_audit_cost(part: dict[str, Any]) -> None:
    assert part["rows"][0]["ratio"]["median"] == 1.0
    assert all(row["throughput"]["median"] > 0.0 for row in part["rows"])


def check_brownout(part: dict[str, Any]) -> None:
    assert (part["asked"], part["degrade_to"]) == (0.01, 0.05)
    assert [row["way"] for row in part["rows"]] == ["without", "with"]
    assert "brownout" not in part["rows"][0]["reasons"]
    assert part["course"]["levels"]


def check_privacy(part: dict[str, Any]) -> None:
    by_way = {row["way"]: row for row in part["rows"]}
    assert by_way["private, 25 ms"]["p50_ms"]["median"] >= 25.0


def check_attack(part: dict[str, Any]) -> None:
    ways = [row["way"] for row in part["rows"]]
    assert ways == ["honest alone", "no limit", "--client-gmacs-per-s", "--client-deep-share"]
    assert part["rows"][0]["attacker_share"]["median"] == 0.0
    assert all(row["failed"] == 0 for row in part["rows"])


CHECKS = {
    "certified": check_certified,
    "audit": check_audit,
    "audit-cost": check_audit_cost,
    "brownout": check_brownout,
    "privacy": check_privacy,
    "attack": check_attack,
}


def test_a_bundle_without_certificate_cannot_be_measured(tmp_path: Path) -> None:
    save_bundle(tiny_bundle(), tmp_path / "tiny", "A card.")
    with pytest.raises(BenchmarkError, match="tiny certifies nothing"):
        prepare(TrustOptions(model=tmp_path / "tiny"), tmp_path)


def test_answers_are_counted() -> None:
    assert disagreement(ANSWERS, {0: 5, 1: 0, 2: 7}) == pytest.approx(1 / 3)
    assert accuracy(ANSWERS, [5, 6, 0]) == pytest.approx(2 / 3)
    assert mean_compute(ANSWERS) == 0.5
    assert exit_mix(ANSWERS, 4) == pytest.approx([2 / 3, 0, 0, 1 / 3])
    assert reasons(ANSWERS) == pytest.approx({"brownout": 1 / 3, "confident": 1 / 3, "final": 1 / 3})
    assert disagreement([], {}) == accuracy([], []) == mean_compute([]) == 0.0


def test_only_requests_with_an_answer_are_read() -> None:
    prediction = {"class_id": 3, "exit": 2, "exit_reason": "confident", "compute": 0.5, "confidence": 0.9}
    sent = [
        Sent(n, 0.0, 0.0, 0.0, status, json.dumps({"predictions": [prediction]})) for n, status in ((7, 200), (8, 0))
    ]
    assert read_answers(sent) == [Answer(7, 3, 2, "confident", 0.5, 0.9)]


def test_metrics_are_summed_over_other_labels() -> None:
    samples = read_metrics(METRICS)
    assert total(samples, "offramp_audited_samples_total") == 7.0
    assert total(samples, "offramp_audit_alarm", promise="0.01") == 1.0
    assert total(samples, "offramp_audit_alarm", promise="0.02") == 0.0


def test_the_course_of_a_level_and_its_recovery() -> None:
    levels = level_changes([(0.1, 0), (0.3, 1), (0.5, 2), (0.7, 2), (5.5, 1), (6.5, 0), (6.7, 0)])
    assert levels == [Level(0.1, 0), Level(0.3, 1), Level(0.5, 2), Level(5.5, 1), Level(6.5, 0)]
    assert recovery_s(levels, over_s=5.0) == 1.5
    assert recovery_s(levels[:-1], over_s=5.0) is None
    assert recovery_s([Level(0.1, 0)], over_s=5.0) == 0.0


def test_times_reveal_exits_or_do_not() -> None:
    exits = [1, 1, 2, 3, 3]
    assert auroc([1.0, 2.0, 9.0, 3.0, 4.0], exits, 3) == 1.0
    assert auroc([1.0, 2.0, 9.0, 1.0, 2.0], exits, 3) == 0.5
    assert auroc([1.0, 2.0], [1, 2], 3) is None


def test_a_stream_goes_over_the_pictures_again() -> None:
    images_NHWC = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    assert repeat(images_NHWC)(2, 5).ravel().tolist() == [2, 0, 1]
