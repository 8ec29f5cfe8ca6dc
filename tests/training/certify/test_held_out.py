"""Pictures that trained the weights never certify them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offramp.models.bundle import EMBEDDED, load_bundle
from offramp.models.preprocess import Preprocessing
from offramp.training.certify.held_out import HeldOut, calibration_size, check_held_out, check_unseen
from offramp.training.data import load_splits
from offramp.training.finish import finish
from offramp.training.options import TrainOptions
from offramp.training.run import prepare, train


@pytest.fixture
def made(tree_options: TrainOptions) -> TrainOptions:
    """The options of a run that held out six pictures and wrote its bundle."""
    options = replace(tree_options, calibration_size=6)
    run = prepare(options)
    train(run)
    finish(run, "")
    return options


def test_training_records_what_it_held_out_and_the_same_is_accepted(made: TrainOptions) -> None:
    bundle = load_bundle(made.output / "bundle")
    recorded = HeldOut.recorded(bundle.training)
    assert recorded is not None
    assert (recorded.pictures, recorded.seed, len(recorded.fingerprint)) == (6, 0, 64)
    assert calibration_size(recorded, None) == calibration_size(recorded, 6) == 6
    check_held_out(recorded, load_splits(made.dataset, None, bundle.preprocessing, 6))


@pytest.mark.parametrize("wanted", [3, 9])
def test_another_size_is_refused(wanted: int) -> None:
    with pytest.raises(ValueError, match=f"--calibration-size {wanted} is not what training held out, 6"):
        calibration_size(HeldOut(6, 0, "pictures", "data"), wanted)
    with pytest.raises(ValueError, match="held out by seed 7"):
        calibration_size(HeldOut(6, 7, "pictures", "data"), None)
    assert calibration_size(None, wanted) == wanted


def test_a_data_set_that_has_changed_is_refused(
    made: TrainOptions, write_tree: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = load_bundle(made.output / "bundle")
    other = write_tree(tmp_path / "other" / "colours", train_seed=9)
    with pytest.raises(ValueError, match=r"are not the 6 that training held out: .*--unseen"):
        check_held_out(HeldOut.recorded(bundle.training), load_splits(str(other), None, bundle.preprocessing, 6))
    check_held_out(None, load_splits(str(other), None, Preprocessing(16), 6))


def test_the_embedded_bundle_records_what_it_held_out(data_root: Path) -> None:
    bundle = load_bundle(EMBEDDED)
    check_held_out(HeldOut.required(bundle.training), load_splits("cifar100", data_root, bundle.preprocessing))
    with pytest.raises(ValueError, match="--unseen, but the bundle was trained on this very data"):
        check_unseen(bundle.training, load_splits("cifar100", data_root, bundle.preprocessing, 200))
    assert HeldOut.recorded({"data": "elsewhere"}) is None


@pytest.mark.parametrize("role", ["start_from", "teacher"])
def test_a_run_does_not_hold_out_pictures_that_trained_its_sources(
    made: TrainOptions, role: str, tmp_path: Path
) -> None:
    sources: dict[str, Any] = {role: made.output / "bundle", "output": tmp_path / "on", "width": None}
    # Also fewer: balanced by class, they need not be among those held out before.
    for size in (9, 3):
        with pytest.raises(ValueError, match=rf"held out 6 pictures, this run holds out {size}.*--calibration-size 6"):
            prepare(replace(made, calibration_size=size, **sources))
    assert len(prepare(replace(made, calibration_size=6, **sources)).splits.calibration) == 6


def test_what_trained_a_bundle_is_not_unseen(
    made: TrainOptions, write_tree: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = load_bundle(made.output / "bundle")
    splits = load_splits(made.dataset, None, bundle.preprocessing, 9)
    with pytest.raises(ValueError, match="--unseen, but the bundle was trained on this very data"):
        check_unseen(bundle.training, splits)
    other = write_tree(tmp_path / "other" / "colours", train_seed=9)
    check_unseen(bundle.training, load_splits(str(other), None, bundle.preprocessing, 9))


def test_a_bundle_that_does_not_say_what_it_held_out_is_not_certified_unasked() -> None:
    with pytest.raises(ValueError, match="give --unseen if none of these pictures trained it"):
        HeldOut.required({"data": "elsewhere"})
