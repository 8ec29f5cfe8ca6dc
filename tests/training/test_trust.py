"""A bundle's whole calibration: what it claims comes from held-out pictures alone, and from each of them once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import DESCRIPTION, Bundle, load_bundle, rounded, save_bundle
from models.config import ModelConfig
from models.cost import count_cost
from models.exit_policy import Calibration
from models.multi_exit import MultiExitNet
from models.preprocess import Preprocessing
from tests.training.conftest import coloured
from training.answers import divide
from training.calibrate import calibrate
from training.data import Batches, ImageSet
from training.evaluate import collect_logits
from training.finish import Finished, recalibrated
from training.stage_costs import StageCosts
from training.trust import SEARCH_SHARE, Wishes, division, shares
from training.trust_report import plot_trust, shortfall_sentence, verdict_sentence, write_trust

WISHES = Wishes("2026-01-31", keep_exits=True)
COSTS = StageCosts(32, (1.0, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), "a made-up machine")


def untrained(**changed) -> Bundle:
    config = ModelConfig("resnet18", 3, width=4, input_size=16, **changed)
    torch.manual_seed(0)
    net = rounded(MultiExitNet(config))
    return Bundle(
        name="toy",
        version="1",
        config=config,
        preprocessing=Preprocessing(16),
        labels=("blue", "green", "red"),
        calibration=Calibration.neutral(net.num_exits),
        threshold=1.0,
        net=net,
    )


def batches(pictures: ImageSet) -> Batches:
    return Batches(pictures, 64, torch.device("cpu"), shuffle=False, drop_last=False)


def made(held_out: ImageSet, test: ImageSet, wishes: Wishes = WISHES, **changed) -> Finished:
    return recalibrated(untrained(**changed), batches(held_out), batches(test), wishes, "made up", COSTS)


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return coloured(240, seed=3)


@pytest.fixture(scope="module")
def calibrated_once(held_out: ImageSet) -> Finished:
    return made(held_out, coloured(30, seed=4))


def test_no_test_picture_influences_what_is_claimed(held_out: ImageSet, calibrated_once: Finished) -> None:
    other_test = coloured(30, seed=99)
    other = made(held_out, replace(other_test, labels_N=(other_test.labels_N + 1) % 3))
    assert other.evaluation != calibrated_once.evaluation
    assert other.trust == calibrated_once.trust
    assert other.verdict == calibrated_once.verdict
    told = {"exits", "operating_points", "net"}
    for name in vars(other.bundle).keys() - told:
        assert getattr(other.bundle, name) == getattr(calibrated_once.bundle, name), name


def test_some_pictures_fit_and_the_others_prove(held_out: ImageSet, calibrated_once: Finished) -> None:
    search_M, prove_M = divide(held_out.labels_N, SEARCH_SHARE)
    assert (len(search_M), len(prove_M)) == (96, 144)
    net, preprocessing = untrained().net, Preprocessing(16)
    outputs = collect_logits(net, batches(held_out), preprocessing)
    calibration, point = calibrate(outputs.subset(search_M), count_cost(net.config), WISHES.tolerance)
    bundle = calibrated_once.bundle
    assert (bundle.calibration, bundle.threshold) == (calibration, point.threshold)
    assert bundle.certificate is not None
    assert bundle.certificate.pictures == 144
    assert bundle.certificate.fingerprint == held_out.subset(prove_M).fingerprint()
    assert (bundle.certificate.data, bundle.certificate.date) == ("made up", "2026-01-31")
    assert bundle.training["calibration"]["searched"] == 96
    assert bundle.training["calibration"]["certified"] == 144


def test_certifying_pictures_choose_no_threshold_but_only_how_far_to_go(
    held_out: ImageSet, calibrated_once: Finished
) -> None:
    _, prove_M = divide(held_out.labels_N, SEARCH_SHARE)
    images_NHWC = held_out.images_NHWC.copy()
    images_NHWC[prove_M] = np.random.default_rng(0).integers(0, 255, images_NHWC[prove_M].shape)
    other = made(replace(held_out, images_NHWC=images_NHWC), coloured(30, seed=4))
    assert other.trust.certificate != calibrated_once.trust.certificate
    assert other.trust.calibration == calibrated_once.trust.calibration
    assert other.trust.point == calibrated_once.trust.point
    for front in ("by_multiply_adds", "by_ms"):
        thresholds = [[point["thresholds"] for point in one.trust.fronts[front]] for one in (other, calibrated_once)]
        assert thresholds[0] == thresholds[1]


def test_the_bundle_keeps_certificate_and_fronts(calibrated_once: Finished, tmp_path: Path) -> None:
    save_bundle(calibrated_once.bundle, tmp_path / "bundle", calibrated_once.card)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.certificate == calibrated_once.bundle.certificate
    fronts = json.loads((tmp_path / "bundle" / DESCRIPTION).read_text())["fronts"]
    assert fronts["pictures"] == 144
    assert fronts["costs"]["source"] == "a made-up machine"
    assert fronts["costs"]["sequential_ms"] == [1.5, 3.0, 4.5, 6.0]
    for point in (*fronts["by_multiply_adds"], *fronts["by_ms"]):
        assert len(point["thresholds"]) == 3
        assert sum(point["exit_mix"]) == pytest.approx(1.0)
        mean_ms = sum(share * ms for share, ms in zip(point["exit_mix"], (1.5, 3.0, 4.5, 6.0), strict=True))
        assert point["mean_ms"] == pytest.approx(mean_ms)
    assert "## What is promised" in calibrated_once.card
    assert loaded.certificate is not None
    assert loaded.certificate.version in calibrated_once.card


def test_too_few_pictures_all_calibrate_and_certify_nothing() -> None:
    few = made(coloured(30, seed=3), coloured(30, seed=4))
    assert few.bundle.certificate is None
    assert few.bundle.training["calibration"]["searched"] == 30
    assert "too few pictures were held out to prove" in few.card
    assert [(one.promise, one.pictures, one.needed) for one in few.trust.missed][-1] == (0.1, 18, 29)
    assert "- a disagreement of 10 % is not certified: 18 pictures can certify; 29 (hold out 49) would do" in few.card
    assert "too few pictures" in verdict_sentence(few.verdict)
    parts = division(np.arange(49) % 3, 4, (0.1,))
    assert (len(parts.search_M), len(parts.prove_M)) == (19, 30)
    assert not len(division(np.arange(46) % 3, 4, (0.1,)).prove_M)
    assert not len(division(np.arange(4700) % 3, 1, (0.1,)).prove_M)


def test_promises_that_are_not_proven_are_told_with_what_they_take(calibrated_once: Finished) -> None:
    by_promise = {missed.promise: missed for missed in calibrated_once.trust.missed}
    assert {0.005, 0.01, 0.02} <= by_promise.keys()
    sentence = shortfall_sentence(by_promise[0.005])
    assert "0.5 % is not certified: 144 pictures can certify; 598 (hold out 997) would do if none disagreed" in sentence
    assert sentence in calibrated_once.card


def test_exits_that_do_not_pay_are_switched_off_unless_all_are_asked_for(
    held_out: ImageSet, calibrated_once: Finished
) -> None:
    """Whatever an untrained network's exits are worth: the bundle has those that the verdict names."""
    fewer = made(held_out, coloured(30, seed=4), replace(WISHES, keep_exits=False, tolerance=1.0))
    assert calibrated_once.bundle.net.num_exits == 4
    assert fewer.verdict.choices == calibrated_once.verdict.choices
    assert fewer.verdict.num_dropped > 0
    bundle = fewer.bundle
    assert bundle.config.exits == fewer.verdict.exits
    assert bundle.net.num_exits == len(bundle.calibration.temperatures) == len(fewer.verdict.exits)
    assert "switched off" in fewer.card
    x_BCHW = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before, after = calibrated_once.bundle.net(x_BCHW).logits, bundle.net(x_BCHW).logits
    for logits_BC, k in zip(after, fewer.verdict.exits, strict=True):
        assert torch.equal(logits_BC, before[k - 1])


def test_report_and_plot_are_written(calibrated_once: Finished, tmp_path: Path) -> None:
    write_trust(calibrated_once.bundle, calibrated_once.trust, calibrated_once.verdict, tmp_path)
    values = json.loads((tmp_path / "calibration.json").read_text())
    assert values["certificate"]["pictures"] == 144
    assert len(values["exits"]["choices"]) == 8
    plot_trust(calibrated_once.trust, "toy", tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_wishes_out_of_range_are_refused() -> None:
    assert shares("0.05, 0.01,0.01") == (0.01, 0.05)
    with pytest.raises(ValueError, match="disagreements 'few' are not numbers"):
        shares("few")
    with pytest.raises(ValueError, match=r"disagreements \[0.0\] are out of range"):
        Wishes("2026-01-31", promises=(0.0,))
    with pytest.raises(ValueError, match=r"tolerance 2 is out of range"):
        Wishes("2026-01-31", tolerance=2)
