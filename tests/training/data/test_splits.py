"""Calibration comes out of train, balanced, disjoint and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.models.preprocess import Preprocessing
from offramp.training.data import DataError, ImageSet, Splits, load_splits
from offramp.training.data.stratify import stratified_holdout


@pytest.fixture(scope="module")
def cifar100(data_root: Path) -> Splits:
    return load_splits("cifar100", data_root, Preprocessing(size=32))


def test_cifar100_has_all_its_pictures_and_a_balanced_calibration_part(cifar100: Splits) -> None:
    assert [len(s) for s in (cifar100.train, cifar100.calibration, cifar100.test)] == [45_000, 5_000, 10_000]
    assert (np.bincount(cifar100.train.labels_N) == 450).all()
    assert (np.bincount(cifar100.calibration.labels_N) == 50).all()
    assert (np.bincount(cifar100.test.labels_N) == 100).all()
    assert cifar100.class_names[:2] == ("apple", "aquarium_fish")
    assert "5000 calibration pictures held out of train" in cifar100.source


def test_cifar100_pixels_have_the_published_mean_and_deviation(cifar100: Splits) -> None:
    assert isinstance(cifar100.train, ImageSet)
    assert isinstance(cifar100.calibration, ImageSet)
    parts = (cifar100.train.images_NHWC[::10], cifar100.calibration.images_NHWC[::10])
    pixels = np.concatenate(parts).reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), (0.5071, 0.4865, 0.4409), atol=0.01)
    np.testing.assert_allclose(pixels.std(0), (0.2673, 0.2564, 0.2762), atol=0.01)


def test_the_default_holdout_of_cifar100_never_changes() -> None:
    # Bundles are calibrated on these pictures; a drift would leak them into training.
    labels_N = np.arange(50_000, dtype=np.int64) % 100
    _, held = stratified_holdout(labels_N, 5_000, seed=0)
    assert held[:8].tolist() == [10, 16, 20, 21, 25, 34, 45, 56]
    assert int(held.sum()) == 126_487_500


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=8), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1)
)
def test_a_holdout_is_exact_disjoint_sorted_and_proportional(sizes: list[int], share: float, seed: int) -> None:
    labels_N = np.repeat(np.arange(len(sizes)), sizes)
    labels_N = np.random.RandomState(0).permutation(labels_N)
    least, most = len(sizes), len(labels_N) - len(sizes)
    count = round(least + share * (most - least))
    remaining, held = stratified_holdout(labels_N, count, seed)
    assert len(held) == count
    assert sorted([*remaining, *held]) == list(range(len(labels_N)))
    assert (np.diff(remaining) > 0).all()
    assert (np.diff(held) > 0).all()
    shares = np.bincount(labels_N[held], minlength=len(sizes))
    assert (shares >= 1).all()
    assert (shares < np.array(sizes)).all()
    again = stratified_holdout(labels_N, count, seed)
    np.testing.assert_array_equal(again[1], held)


def test_equal_classes_give_equal_shares_and_seeds_differ() -> None:
    labels_N = np.tile(np.arange(10), 50)
    held = [stratified_holdout(labels_N, 100, seed)[1] for seed in (0, 1)]
    assert all((np.bincount(labels_N[h]) == 10).all() for h in held)
    assert held[0].tolist() != held[1].tolist()


def test_unequal_classes_give_in_proportion() -> None:
    labels_N = np.repeat(np.arange(3), [100, 50, 10])
    _, held = stratified_holdout(labels_N, 16, seed=0)
    assert np.bincount(labels_N[held]).tolist() == [10, 5, 1]


@pytest.mark.parametrize("count", [0, 2, 98, 100])
def test_a_holdout_that_would_empty_a_class_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=rf"cannot hold out {count} of 100 .*choose 3 to 97"):
        stratified_holdout(np.arange(100) % 3, count, seed=0)


def test_a_class_of_one_picture_cannot_be_split() -> None:
    with pytest.raises(DataError, match="class 1 has a single picture"):
        stratified_holdout(np.array([0, 0, 0, 1]), 2, seed=0)


def test_an_unknown_data_set_is_refused_with_places_and_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_splits("cifar1000", tmp_path, Preprocessing(size=32))
    for expected in (
        "'cifar1000'",
        "cifar10",
        "cifar100",
        str(tmp_path / "cifar1000"),
        "--data-root",
        "OFFRAMP_DATA_ROOT",
    ):
        assert expected in str(caught.value)


def test_the_data_root_comes_from_the_environment_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "cifar-10-python.tar.gz")):
        load_splits("cifar10", None, Preprocessing(size=32))


def test_a_calibration_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1 picture; got 0"):
        load_splits("cifar10", tmp_path, Preprocessing(size=32), calibration_size=0)
