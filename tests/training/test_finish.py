"""From a folder of pictures to a bundle, end to end; test pictures decide nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.bundle import CARD, DESCRIPTION, WEIGHTS, Bundle, BundleError, load_bundle, rounded, save_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize
from offramp.training.certify.calibrate import calibrate
from offramp.training.certify.calibration_result import TOLERANCE, CalibrationOptions
from offramp.training.data import Batches, ImageSet
from offramp.training.evaluate.evaluation import Evaluation, collect_logits
from offramp.training.finish import finish, recalibrate
from offramp.training.options import TrainOptions
from offramp.training.run import Run, prepare, train

CPU = torch.device("cpu")
OPTIONS = CalibrationOptions("2026-01-31")


def trained(options: TrainOptions) -> Run:
    run = prepare(options)
    train(run)
    return run


def test_a_folder_of_pictures_becomes_a_bundle_that_answers(tree_options: TrainOptions) -> None:
    run = trained(replace(tree_options, epochs=6))
    finished = finish(run, "offramp train colours")
    bundle, evaluation = finished.bundle, finished.evaluation
    loaded = load_bundle(tree_options.output / "bundle")

    assert loaded.labels == ("blue", "green", "red")
    assert (loaded.name, loaded.version) == ("colours-resnet18", "1")
    assert (loaded.calibration, loaded.threshold) == (bundle.calibration, bundle.threshold)
    assert loaded.preprocessing == run.preprocessing
    expected = rounded(run.trainer.net).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.net.state_dict().items())

    # Picture files through the loaded bundle: the very answers that were reported.
    right = [0] * 4
    paths = sorted(Path(tree_options.dataset).glob("test/*/*.png"))
    with torch.no_grad():
        for path in paths:
            pixels_HWC = loaded.preprocessing.apply(Image.open(path))
            x_BCHW = normalize(torch.from_numpy(np.array(pixels_HWC))[None], loaded.preprocessing)
            for exit, logits_BC in enumerate(loaded.net(x_BCHW).logits):
                right[exit] += loaded.labels[int(logits_BC.argmax())] == path.parent.name
    assert [count / len(paths) for count in right] == pytest.approx([exit.accuracy for exit in evaluation.exits])


def test_the_bundle_tells_how_it_was_made(tree_options: TrainOptions) -> None:
    finished = finish(trained(replace(tree_options, seed=5)), "offramp train colours --seed 5")
    bundle, evaluation = finished.bundle, finished.evaluation
    facts = load_bundle(tree_options.output / "bundle").training
    assert (facts["train_pictures"], facts["calibration"]["pictures"]) == (27, 3)
    assert (facts["seed"], facts["precision"], facts["command"]) == (5, "float32", "offramp train colours --seed 5")
    assert facts["recipe"]["epochs"] == 1
    assert "colours" in facts["data"]
    assert facts["hours"] >= 0.0
    text = (tree_options.output / "bundle" / CARD).read_text(encoding="utf-8")
    for said in (
        "# colours-resnet18, version 1",
        "resnet18, width 4, cifar stem, 16x16 pixels, 3 classes",
        f"{evaluation.exits[0].accuracy:.2%}",
        f"default threshold is {bundle.threshold:g}",
        "- command: offramp train colours --seed 5",
        "- train pictures: 27",
        "12 test pictures",
    ):
        assert said in text
    description = json.loads((tree_options.output / "bundle" / DESCRIPTION).read_text())
    assert description["exits"] == json.loads(json.dumps([asdict(exit) for exit in evaluation.exits]))
    assert len(description["operating_points"]) == len(evaluation.operating_points)


def test_calibration_is_fitted_to_the_rounded_weights_on_the_held_out_pictures(tree_options: TrainOptions) -> None:
    run = trained(tree_options)
    bundle = finish(run, "").bundle
    net = rounded(run.trainer.net)
    held_out = Batches(run.splits.calibration, 256, CPU)
    logits = collect_logits(net, held_out, run.preprocessing)
    calibration, point = calibrate(logits, count_cost(net.config), TOLERANCE)
    assert (bundle.calibration, bundle.threshold) == (calibration, point.threshold)


def test_no_test_picture_influences_a_bundle(
    tree_options: TrainOptions, write_tree: Callable[..., Path], tmp_path: Path
) -> None:
    def made_with(test_seed: int, place: str) -> tuple[Bundle, Evaluation, dict, bytes]:
        tree = write_tree(tmp_path / place / "colours", test_seed=test_seed)
        if test_seed:
            # Not only other pixels but classes exchanged: accuracy on test must fall.
            (tree / "test" / "red").rename(tree / "test" / "swap")
            (tree / "test" / "blue").rename(tree / "test" / "red")
            (tree / "test" / "swap").rename(tree / "test" / "blue")
        options = replace(tree_options, dataset=str(tree), output=tmp_path / place / "run", epochs=6)
        finished = finish(trained(options), "the command")
        folder = options.output / "bundle"
        description = json.loads((folder / DESCRIPTION).read_text())
        return finished.bundle, finished.evaluation, description, (folder / WEIGHTS).read_bytes()

    bundle, evaluation, description, weights = made_with(0, "a")
    other_bundle, other_evaluation, other_description, other_weights = made_with(1, "b")

    assert evaluation != other_evaluation
    assert weights == other_weights
    assert bundle.calibration == other_bundle.calibration
    assert bundle.threshold == other_bundle.threshold
    assert bundle.preprocessing == other_bundle.preprocessing
    for reported in ("exits", "operating_points"):
        assert description.pop(reported) != other_description.pop(reported)
    for measured in (description, other_description):
        measured["training"].pop("hours")
    assert description == other_description


def test_finishing_again_replaces_the_bundle_with_the_same(tree_options: TrainOptions) -> None:
    finish(trained(tree_options), "the command")
    folder = tree_options.output / "bundle"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    finish(trained(replace(tree_options, resume=True)), "the command")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_bundle_that_cannot_be_written_is_named(tree_options: TrainOptions) -> None:
    run = trained(tree_options)
    (tree_options.output / "bundle").write_text("mine")
    with pytest.raises(BundleError, match=r"bundle: is there already and is not a bundle"):
        finish(run, "")
    assert (tree_options.output / "bundle").read_text() == "mine"


def test_recalibration_fits_anew_and_leaves_the_weights(tree_options: TrainOptions) -> None:
    run = trained(tree_options)
    finished = finish(run, "the command")
    bundle, evaluation = finished.bundle, finished.evaluation
    test = Batches(run.splits.test, 256, CPU)
    held_out = Batches(run.splits.calibration, 256, CPU)
    made = recalibrate(bundle, held_out, test, OPTIONS, run.splits.source)
    same, same_evaluation = made.bundle, made.evaluation
    assert (same.calibration, same.threshold, same.exits) == (bundle.calibration, bundle.threshold, bundle.exits)
    assert same_evaluation == evaluation

    before = (tree_options.output / "bundle" / WEIGHTS).read_bytes()
    remade = recalibrate(bundle, test, test, replace(OPTIONS, tolerance=1.0), "elsewhere")
    loose = remade.bundle
    assert loose.threshold == 0.0
    assert {**loose.training, "calibration": None} == {**bundle.training, "calibration": None}
    assert loose.training["calibration"] == {
        "data": "elsewhere",
        "pictures": 12,
        "searched": 12,
        "certified": 0,
        "tolerance": 1.0,
    }
    text = remade.card
    assert "lost at most 100 % of accuracy on the 12 held-out pictures" in text
    save_bundle(loose, tree_options.output / "bundle", text)
    assert (tree_options.output / "bundle" / WEIGHTS).read_bytes() == before


def test_the_plain_network_of_one_exit_becomes_a_bundle(toy_set: ImageSet, tmp_path: Path) -> None:
    config = ModelConfig("resnet18", 3, width=4, input_size=16, exits=(4,))
    torch.manual_seed(0)
    bundle = Bundle(
        name="plain",
        version="1",
        config=config,
        preprocessing=Preprocessing(16),
        labels=toy_set.class_names,
        calibration=Calibration.neutral(1),
        threshold=0.5,
        net=rounded(MultiExitNet(config)),
    )
    pictures = Batches(toy_set, 8, CPU)
    made = recalibrate(bundle, pictures, pictures, OPTIONS, "the toy set")
    fitted, text = made.bundle, made.card
    save_bundle(fitted, tmp_path / "bundle", text)
    loaded = load_bundle(tmp_path / "bundle")
    assert (loaded.threshold, len(loaded.calibration.temperatures)) == (1.0, 1)
    assert [facts["exit"] for facts in loaded.exits] == [1]
    assert "One exit, at its end: the plain network." in text
    assert "| 1 | " in text
    assert "hreshold" not in text


def test_the_card_says_behind_which_stages_the_exits_are(tree_options: TrainOptions) -> None:
    finish(trained(tree_options), "")
    folder = tree_options.output / "bundle"
    assert "4 exits, after Zhang" in (folder / CARD).read_text(encoding="utf-8")
    chosen = replace(tree_options, exits="2,3,4", output=tree_options.output.parent / "chosen")
    finish(trained(chosen), "")
    text = (chosen.output / "bundle" / CARD).read_text(encoding="utf-8")
    assert "3 exits after stages 2, 3, 4, after Zhang" in text


def test_the_bundle_keeps_the_figures_of_its_exits_and_not_the_curves(tree_options: TrainOptions) -> None:
    evaluation = finish(trained(tree_options), "").evaluation
    folder = tree_options.output / "bundle"
    description = json.loads((folder / DESCRIPTION).read_text())
    assert description["exits"][0]["aurc"] == evaluation.exits[0].aurc
    assert not any(isinstance(value, list) for facts in description["exits"] for value in facts.values())
    text = (folder / CARD).read_text(encoding="utf-8")
    assert "## Right early, wrong late" in text
    assert f"{evaluation.oracle.accuracy:.2%} right at {evaluation.oracle.compute:.3f} of the full cost" in text
