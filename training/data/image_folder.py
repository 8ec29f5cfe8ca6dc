"""Any tree of pictures sorted into one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.preprocess import Preprocessing
from training.data.decoding import decode_picture
from training.data.errors import DataError
from training.data.image_set import FolderSet, ImageSet
from training.data.stratify import fraction_count, stratified_holdout

TEST_FRACTION = 0.1
MOST_NAMED = 10
TEST_FOLDERS = ("test", "val")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class FolderSets:
    """Train and test of a picture tree, still undecoded, and what was read and how it was split."""

    train: FolderSet
    test: FolderSet
    source: str


def read_image_folder(root: Path, preprocessing: Preprocessing, seed: int) -> FolderSets:
    """List `root/train/<class>/…` with `root/test/…` or `root/val/…`, or plain `root/<class>/…`.

    Classes are the sorted folder names; pictures may lie deeper below them; hidden files are ignored. Where
    there is no test folder, 10 % (at least one a class) is held out, stratified by `seed`; `source` says so.
    Raises DataError for an empty or missing class, and for classes that differ between train and test.
    """
    title = f"folder {root.resolve().name}"
    if not _class_folders(root / "train"):
        _refuse_test_without_train(root)
        return _with_holdout(_list_pictures(root, root, preprocessing), seed, title)
    everything = _list_pictures(root, root / "train", preprocessing)
    test_names = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not test_names:
        return _with_holdout(everything, seed, f"{title} (train/)")
    test = _list_pictures(root, root / test_names[0], preprocessing)
    _check_same_classes(everything.class_names, test.class_names, root / "train", root / test_names[0])
    _check_class_sizes(everything, 2, "train and calibration")
    unused = "".join(f"; {name}/ unused" for name in test_names[1:])
    return FolderSets(everything, test, f"{title} (train/ and {test_names[0]}/{unused})")


def decode_all(pictures: FolderSet) -> ImageSet:
    """Decode every picture into memory, on all cores. Raises DataError naming the broken files, ten at most."""
    size = pictures.preprocessing.size
    images_NHWC = np.empty((len(pictures), size, size, 3), dtype=np.uint8)

    def decode_into(index: int) -> DataError | None:
        try:
            images_NHWC[index] = decode_picture(pictures.root / pictures.names[index], pictures.preprocessing)
        except DataError as error:
            return error
        return None

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        broken = [error for error in pool.map(decode_into, range(len(pictures))) if error is not None]
    finally:
        # Ctrl-C ends the loading at once, without decoding all that are queued.
        pool.shutdown(cancel_futures=True)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        named = "\n".join(f"  {error}" for error in broken[:MOST_NAMED])
        more = f"\n  and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
        raise DataError(f"{len(broken)} pictures cannot be decoded:\n{named}{more}")
    return ImageSet(images_NHWC, pictures.labels_N, pictures.class_names)


def _class_folders(part_root: Path) -> list[Path]:
    if not part_root.is_dir():
        return []
    return sorted(path for path in part_root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_test_without_train(root: Path) -> None:
    for name in TEST_FOLDERS:
        if _class_folders(root / name):
            raise DataError(
                f"{root}: has classes in {name}/ but none in train/; put the training pictures into "
                f"{root / 'train'}, one folder a class"
            )


def _with_holdout(everything: FolderSet, seed: int, title: str) -> FolderSets:
    _check_class_sizes(everything, 3, "train, calibration and test")
    count = fraction_count(everything.labels_N, TEST_FRACTION)
    kept, held = stratified_holdout(everything.labels_N, count, seed)
    source = f"{title}; no test/ or val/, so {count} test pictures held out (seed {seed})"
    return FolderSets(everything.subset(kept), everything.subset(held), source)


def _list_pictures(root: Path, part_root: Path, preprocessing: Preprocessing) -> FolderSet:
    folders = _class_folders(part_root)
    if len(folders) < 2:
        raise DataError(
            f"{part_root}: found {len(folders)} class folders, at least 2 are needed; sort the pictures into "
            f"one folder a class, such as {part_root / 'cats' / 'photo.jpg'}"
        )
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        pictures = _pictures_below(folder)
        if not pictures:
            raise DataError(
                f"{folder}: class {folder.name!r} has no picture ({', '.join(sorted(EXTENSIONS))}); "
                "add pictures or remove the folder"
            )
        names.extend(picture.relative_to(root).as_posix() for picture in pictures)
        labels.extend([label] * len(pictures))
    class_names = tuple(folder.name for folder in folders)
    return FolderSet(root, tuple(names), np.asarray(labels, dtype=np.int64), class_names, preprocessing)


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _check_same_classes(train: Sequence[str], test: Sequence[str], train_root: Path, test_root: Path) -> None:
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if only_train or only_test:
        raise DataError(
            f"{train_root} and {test_root} must have the same class folders; only in train: "
            f"{', '.join(only_train) or 'none'}; only in {test_root.name}: {', '.join(only_test) or 'none'}. "
            "Rename, add or remove folders until they match"
        )


def _check_class_sizes(pictures: FolderSet, least: int, parts: str) -> None:
    sizes = np.bincount(pictures.labels_N, minlength=len(pictures.class_names))
    if sizes.min() < least:
        raise DataError(
            f"{pictures.root}: class {pictures.class_names[sizes.argmin()]!r} has {sizes.min()} pictures to "
            f"learn from, at least {least} are needed, one each for {parts}; add pictures or remove the class"
        )
