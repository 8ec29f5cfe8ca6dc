"""A bundle's whole calibration: what it claims comes from held-out pictures alone, and from each of them once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.models.bundle import DESCRIPTION, Bundle, load_bundle, rounded, save_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.training.certify.calibrate import calibrate
from offramp.training.certify.calibration_result import SEARCH_SHARE, CalibrationOptions, division, shares
from offramp.training.certify.stage_costs import StageCosts
from offramp.training.data import Batches, ImageSet
from offramp.training.evaluate.evaluation import collect_logits
from offramp.training.evaluate.predictions import divide
from offramp.training.finish import CalibratedBundle, recalibrate
from offramp.training.report.plots import plot_calibration
from offramp.training.report.sentences import closing_sentences, selection_sentence, shortfall_sentence
from offramp.training.report.tables import write_calibration
from tests.training.conftest import coloured

OPTIONS = CalibrationOptions("2026-01-31", keep_exits=True)
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
    return Batches(pictures, 64, torch.device("cpu"))


def made(held_out: ImageSet, test: ImageSet, options: CalibrationOptions = OPTIONS, **changed) -> CalibratedBundle:
    return recalibrate(untrained(**changed), batches(held_out), batches(test), options, "made up", COSTS)


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return coloured(240, seed=3)


@pytest.fixture(scope="module")
def calibrated_once(held_out: ImageSet) -> CalibratedBundle:
    return made(held_out, coloured(30, seed=4))


def test_no_test_picture_influences_a_claim(held_out: ImageSet, calibrated_once: CalibratedBundle) -> None:
    other_test = coloured(30, seed=99)
    other = made(held_out, replace(other_test, labels_N=(other_test.labels_N + 1) % 3))
    assert other.evaluation != calibrated_once.evaluation
    assert other.result == calibrated_once.result
    assert other.selection == calibrated_once.selection
    of_test = {"exits", "operating_points", "net"}
    for name in vars(other.bundle).keys() - of_test:
        assert getattr(other.bundle, name) == getattr(calibrated_once.bundle, name), name


def test_some_pictures_fit_and_the_others_prove(held_out: ImageSet, calibrated_once: CalibratedBundle) -> None:
    search_M, prove_M = divide(held_out.labels_N, SEARCH_SHARE)
    assert (len(search_M), len(prove_M)) == (96, 144)
    net, preprocessing = untrained().net, Preprocessing(16)
    outputs = collect_logits(net, batches(held_out), preprocessing)
    calibration, point = calibrate(outputs.subset(search_M), count_cost(net.config), OPTIONS.tolerance)
    bundle = calibrated_once.bundle
    assert (bundle.calibration, bundle.threshold) == (calibration, point.threshold)
    assert bundle.certificate is not None
    assert bundle.certificate.pictures == 144
    assert bundle.certificate.fingerprint == held_out.subset(prove_M).fingerprint()
    assert (bundle.certificate.data, bundle.certificate.date) == ("made up", "2026-01-31")
    assert bundle.training["calibration"]["searched"] == 96
    assert bundle.training["calibration"]["certified"] == 144


def test_certifying_pictures_choose_no_threshold_but_only_how_far_to_go(
    held_out: ImageSet, calibrated_once: CalibratedBundle
) -> None:
    _, prove_M = divide(held_out.labels_N, SEARCH_SHARE)
    images_NHWC = held_out.images_NHWC.copy()
    images_NHWC[prove_M] = np.random.default_rng(0).integers(0, 255, images_NHWC[prove_M].shape)
    other = made(replace(held_out, images_NHWC=images_NHWC), coloured(30, seed=4))
    assert other.result.certificate != calibrated_once.result.certificate
    assert other.result.calibration == calibrated_once.result.calibration
    assert other.result.point == calibrated_once.result.point
    for front in ("by_multiply_adds", "by_ms"):
        thresholds = [
            [point.thresholds for point in getattr(finished.result.fronts, front)]
            for finished in (other, calibrated_once)
        ]
        assert thresholds[0] == thresholds[1]


def test_the_bundle_keeps_certificate_and_fronts(calibrated_once: CalibratedBundle, tmp_path: Path) -> None:
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
    assert loaded.certificate.calibration_id in calibrated_once.card


def test_too_few_pictures_all_calibrate_and_certify_nothing() -> None:
    few = made(coloured(30, seed=3), coloured(30, seed=4))
    assert few.bundle.certificate is None
    assert few.bundle.training["calibration"]["searched"] == 30
    assert "too few pictures were held out to prove" in few.card
    assert [(missed.promise, missed.pictures, missed.needed) for missed in few.result.missed][-1] == (0.1, 18, 29)
    assert "- a disagreement of 10 % is not certified: 18 pictures can certify; 29 (hold out 49) would do" in few.card
    assert "too few pictures" in selection_sentence(few.selection)
    parts = division(np.arange(49) % 3, 4, (0.1,))
    assert (len(parts.search_M), len(parts.prove_M)) == (19, 30)
    assert not len(division(np.arange(46) % 3, 4, (0.1,)).prove_M)
    assert not len(division(np.arange(4700) % 3, 1, (0.1,)).prove_M)


def test_promises_that_are_not_proven_are_reported_with_the_pictures_they_need(
    calibrated_once: CalibratedBundle,
) -> None:
    by_promise = {missed.promise: missed for missed in calibrated_once.result.missed}
    assert {0.005, 0.01, 0.02} <= by_promise.keys()
    sentence = shortfall_sentence(by_promise[0.005])
    assert "0.5 % is not certified: 144 pictures can certify; 598 (hold out 997) would do if none disagreed" in sentence
    assert sentence in calibrated_once.card


def test_the_end_of_a_training_says_what_is_certified_and_which_option_changes_it(
    calibrated_once: CalibratedBundle,
) -> None:
    *_, certified = closing_sentences(calibrated_once)
    assert calibrated_once.bundle.certificate is not None
    for point in calibrated_once.bundle.certificate.points:
        assert f"{100 * point.max_disagreement:g} %" in certified
    assert "--calibration-size 997 certifies 0.5 %" in certified
    few = made(coloured(30, seed=3), coloured(30, seed=4))
    right, threshold, nothing = closing_sentences(few)
    full = few.evaluation.operating_points[-1]
    assert right == f"Full depth is right on {full.accuracy:.2%} of 30 test pictures."
    assert threshold == (
        "The default threshold is 1, full depth: 30 held-out pictures are too few for a lower one; "
        "--calibration-size 1495 is enough."
    )
    assert nothing == (
        "Nothing is certified: 30 held-out pictures are too few. If no answer differs, --calibration-size 49 certifies "
        "10 % and --calibration-size 997 certifies 0.5 %."
    )


def test_the_end_of_a_training_says_what_a_lower_default_threshold_saves(calibrated_once: CalibratedBundle) -> None:
    point = replace(calibrated_once.result.point, threshold=0.5, accuracy=0.75, compute=0.6)
    facts = replace(calibrated_once.result.facts, searched=10_000)
    finished = replace(
        calibrated_once,
        bundle=replace(calibrated_once.bundle, threshold=0.5),
        result=replace(calibrated_once.result, facts=facts, point=point),
    )
    _, threshold, _ = closing_sentences(finished)
    assert threshold == (
        "The default threshold 0.5 is right on 75.00% of the held-out pictures and saves 40% of the multiply-adds."
    )


def test_exits_that_do_not_pay_are_switched_off_unless_all_are_asked_for(
    held_out: ImageSet, calibrated_once: CalibratedBundle
) -> None:
    """Whatever an untrained network's exits are worth: the bundle has those that the selection names."""
    fewer = made(held_out, coloured(30, seed=4), replace(OPTIONS, keep_exits=False, tolerance=1.0))
    assert calibrated_once.bundle.net.num_exits == 4
    assert fewer.selection.choices == calibrated_once.selection.choices
    assert fewer.selection.num_dropped > 0
    bundle = fewer.bundle
    assert bundle.config.exits == fewer.selection.exits
    assert bundle.net.num_exits == len(bundle.calibration.temperatures) == len(fewer.selection.exits)
    assert "switched off" in fewer.card
    x_BCHW = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before, after = calibrated_once.bundle.net(x_BCHW).logits, bundle.net(x_BCHW).logits
    for logits_BC, k in zip(after, fewer.selection.exits, strict=True):
        assert torch.equal(logits_BC, before[k - 1])


def test_report_and_plot_are_written(calibrated_once: CalibratedBundle, tmp_path: Path) -> None:
    write_calibration(calibrated_once.bundle, calibrated_once.result, calibrated_once.selection, tmp_path)
    values = json.loads((tmp_path / "calibration.json").read_text())
    assert values["certificate"]["pictures"] == 144
    assert len(values["exits"]["choices"]) == 8
    result = calibrated_once.result
    assert result.fronts is not None
    plot_calibration(result.fronts, result.certificate, "toy", tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_options_out_of_range_are_refused() -> None:
    assert shares("0.05, 0.01,0.01") == (0.01, 0.05)
    with pytest.raises(ValueError, match="disagreements 'few' are not numbers"):
        shares("few")
    with pytest.raises(ValueError, match=r"disagreements \[0.0\] are out of range"):
        CalibrationOptions("2026-01-31", promises=(0.0,))
    with pytest.raises(ValueError, match=r"tolerance 2 is out of range"):
        CalibrationOptions("2026-01-31", tolerance=2)
