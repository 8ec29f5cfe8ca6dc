"""From settings to running models: certificates, audits and brownout as the operator wants them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.bundle import EMBEDDED, load_bundle, save_bundle
from models.certificate import Certificate
from server.loading import keeper_of, load_served
from server.settings import Settings


@pytest.fixture(scope="module")
def uncertified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "uncertified"
    save_bundle(replace(load_bundle(EMBEDDED), certificate=None), path, "# card")
    return path


def certificate() -> Certificate:
    found = load_bundle(EMBEDDED).certificate
    assert found is not None
    return found


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
    off, on = keeper_of(bundle, Settings()), keeper_of(bundle, Settings(brownout_wait_s=0.1))
    assert not off.feel(0.0, 100.0)
    assert on.feel(0.0, 0.6)
    # Down to the last certified point, and no further.
    for step in range(1, 100):
        on.feel(float(step), 100.0)
    assert on.level == len(certificate().points)


def test_audits_are_on_unless_they_are_turned_off() -> None:
    bundle = load_bundle(EMBEDDED)
    on, off = keeper_of(bundle, Settings()), keeper_of(bundle, Settings(audit_share=0.0))
    assert 0 < sum(on.pick() > 0 for _ in range(20_000)) < 1000
    assert not any(off.pick() for _ in range(1000))
