"""Any tree of pictures sorted into one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from models.picture import EXTENSIONS
from models.preprocess import Preprocessing
from training.data.errors import DataError
from training.data.image_set import FolderSet, ImageSet
from training.data.parts import Parts, check_class_sizes, hold_out_test
from training.data.shard_set import ShardSet

MOST_NAMED = 10
TEST_FOLDERS = ("test", "val")


def read_image_folder(root: Path, preprocessing: Preprocessing, seed: int) -> Parts[FolderSet]:
    """List `root/train/<class>/…` with `root/test/…` or `root/val/…`, or plain `root/<class>/…`.

    Classes are the sorted folder names; pictures may lie deeper below them; hidden files are ignored. Where
    there is no test folder, 10 % (at least one a class) is held out, stratified by `seed`; `source` says so.
    Raises DataError for an empty or missing class, and for classes that differ between train and test.
    """
    title = f"folder {root.resolve().name}"
    if not class_folders(root / "train"):
        _refuse_test_without_train(root)
        return hold_out_test(_list_pictures(root, root, preprocessing), seed, root, title)
    everything = _list_pictures(root, root / "train", preprocessing)
    # ImageNet's own test/ is unlabelled: a folder with classes goes before one without.
    there = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    test_names = sorted(there, key=lambda name: not class_folders(root / name))
    if not test_names:
        return hold_out_test(everything, seed, root, f"{title} (train/)")
    test = _list_pictures(root, root / test_names[0], preprocessing)
    _check_same_classes(everything.class_names, test.class_names, root / "train", root / test_names[0])
    check_class_sizes(everything, 2, "train and calibration", root)
    unused = "".join(f"; {name}/ unused" for name in test_names[1:])
    return Parts(everything, test, f"{title} (train/ and {test_names[0]}/{unused})")


def decode_all(pictures: FolderSet | ShardSet) -> ImageSet:
    """Decode every picture into memory, on all cores. Raises DataError naming the broken files, ten at most."""
    size = pictures.preprocessing.size
    images_NHWC = np.empty((len(pictures), size, size, 3), dtype=np.uint8)

    def decode_into(index: int) -> DataError | None:
        try:
            images_NHWC[index] = pictures[index][0]
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


def class_folders(part_root: Path) -> list[Path]:
    """The folders in `part_root` that stand for a class each, sorted; none where it is no folder."""
    if not part_root.is_dir():
        return []
    return sorted(path for path in part_root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_test_without_train(root: Path) -> None:
    for name in TEST_FOLDERS:
        if class_folders(root / name):
            raise DataError(
                f"{root}: has classes in {name}/ but none in train/; put the training pictures into "
                f"{root / 'train'}, one folder a class"
            )


def _list_pictures(root: Path, part_root: Path, preprocessing: Preprocessing) -> FolderSet:
    folders = class_folders(part_root)
    if len(folders) < 2:
        raise DataError(
            f"{part_root}: found {len(folders)} class folders, at least 2 are needed; sort the pictures into "
            f"one folder a class, such as {part_root / 'cats' / 'photo.jpg'}"
        )
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        pictures = _pictures_below(folder, folder.relative_to(root).as_posix() + "/")
        if not pictures:
            raise DataError(
                f"{folder}: class {folder.name!r} has no picture ({', '.join(sorted(EXTENSIONS))}); "
                "add pictures or remove the folder"
            )
        names.extend(pictures)
        labels.extend([label] * len(pictures))
    class_names = tuple(folder.name for folder in folders)
    return FolderSet(root, names, np.asarray(labels, dtype=np.int64), class_names, preprocessing)


def _pictures_below(folder: Path, prefix: str) -> list[str]:
    """Names of the pictures in `folder` and deeper, each after `prefix`, sorted part by part."""
    found, waiting = [], [(str(folder), prefix)]
    while waiting:
        place, before = waiting.pop()
        # On 100,000 files it takes a fifth of the time of Path.rglob: the kernel tells files from folders on the way.
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{before}{entry.name}/"))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():  # noqa: PTH122
                    found.append(before + entry.name)
    return sorted(found, key=lambda name: name.split("/"))


def _check_same_classes(train: Sequence[str], test: Sequence[str], train_root: Path, test_root: Path) -> None:
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if only_train or only_test:
        raise DataError(
            f"{train_root} and {test_root} must have the same class folders; only in train: "
            f"{', '.join(only_train) or 'none'}; only in {test_root.name}: {', '.join(only_test) or 'none'}. "
            "Rename, add or remove folders until they match"
        )
