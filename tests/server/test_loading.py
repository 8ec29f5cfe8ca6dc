"""From settings to running models: certificates, audits and brownout as the operator wants them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offramp.models.bundle import EMBEDDED, load_bundle, save_bundle
from offramp.models.certificate import Certificate
from offramp.models.exit_policy import ExitRule
from offramp.server.engine.request import Contract, ExitPlan, Sample
from offramp.server.loading import load_served, promises_of
from offramp.server.settings import Settings


@pytest.fixture(scope="module")
def uncertified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "uncertified"
    save_bundle(replace(load_bundle(EMBEDDED), certificate=None), path, "# card")
    return path


def certificate() -> Certificate:
    certificate = load_bundle(EMBEDDED).certificate
    assert certificate is not None
    return certificate


def test_in_integers_nothing_is_certified(tmp_path: Path, server_log: pytest.LogCaptureFixture) -> None:
    settings = Settings(precision="int8", int8_pictures=tmp_path)
    assert load_served(EMBEDDED, settings).certificate is None
    assert "certifies nothing in int8" in server_log.text
    assert load_served(EMBEDDED, Settings()).certificate == certificate()


def test_a_brownout_that_has_nowhere_to_go_is_told(uncertified: Path, server_log: pytest.LogCaptureFixture) -> None:
    load_served(EMBEDDED, Settings(brownout_wait_s=0.1))
    assert not server_log.records
    load_served(uncertified, Settings(brownout_wait_s=0.1))
    assert "no certified thresholds" in server_log.text


def test_brownout_is_off_unless_it_is_turned_on() -> None:
    bundle = load_bundle(EMBEDDED)
    off, on = promises_of(bundle, Settings()), promises_of(bundle, Settings(brownout_wait_s=0.1))
    assert not off.observe_wait(0.0, 100.0)
    assert on.observe_wait(0.0, 0.6)
    # Down to the last certified point, and no further.
    for step in range(1, 100):
        on.observe_wait(float(step), 100.0)
    assert on.level == len(certificate().points)


async def test_audits_are_on_unless_they_are_turned_off() -> None:
    bundle = load_bundle(EMBEDDED)
    on, off = promises_of(bundle, Settings()), promises_of(bundle, Settings(audit_share=0.0))
    plan = ExitPlan(ExitRule.uniform(0.5, bundle.net.num_exits))
    samples = [
        Sample(np.zeros(0), Contract(plan), plan, asyncio.get_running_loop().create_future(), 0.0)
        for _ in range(20_000)
    ]
    on.draw(samples)
    off.draw(samples)
    assert 0 < sum(on.finish(sample, None)[1] != [] for sample in samples) < 1000
    assert not any(off.finish(sample, None)[1] for sample in samples)
