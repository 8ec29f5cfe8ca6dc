"""Image sets and the batches made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.preprocess import Preprocessing
from training.data import Batches, DataError, FolderSet, ImageSet

CPU = torch.device("cpu")
COUNT = 23


def image_set(count: int = COUNT, size: int = 8) -> ImageSet:
    images_NHWC = np.random.RandomState(0).randint(0, 256, (count, size, size, 3)).astype(np.uint8)
    return ImageSet(images_NHWC, np.arange(count, dtype=np.int64) % 5, tuple("abcde"))


@pytest.fixture
def folder_set(tmp_path: Path) -> FolderSet:
    pictures = image_set()
    names = tuple(f"{i:02d}.png" for i in range(COUNT))
    for name, image_HWC in zip(names, pictures.images_NHWC, strict=True):
        Image.fromarray(image_HWC).save(tmp_path / name)
    return FolderSet(tmp_path, names, pictures.labels_N, pictures.class_names, Preprocessing(size=8))


def walk(batches: Batches, seed: int | None) -> list[tuple[list[int], torch.Tensor]]:
    return [(labels_B.tolist(), images_BHWC) for images_BHWC, labels_B in batches.epoch(seed)]


def assert_same_walk(first: list[tuple[list[int], torch.Tensor]], second: list[tuple[list[int], torch.Tensor]]) -> None:
    assert len(first) == len(second)
    for (labels_a, images_a), (labels_b, images_b) in zip(first, second, strict=True):
        assert labels_a == labels_b
        assert torch.equal(images_a, images_b)


def test_without_shuffle_batches_follow_the_set() -> None:
    pictures = image_set()
    batches = Batches(pictures, 5, CPU, shuffle=False, drop_last=False)
    found = list(batches.epoch())
    assert len(batches) == len(found) == 5
    assert [len(labels_B) for _, labels_B in found] == [5, 5, 5, 5, 3]
    images_NHWC = torch.cat([images_BHWC for images_BHWC, _ in found])
    labels_N = torch.cat([labels_B for _, labels_B in found])
    assert images_NHWC.dtype == torch.uint8
    assert labels_N.dtype == torch.int64
    np.testing.assert_array_equal(images_NHWC, pictures.images_NHWC)
    np.testing.assert_array_equal(labels_N, pictures.labels_N)


def test_the_order_depends_on_the_seed_alone_and_covers_all() -> None:
    pictures = image_set()
    batches = Batches(pictures, 5, CPU, shuffle=True, drop_last=False)
    first = walk(batches, seed=7)
    torch.manual_seed(1)
    walk(batches, seed=8)
    assert_same_walk(first, walk(batches, seed=7))
    assert_same_walk(first, walk(Batches(pictures, 5, CPU, shuffle=True, drop_last=False), seed=7))
    sums = [images_BHWC.sum((1, 2, 3)) for _, images_BHWC in first]
    expected = pictures.images_NHWC.sum((1, 2, 3), dtype=np.int64)
    assert sorted(torch.cat(sums).tolist()) == sorted(expected.tolist())
    assert torch.cat(sums).tolist() != expected.tolist()
    assert [labels for labels, _ in walk(batches, seed=8)] != [labels for labels, _ in first]


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    batches = Batches(image_set(), 5, CPU, shuffle=True, drop_last=True)
    assert len(batches) == 4
    assert [len(labels) for labels, _ in walk(batches, seed=0)] == [5, 5, 5, 5]
    even = Batches(image_set(20), 5, CPU, shuffle=True, drop_last=True)
    assert len(even) == len(walk(even, seed=0)) == 4
    assert len(Batches(image_set(20), 5, CPU, shuffle=True, drop_last=False)) == 4


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_pictures_decoded_on_demand_equal_pictures_in_memory(
    folder_set: FolderSet, workers: int, drop_last: bool
) -> None:
    held = Batches(image_set(), 5, CPU, shuffle=True, drop_last=drop_last)
    streamed = Batches(folder_set, 5, CPU, shuffle=True, drop_last=drop_last, workers=workers)
    assert len(streamed) == len(held)
    for seed in (0, 1):
        assert_same_walk(walk(held, seed), walk(streamed, seed))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_without_a_worker_traceback(folder_set: FolderSet, workers: int) -> None:
    broken = folder_set.paths[11]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        walk(Batches(folder_set, 5, CPU, shuffle=False, drop_last=False, workers=workers), None)
    assert str(caught.value).startswith(f"{broken}: cannot be decoded")


def test_a_walk_leaves_the_global_random_state_alone(folder_set: FolderSet) -> None:
    before = torch.get_rng_state()
    for pictures in (image_set(), folder_set):
        walk(Batches(pictures, 5, CPU, shuffle=True, drop_last=False), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_changing_a_batch_leaves_the_set_as_it_was() -> None:
    pictures = image_set()
    before = pictures.fingerprint()
    for images_BHWC, labels_B in Batches(pictures, 5, CPU, shuffle=False, drop_last=False).epoch():
        images_BHWC.zero_()
        labels_B.zero_()
    assert pictures.fingerprint() == before


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "workers", "message"),
    [
        (0, False, 0, "batch size must be at least 1; got 0"),
        (5, False, -1, "workers must be at least 0; got -1"),
        (24, True, 0, "23 pictures are too few for one batch of 24"),
    ],
)
def test_settings_out_of_range_are_refused(batch_size: int, drop_last: bool, workers: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batches(image_set(), batch_size, CPU, shuffle=True, drop_last=drop_last, workers=workers)


def test_a_shuffled_epoch_needs_a_seed() -> None:
    with pytest.raises(DataError, match="needs a seed"):
        Batches(image_set(), 5, CPU, shuffle=True, drop_last=False).epoch()


def test_a_fingerprint_tells_shape_pixels_and_labels() -> None:
    pictures = image_set()
    images_NHWC, labels_N = pictures.images_NHWC, pictures.labels_N
    other_pixel, other_label = images_NHWC.copy(), labels_N.copy()
    other_pixel[3, 2, 1, 0] ^= 1
    other_label[3] = 0
    variants = [
        pictures,
        ImageSet(other_pixel, labels_N, pictures.class_names),
        ImageSet(images_NHWC, other_label, pictures.class_names),
        ImageSet(images_NHWC.reshape(COUNT, 4, 16, 3), labels_N, pictures.class_names),
        pictures.subset(np.arange(COUNT)[::-1]),
    ]
    assert len({v.fingerprint() for v in variants}) == len(variants)
    strided = ImageSet(images_NHWC.swapaxes(1, 2).copy().swapaxes(1, 2), labels_N, pictures.class_names)
    assert strided.fingerprint() == pictures.fingerprint() == image_set().fingerprint()


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    pictures = ImageSet(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([0, 1]), ("a", "b"))
    assert pictures.fingerprint() == "139320accb4e4179c92f7b67bc4e41153b0c3ddc24af1c516b5991a2f78c6232"


def test_read_only_pictures_can_be_batched() -> None:
    pictures = image_set()
    pictures.images_NHWC.setflags(write=False)
    again = ImageSet(pictures.images_NHWC, pictures.labels_N, pictures.class_names)
    assert len(walk(Batches(again, 23, CPU, shuffle=False, drop_last=False), None)) == 1


@pytest.mark.parametrize(
    ("images_NHWC", "labels_N", "names", "message"),
    [
        (
            np.zeros((2, 4, 4), np.uint8),
            np.zeros(2, np.int64),
            ("a",),
            r"\(N, H, W, 3\); got uint8 \(2, 4, 4\)",
        ),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64), ("a",), r"got uint8 \(2, 3, 4, 4\)"),
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), ("a",), "got float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), ("a",), r"shape \(2,\).*got int64 \(3,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32), ("a",), "got int32"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("a",), r"0\.\.0 .*got 0\.\.1"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([-1, 0]), ("a",), r"got -1\.\.0"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), ("a", "a"), "must differ"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(
    images_NHWC: np.ndarray, labels_N: np.ndarray, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(images_NHWC, labels_N, names)
