"""Image sets and the batches made of them."""

from __future__ import annotations

import gc
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from offramp.models.preprocess import Preprocessing
from offramp.training.data import Batches, DataError, FolderSet, ImageSet

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


def read(batches: Batches, seed: int | None) -> list[tuple[list[int], torch.Tensor]]:
    return [(labels_B.tolist(), images_BHWC) for images_BHWC, labels_B in batches.epoch(seed)]


def assert_same_batches(
    first: list[tuple[list[int], torch.Tensor]], second: list[tuple[list[int], torch.Tensor]]
) -> None:
    assert len(first) == len(second)
    for (labels_a, images_a), (labels_b, images_b) in zip(first, second, strict=True):
        assert labels_a == labels_b
        assert torch.equal(images_a, images_b)


def test_without_shuffle_batches_follow_the_set() -> None:
    pictures = image_set()
    batches = Batches(pictures, 5, CPU)
    batch_list = list(batches.epoch())
    assert len(batches) == len(batch_list) == 5
    assert [len(labels_B) for _, labels_B in batch_list] == [5, 5, 5, 5, 3]
    images_NHWC = torch.cat([images_BHWC for images_BHWC, _ in batch_list])
    labels_N = torch.cat([labels_B for _, labels_B in batch_list])
    assert images_NHWC.dtype == torch.uint8
    assert labels_N.dtype == torch.int64
    np.testing.assert_array_equal(images_NHWC, pictures.images_NHWC)
    np.testing.assert_array_equal(labels_N, pictures.labels_N)


def test_the_order_depends_on_the_seed_alone_and_covers_all() -> None:
    pictures = image_set()
    batches = Batches(pictures, 5, CPU, shuffle=True, drop_last=False)
    first = read(batches, seed=7)
    torch.manual_seed(1)
    read(batches, seed=8)
    assert_same_batches(first, read(batches, seed=7))
    assert_same_batches(first, read(Batches(pictures, 5, CPU, shuffle=True, drop_last=False), seed=7))
    sums = [images_BHWC.sum((1, 2, 3)) for _, images_BHWC in first]
    expected = pictures.images_NHWC.sum((1, 2, 3), dtype=np.int64)
    assert sorted(torch.cat(sums).tolist()) == sorted(expected.tolist())
    assert torch.cat(sums).tolist() != expected.tolist()
    assert [labels for labels, _ in read(batches, seed=8)] != [labels for labels, _ in first]


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    batches = Batches(image_set(), 5, CPU, shuffle=True, drop_last=True)
    assert len(batches) == 4
    assert [len(labels) for labels, _ in read(batches, seed=0)] == [5, 5, 5, 5]
    even = Batches(image_set(20), 5, CPU, shuffle=True, drop_last=True)
    assert len(even) == len(read(even, seed=0)) == 4
    assert len(Batches(image_set(20), 5, CPU, shuffle=True, drop_last=False)) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
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
        assert_same_batches(read(held, seed), read(streamed, seed))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_without_a_worker_traceback(folder_set: FolderSet, workers: int) -> None:
    broken = folder_set.paths[11]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        read(Batches(folder_set, 5, CPU, workers=workers), None)
    assert str(caught.value).startswith(f"{broken}: cannot be decoded")


WITH_WORKERS = (
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=WITH_WORKERS)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_can_begin_at_any_batch(folder_set: FolderSet, workers: int, drop_last: bool) -> None:
    for pictures in (image_set(), folder_set):
        batches = Batches(pictures, 5, CPU, shuffle=True, drop_last=drop_last, workers=workers)
        whole = read(batches, 3)
        for start in range(len(batches) + 1):
            tail = [(labels_B.tolist(), images_BHWC) for images_BHWC, labels_B in batches.epoch(3, start)]
            assert_same_batches(tail, whole[start:])


def test_what_lies_before_the_start_is_not_read(folder_set: FolderSet) -> None:
    for path in folder_set.paths[:10]:
        path.unlink()
    batches = Batches(folder_set, 5, CPU)
    assert [len(labels_B) for _, labels_B in batches.epoch(start=2)] == [5, 5, 3]


@pytest.mark.parametrize("start", [-1, 6])
def test_a_start_beyond_the_epoch_is_refused(start: int) -> None:
    with pytest.raises(DataError, match=f"an epoch of 5 batches can start at 0 to 5; got {start}"):
        Batches(image_set(), 5, CPU, shuffle=True, drop_last=False).epoch(0, start)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", [0, 2])
def test_the_batches_of_all_ranks_make_up_the_batch_of_one_process(
    folder_set: FolderSet, world_size: int, drop_last: bool, start: int
) -> None:
    for pictures in (image_set(), folder_set):
        single = Batches(pictures, 2 * world_size, CPU, shuffle=True, drop_last=drop_last)
        ranks = [
            Batches(pictures, 2, CPU, shuffle=True, drop_last=drop_last, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {len(single)}
        passes = [list(batches.epoch(9, start)) for batches in ranks]
        expected = list(single.epoch(9, start))
        assert {len(part) for part in passes} == {len(single) - start}
        for step, (images_BHWC, labels_B) in enumerate(expected):
            assert torch.equal(torch.cat([part[step][0] for part in passes]), images_BHWC)
            assert torch.equal(torch.cat([part[step][1] for part in passes]), labels_B)
            if drop_last:
                assert [len(part[step][1]) for part in passes] == [2] * world_size


@pytest.mark.parametrize("kwargs", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}])
def test_a_rank_out_of_range_is_refused(kwargs: dict[str, int]) -> None:
    with pytest.raises(DataError, match="the rank must be 0 to"):
        Batches(image_set(), 5, CPU, shuffle=True, drop_last=False, **kwargs)


def test_too_few_pictures_for_all_ranks_are_refused() -> None:
    with pytest.raises(DataError, match="23 pictures are too few for one batch of 24"):
        Batches(image_set(), 12, CPU, shuffle=True, drop_last=True, world_size=2)


@pytest.mark.parametrize("workers", [pytest.param(2, marks=WITH_WORKERS)])
def test_workers_end_by_themselves_even_in_a_cycle_of_garbage(folder_set: FolderSet, workers: int) -> None:
    folder_set.paths[11].write_bytes(b"no picture")
    others = set(multiprocessing.active_children())

    def fail() -> set[multiprocessing.process.BaseProcess]:
        batches = Batches(folder_set, 5, CPU, workers=workers)
        try:
            read(batches, None)
        except DataError as error:
            # Its traceback holds this frame, which holds it.
            caught = error
            assert "cannot be decoded" in str(caught)
        return set(multiprocessing.active_children()) - others

    mine = fail()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = {type(item) for item in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    # A loader that is garbage itself waits for its workers in vain.
    assert Batches in kinds
    assert DataLoader not in kinds
    assert [process.exitcode for process in mine] == [0, 0]


@pytest.mark.parametrize("workers", [pytest.param(2, marks=WITH_WORKERS)])
def test_workers_outlive_an_unfinished_pass(folder_set: FolderSet, workers: int) -> None:
    batches = Batches(folder_set, 5, CPU, shuffle=True, drop_last=False, workers=workers)
    expected = Batches(folder_set, 5, CPU, shuffle=True, drop_last=False)
    others = set(multiprocessing.active_children())
    assert_same_batches(read(batches, 0), read(expected, 0))
    mine = set(multiprocessing.active_children()) - others
    assert len(mine) == workers
    left = batches.epoch(1)
    next(left)
    assert_same_batches(read(batches, 2), read(expected, 2))
    assert set(multiprocessing.active_children()) - others == mine
    with pytest.raises(AssertionError, match="one pass at a time"):
        next(left)


def test_a_pass_does_not_change_the_global_random_state(folder_set: FolderSet) -> None:
    before = torch.get_rng_state()
    for pictures in (image_set(), folder_set):
        read(Batches(pictures, 5, CPU, shuffle=True, drop_last=False), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_changing_a_batch_leaves_the_set_as_it_was() -> None:
    pictures = image_set()
    before = pictures.fingerprint()
    for images_BHWC, labels_B in Batches(pictures, 5, CPU).epoch():
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
    assert len(read(Batches(again, 23, CPU), None)) == 1


@pytest.mark.parametrize(
    ("images_NHWC", "labels_N", "names", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), ("a",), r"\(N, H, W, 3\); got uint8 \(2, 4, 4\)"),
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
