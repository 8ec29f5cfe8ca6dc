"""Trees of pictures: train and test folders, plain trees, odd pictures, broken ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.preprocess import Preprocessing
from offramp.training.data import Batches, DataError, FolderSet, ImageSet, Pictures, Splits, load_splits
from offramp.training.data.image_folder import _list_pictures, decode_all, read_image_folder

PREPROCESSING = Preprocessing(size=16)
CLASSES = ("Forest", "River", "SeaLake")


def write_picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_part(root: Path, count: int, classes: tuple[str, ...] = CLASSES) -> None:
    for label, name in enumerate(classes):
        for i in range(count):
            write_picture(root / name / f"{name}_{i}.png", (80 * label, 10 * i, 7))


def as_image_set(pictures: Pictures) -> ImageSet:
    assert isinstance(pictures, ImageSet)
    return pictures


def test_train_and_test_folders_become_three_disjoint_sets(tmp_path: Path) -> None:
    write_part(tmp_path / "train", 10)
    write_part(tmp_path / "test", 2)
    splits = load_splits(str(tmp_path), None, PREPROCESSING)
    assert splits.class_names == CLASSES
    assert [len(s) for s in (splits.train, splits.calibration, splits.test)] == [27, 3, 6]
    np.testing.assert_array_equal(splits.calibration.labels_N, [0, 1, 2])
    np.testing.assert_array_equal(splits.test.labels_N, [0, 0, 1, 1, 2, 2])
    greens = {label: set() for label in range(3)}  # type: dict[int, set[int]]
    for part in (splits.train, splits.calibration):
        images = as_image_set(part)
        for image_HWC, label in zip(images.images_NHWC, images.labels_N, strict=True):
            assert image_HWC[0, 0, 0] == 80 * label
            greens[label].add(int(image_HWC[0, 0, 1]))
    assert all(green == {10 * i for i in range(10)} for green in greens.values())
    assert "train/ and test/" in splits.source


def test_val_serves_as_test_where_there_is_no_test_folder(tmp_path: Path) -> None:
    write_part(tmp_path / "train", 4)
    write_part(tmp_path / "val", 2)
    assert len(load_splits(str(tmp_path), None, PREPROCESSING).test) == 6
    write_part(tmp_path / "test", 1)
    splits = load_splits(str(tmp_path), None, PREPROCESSING)
    assert len(splits.test) == 3
    assert "val/ unused" in splits.source


@pytest.mark.parametrize("below", [".", "train"])
def test_a_tree_without_test_pictures_gets_a_held_out_tenth(tmp_path: Path, below: str) -> None:
    write_part(tmp_path / below, 20)
    sets = read_image_folder(tmp_path, PREPROCESSING)
    np.testing.assert_array_equal(np.bincount(sets.test.labels_N), [2, 2, 2])
    assert set(sets.train.names) | set(sets.test.names) == {
        p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")
    }
    assert not set(sets.train.names) & set(sets.test.names)
    assert "6 test pictures held out (seed 0)" in sets.source
    assert read_image_folder(tmp_path, PREPROCESSING).test.names == sets.test.names


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    write_part(tmp_path, 3, ("bus", "test", "train"))
    assert read_image_folder(tmp_path, PREPROCESSING).train.class_names == ("bus", "test", "train")


def test_hidden_files_other_files_and_deeper_folders(tmp_path: Path) -> None:
    write_part(tmp_path, 3)
    write_picture(tmp_path / "Forest" / ".hidden.png", (0, 0, 0))
    write_picture(tmp_path / "Forest" / ".cache" / "a.png", (0, 0, 0))
    write_picture(tmp_path / ".thumbnails" / "a.png", (0, 0, 0))
    (tmp_path / "Forest" / "notes.txt").write_text("no picture")
    (tmp_path / "Forest" / "folder.png").mkdir()
    write_picture(tmp_path / "Forest" / "deeper" / "A.JPEG", (0, 0, 0))
    sets = read_image_folder(tmp_path, PREPROCESSING)
    assert sets.train.class_names == CLASSES
    forest = [name for name in (*sets.train.names, *sets.test.names) if name.startswith("Forest/")]
    assert sorted(forest) == [
        "Forest/Forest_0.png",
        "Forest/Forest_1.png",
        "Forest/Forest_2.png",
        "Forest/deeper/A.JPEG",
    ]


def test_grey_palette_transparent_16_bit_and_turned_pictures_become_rgb(tmp_path: Path) -> None:
    write_part(tmp_path, 3)
    folder = tmp_path / "Forest"
    Image.new("L", (30, 20), 90).save(folder / "grey.jpg", quality=95)
    Image.new("RGB", (20, 30), (200, 100, 0)).quantize(4).save(folder / "palette.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(folder / "transparent.png")
    Image.fromarray(np.full((20, 20), 90 * 256, np.uint16)).save(folder / "deep.png")
    upright = np.zeros((40, 20, 3), np.uint8)
    upright[20:, :, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(folder / "turned.jpg", exif=exif, quality=95)
    listed = read_image_folder(tmp_path, PREPROCESSING)
    images: dict[str, np.ndarray] = {}
    for part in (listed.train, listed.test):
        images.update(zip((Path(name).name for name in part.names), decode_all(part)[0].images_NHWC, strict=True))
    assert all(image.shape == (16, 16, 3) for image in images.values())
    assert abs(images["grey.jpg"].astype(int) - 90).max() <= 1
    assert abs(images["palette.png"].astype(int) - (200, 100, 0)).max() <= 8
    assert (images["transparent.png"] == 255).all()
    assert (images["deep.png"] == 90).all()
    assert images["turned.jpg"][:7, :, 0].max() < 40
    assert images["turned.jpg"][9:, :, 0].min() > 215


def test_imagenets_usual_folder(tmp_path: Path) -> None:
    synsets = ("n01440764", "n01443537")
    for part, count in (("train", 4), ("val", 1)):
        for synset in synsets:
            for i in range(count):
                path = tmp_path / part / synset / f"{synset}_{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (30, 20), (200, 40, 40)).save(path, quality=95)
    odd = tmp_path / "train" / synsets[0]
    Image.new("L", (30, 20), 90).save(odd / f"{synsets[0]}_0.JPEG", quality=95)
    # A few of its files are CMYK, and one is a PNG.
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(odd / f"{synsets[0]}_1.JPEG", quality=95)
    Image.new("RGB", (30, 20), (1, 2, 3)).save(odd / f"{synsets[0]}_2.JPEG", format="PNG")
    (tmp_path / "test").mkdir()
    write_picture(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG", (0, 0, 0))
    sets = read_image_folder(tmp_path, PREPROCESSING)
    assert sets.train.class_names == synsets
    assert sets.test.names[0] == "val/n01440764/n01440764_0.JPEG"
    assert "(train/ and val/; test/ unused)" in sets.source
    pictures = decode_all(sets.train)[0].images_NHWC
    assert abs(pictures[0].astype(int) - 90).max() <= 1
    assert abs(pictures[1].astype(int) - (255, 0, 0)).max() <= 8
    assert (pictures[2] == (1, 2, 3)).all()


def test_names_are_sorted_part_by_part(tmp_path: Path) -> None:
    for name in ("b/1.png", "b.c/2.png", "b-c.png", "b!/3.png"):
        write_picture(tmp_path / "Forest" / name, (0, 0, 0))
    (tmp_path / "Forest" / "linked.png").symlink_to(tmp_path / "Forest" / "b-c.png")
    write_part(tmp_path, 1, ("River",))
    names = sorted((tmp_path / "Forest").rglob("*.png"))
    listed = [name for name in _list_pictures(tmp_path, tmp_path, PREPROCESSING).names if name.startswith("Forest")]
    assert listed == [path.relative_to(tmp_path).as_posix() for path in names]


def test_classes_may_be_links_and_a_link_around_all_of_them_is_not_a_class(tmp_path: Path) -> None:
    write_part(tmp_path / "elsewhere", 3)
    root = tmp_path / "root"
    root.mkdir()
    for name in CLASSES:
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    sets = read_image_folder(root, PREPROCESSING)
    assert sets.train.class_names == CLASSES
    assert len(sets.train) + len(sets.test) == 9


def test_what_is_left_out_is_said_with_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Whatever a library in this process has made of logging.
    caplog.set_level(logging.WARNING, logger="offramp.training.data.image_folder")
    write_part(tmp_path, 3)
    assert read_image_folder(tmp_path, PREPROCESSING)
    assert not caplog.messages
    for name in ("Forest/a.HEIC", "Forest/b.heic", "River/deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "River" / "d.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "River" / "deep" / "loop").symlink_to(tmp_path / "River")
    read_image_folder(tmp_path, PREPROCESSING)
    (said,) = caplog.messages
    assert said == (
        f"{tmp_path}: left out 5 files that are not taken for pictures: .heic (2), .txt (1), "
        "links back to a folder that is read already (1), links that lead nowhere (1)"
    )


def test_names_that_are_not_utf8_are_taken_and_classes_of_such_names_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path, 3)
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "Forest" / "Forest_0.png").rename(tmp_path / "Forest" / odd)
    splits = load_splits(str(tmp_path), None, PREPROCESSING)
    assert len(splits.train) + len(splits.calibration) + len(splits.test) == 9
    break_picture(tmp_path / "Forest" / odd, "empty")
    with pytest.raises(DataError, match=r"caf\\xe9\.png: cannot be decoded") as caught:
        load_splits(str(tmp_path), None, PREPROCESSING)
    assert str(caught.value).encode()
    (tmp_path / "Forest").rename(tmp_path / os.fsdecode(b"For\xeat"))
    with pytest.raises(DataError, match=r"1 class folders have a name that is not UTF-8, such as For\\xeat: rename"):
        load_splits(str(tmp_path), None, PREPROCESSING)


def test_a_folder_name_that_is_not_utf8_is_printed_in_letters(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"photos\xff")
    write_part(root, 3)
    assert "folder photos\\xff" in load_splits(str(root), None, PREPROCESSING).source


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JIF"])
def test_other_names_of_jpeg_are_taken(tmp_path: Path, suffix: str) -> None:
    write_part(tmp_path, 3)
    Image.new("RGB", (9, 9)).save(tmp_path / "River" / f"a{suffix}", "JPEG")
    assert f"River/a{suffix}" in list(_list_pictures(tmp_path, tmp_path, PREPROCESSING).names)


def break_picture(path: Path, how: str) -> None:
    if how == "truncated":
        noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:5_000])
    elif how == "header only":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.write_bytes(b"" if how == "empty" else b"a text called .png")


@pytest.mark.parametrize("how", ["truncated", "header only", "empty", "text"])
@pytest.mark.parametrize("memory_limit_bytes", [10**9, 1])
def test_a_broken_picture_is_named(tmp_path: Path, how: str, memory_limit_bytes: int) -> None:
    write_part(tmp_path, 5)
    break_picture(tmp_path / "River" / "River_3.png", how)
    with pytest.raises(DataError, match=r"River_3\.png: cannot be decoded"):
        read_all(load_splits(str(tmp_path), None, PREPROCESSING, memory_limit_bytes=memory_limit_bytes))


def test_all_broken_pictures_are_named_at_once_ten_at_most(tmp_path: Path) -> None:
    write_part(tmp_path, 5)
    pictures = read_image_folder(tmp_path, PREPROCESSING).train
    for path in pictures.paths:
        break_picture(path, "text")
    with pytest.raises(DataError) as error:
        decode_all(pictures)
    said = str(error.value)
    assert said.startswith(f"{len(pictures)} pictures cannot be decoded:")
    assert [str(path) in said for path in pictures.paths] == [True] * 10 + [False] * (len(pictures) - 10)
    assert f"and {len(pictures) - 10} more" in said


def test_broken_pictures_of_all_parts_are_counted_together(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_part(tmp_path / part, 4)
        break_picture(tmp_path / part / "River" / "River_1.png", "text")
    with pytest.raises(
        DataError, match=r"^2 pictures cannot be decoded:\n.*train.*River_1\.png.*\n.*test.*River_1\.png"
    ):
        load_splits(str(tmp_path), None, PREPROCESSING)


def read_all(splits: Splits) -> None:
    for part in (splits.train, splits.calibration, splits.test):
        for _ in Batches(part, 1, torch.device("cpu")).epoch():
            pass


def test_what_exceeds_the_memory_limit_is_decoded_on_demand_to_the_same_pixels(tmp_path: Path) -> None:
    write_part(tmp_path / "train", 5)
    write_part(tmp_path / "test", 2)
    exactly_bytes = (15 + 6) * 16 * 16 * 3
    held = load_splits(str(tmp_path), None, PREPROCESSING, memory_limit_bytes=exactly_bytes)
    streamed = load_splits(str(tmp_path), None, PREPROCESSING, memory_limit_bytes=exactly_bytes - 1)
    for a, b in ((held.train, streamed.train), (held.calibration, streamed.calibration), (held.test, streamed.test)):
        assert isinstance(b, FolderSet)
        np.testing.assert_array_equal(as_image_set(a).images_NHWC, [b[i][0] for i in range(len(b))])
        np.testing.assert_array_equal(a.labels_N, [b[i][1] for i in range(len(b))])


def test_unusable_trees_are_refused_with_the_fix(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    write_picture(root / "loose.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"found 0 class folders.*one folder a class"):
        load_splits(str(root), None, PREPROCESSING)
    write_part(root, 3)
    (root / "Alps").mkdir()
    with pytest.raises(DataError, match=r"class 'Alps' has no picture.*remove the folder"):
        load_splits(str(root), None, PREPROCESSING)
    write_picture(root / "Alps" / "one.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"class 'Alps' has 1 pictures.*at least 3"):
        load_splits(str(root), None, PREPROCESSING)


def test_classes_that_differ_between_train_and_test_are_named(tmp_path: Path) -> None:
    write_part(tmp_path / "train", 3, ("Forest", "River"))
    write_part(tmp_path / "test", 1, ("Forest", "Rivers"))
    with pytest.raises(DataError, match="only in train: River; only in test: Rivers"):
        load_splits(str(tmp_path), None, PREPROCESSING)


def test_test_pictures_without_train_pictures_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "test", 3)
    with pytest.raises(DataError, match="none in train/"):
        load_splits(str(tmp_path), None, PREPROCESSING)


def test_a_fingerprint_tells_names_sizes_and_labels_but_not_the_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_part(tmp_path / place, 3)
    first, second = (read_image_folder(tmp_path / place, PREPROCESSING).train for place in ("here", "there"))
    assert first.fingerprint() == second.fingerprint()
    assert first.subset(np.arange(3)).fingerprint() != first.fingerprint()
    second.paths[0].write_bytes(second.paths[0].read_bytes() + b" ")
    assert first.fingerprint() != second.fingerprint()


def test_a_fingerprint_covers_every_file(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(1_001)]
    for name in names:
        (tmp_path / name).touch()
    pictures = FolderSet(tmp_path, names, np.zeros(len(names), np.int64), ("a",), PREPROCESSING)
    lines = (json.dumps([name, 0, 0]) + "\n" for name in names)
    assert pictures.fingerprint() == hashlib.sha256("".join(lines).encode()).hexdigest()
