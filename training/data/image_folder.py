"""A tree of pictures, sorted into one folder for each class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from offramp.models.pictures.folder import find_pictures, listed, printable
from offramp.models.pictures.picture import EXTENSIONS
from offramp.models.preprocess import Preprocessing
from offramp.training.data.image_set import DataError, FolderSet, ImageSet, Parts
from offramp.training.data.stratify import HOLDOUT_SEED, fraction_count, stratified_holdout

logger = logging.getLogger(__name__)

MOST_NAMED = 10
TEST_FOLDERS = ("test", "val")
TEST_FRACTION = 0.1


def read_image_folder(root: Path, preprocessing: Preprocessing) -> Parts[FolderSet]:
    """List `root/train/<class>/…` with `root/test/…` or `root/val/…`, or plain `root/<class>/…`.

    Classes are the sorted folder names. Pictures may lie deeper below them. Hidden files are ignored. Without a test
    folder, 10 % (at least one picture of each class) are held out as test, stratified; `source` says so.
    Raises DataError for an empty or missing class, and for classes that differ between train and test.
    """
    title = f"folder {root.resolve().name}"
    if not class_folders(root / "train"):
        for name in TEST_FOLDERS:
            if class_folders(root / name):
                raise DataError(
                    f"{root}: has classes in {name}/ but none in train/; put the training pictures into "
                    f"{root / 'train'}, one folder a class"
                )
        return _hold_out_test(_list_pictures(root, root, preprocessing), root, title)
    pictures = _list_pictures(root, root / "train", preprocessing)
    # ImageNet's own test/ has no labels: a folder with classes goes before one without.
    present = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    test_names = sorted(present, key=lambda name: not class_folders(root / name))
    if not test_names:
        return _hold_out_test(pictures, root, f"{title} (train/)")
    test = _list_pictures(root, root / test_names[0], preprocessing)
    _check_same_classes(pictures.class_names, test.class_names, root / "train", root / test_names[0])
    _check_class_sizes(pictures, 2, "train and calibration", root)
    unused = "".join(f"; {name}/ unused" for name in test_names[1:])
    return Parts(pictures, test, f"{title} (train/ and {test_names[0]}/{unused})")


def decode_all(*parts: FolderSet) -> list[ImageSet]:
    """Decode every picture of the parts into memory, on all cores.

    Raises DataError with the number of broken files in all parts, and at most ten of their names.
    """
    sizes = [(len(part), part.preprocessing.size, part.preprocessing.size, 3) for part in parts]
    images = [np.empty(size, dtype=np.uint8) for size in sizes]

    def decode_into(place: tuple[int, int]) -> DataError | None:
        number, index = place
        try:
            images[number][index] = parts[number][index][0]
        except DataError as error:
            return error
        return None

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        places = [(number, index) for number, part in enumerate(parts) for index in range(len(part))]
        broken = [error for error in pool.map(decode_into, places) if error is not None]
    finally:
        # Ctrl-C ends the loading at once: the queued pictures are not decoded.
        pool.shutdown(cancel_futures=True)
    if broken:
        raise DataError(listed(broken))
    return [
        ImageSet(images_NHWC, part.labels_N, part.class_names) for images_NHWC, part in zip(images, parts, strict=True)
    ]


def class_folders(part_root: Path) -> list[Path]:
    """The class folders in `part_root`, sorted; empty when it is not a folder.

    A link back to `part_root`, or to a folder around it, is not a class.
    """
    if not part_root.is_dir():
        return []
    around = (part_root.resolve(), *part_root.resolve().parents)
    return sorted(
        path
        for path in part_root.iterdir()
        if not path.name.startswith(".") and path.is_dir() and not (path.is_symlink() and path.resolve() in around)
    )


def _list_pictures(root: Path, part_root: Path, preprocessing: Preprocessing) -> FolderSet:
    folders = class_folders(part_root)
    if len(folders) < 2:
        raise DataError(
            f"{part_root}: found {len(folders)} class folders, at least 2 are needed; sort the pictures into "
            f"one folder a class, such as {part_root / 'cats' / 'photo.jpg'}"
        )
    class_names = _class_names(folders)
    names: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for label, folder in enumerate(folders):
        listing = find_pictures(folder)
        if not listing.names:
            raise DataError(
                f"{folder}: class {folder.name!r} has no picture ({', '.join(sorted(EXTENSIONS))}); "
                "add pictures or remove the folder"
            )
        names.extend(f"{folder.relative_to(root).as_posix()}/{name}" for name in listing.names)
        labels.extend([label] * len(listing.names))
        left_out += listing.left_out
    if left_out:
        kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))[:MOST_NAMED]
        named = ", ".join(f"{kind} ({count:,})" for kind, count in kinds)
        logger.warning("%s: left out %d files that are not taken for pictures: %s", part_root, left_out.total(), named)
    return FolderSet(root, names, np.asarray(labels, dtype=np.int64), class_names, preprocessing)


def _class_names(folders: Sequence[Path]) -> tuple[str, ...]:
    names = tuple(folder.name for folder in folders)
    odd = [printable(name) for name in names if printable(name) != name]
    if odd:
        raise DataError(
            f"{folders[0].parent}: {len(odd)} class folders have a name that is not UTF-8, such as {odd[0]}: rename "
            "them, as these names are the labels of every answer"
        )
    return names


def _check_same_classes(train: Sequence[str], test: Sequence[str], train_root: Path, test_root: Path) -> None:
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if only_train or only_test:
        raise DataError(
            f"{train_root} and {test_root} must have the same class folders; only in train: "
            f"{', '.join(only_train) or 'none'}; only in {test_root.name}: {', '.join(only_test) or 'none'}. "
            "Rename, add or remove folders until they match"
        )


def _hold_out_test(pictures: FolderSet, root: Path, title: str) -> Parts[FolderSet]:
    _check_class_sizes(pictures, 3, "train, calibration and test", root)
    count = fraction_count(pictures.labels_N, TEST_FRACTION)
    train, test = stratified_holdout(pictures.labels_N, count, HOLDOUT_SEED)
    source = f"{title}; no test/ or val/, so {count} test pictures held out (seed {HOLDOUT_SEED})"
    return Parts(pictures.subset(train), pictures.subset(test), source)


def _check_class_sizes(pictures: FolderSet, least: int, parts: str, root: Path) -> None:
    sizes = np.bincount(pictures.labels_N, minlength=len(pictures.class_names))
    if sizes.min() < least:
        raise DataError(
            f"{root}: class {pictures.class_names[sizes.argmin()]!r} has {sizes.min()} pictures to "
            f"learn from, at least {least} are needed, one each for {parts}; add pictures or remove the class"
        )
