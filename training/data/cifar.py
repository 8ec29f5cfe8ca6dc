"""CIFAR-10 and CIFAR-100 from the official distribution (Krizhevsky, 2009), and CIFAR-100 from mosaics."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offramp.training.data.image_set import DataError, ImageSet, Int64Array, Parts, UInt8Array
from offramp.training.data.mosaics import read_mosaics

CIFAR_PIXELS = 32
HOME_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class CifarLayout:
    """The layout of one of the two sets, on disk and inside its files.

    train, test, meta: file names, each with the MD5 of the official file. labels_key, names_key: keys of the pickled
    dictionaries. mosaic_folder: None for a set without mosaics.
    """

    title: str
    folder: str
    archive: str
    mosaic_folder: str | None
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: Mapping[str, str]
    labels_key: bytes
    names_key: bytes

    @property
    def md5(self) -> dict[str, str]:
        """The MD5 of every official file, by name."""
        return {**self.train, **self.test, **self.meta}


# The checksums are those of torchvision.datasets.CIFAR10 and CIFAR100.
LAYOUTS: dict[str, CifarLayout] = {
    "cifar10": CifarLayout(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        mosaic_folder=None,
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels_key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": CifarLayout(
        title="CIFAR-100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        mosaic_folder="cifar100",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}


def read_cifar(dataset: str, data_root: Path, layouts: Mapping[str, CifarLayout] = LAYOUTS) -> Parts[ImageSet]:
    """Read "cifar10" or "cifar100" from `data_root`: the official folder, the official archive or mosaics.

    Pictures are in the official order. The first place that exists is read; archives are read in memory. The files are
    Python pickles, which can run code: a file is unpickled only when its MD5 is that of the official file.
    Raises DataError that names the broken file, or all places when nothing exists.
    """
    layout = layouts[dataset]
    folder, archive = data_root / layout.folder, data_root / layout.archive
    if folder.is_dir():
        return _from_files(layout, _read_folder(layout, folder), folder, f"official folder {layout.folder}")
    if archive.is_file():
        return _from_files(layout, _read_archive(layout, archive), archive, f"official archive {layout.archive}")
    mosaics = data_root / (layout.mosaic_folder or "")
    if layout.mosaic_folder is not None and mosaics.is_dir():
        return Parts(*read_mosaics(mosaics), f"{layout.title}, lossless mosaics {layout.mosaic_folder}")
    raise DataError(
        f"{layout.title} was not found. Looked for:\n"
        f"  {folder}/ (the official folder, with {', '.join(layout.md5)})\n"
        f"  {archive} (the official archive, as downloaded)\n"
        + (f"  {mosaics}/ (lossless mosaics, with labels.json)\n" if layout.mosaic_folder is not None else "")
        + f"Download {layout.archive} from {HOME_PAGE} into {data_root}, unpacked or not, or name the folder "
        "that holds it with --data-root or the environment variable OFFRAMP_DATA_ROOT."
    )


def _read_folder(layout: CifarLayout, folder: Path) -> dict[str, bytes]:
    missing = [name for name in layout.md5 if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: missing {', '.join(missing)}; unpack {layout.archive} anew")
    return {name: (folder / name).read_bytes() for name in layout.md5}


def _read_archive(layout: CifarLayout, archive: Path) -> dict[str, bytes]:
    wanted = {f"{layout.folder}/{name}": name for name in layout.md5}
    files: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as content:
            # One pass in file order: seeking backwards in a gzip stream decompresses it again.
            with tarfile.open(fileobj=content, mode="r:") as tar:
                for member in tar:
                    name = wanted.get(member.name.removeprefix("./"))
                    stream = tar.extractfile(member) if name is not None and member.isfile() else None
                    if name is not None and stream is not None:
                        files[name] = stream.read()
            # gzip checks its checksum at the end of the stream.
            while content.read(1024 * 1024):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{archive}: truncated or no gzip tar ({type(error).__name__}: {error}); download it anew from {HOME_PAGE}"
        ) from error
    missing = [path for path, name in wanted.items() if name not in files]
    if missing:
        raise DataError(f"{archive}: missing {', '.join(missing)}; download it anew from {HOME_PAGE}")
    return files


def _from_files(layout: CifarLayout, files: dict[str, bytes], place: Path, source: str) -> Parts[ImageSet]:
    # MD5 is enough here: no method is known that makes a second file for a published MD5.
    for name, md5 in layout.md5.items():
        if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != md5:
            raise DataError(
                f"{place / name}: is not the official file (its MD5 is not {md5}) and was not opened; download "
                f"{layout.archive} anew from {HOME_PAGE}"
            )
    names = pickle.loads(files[next(iter(layout.meta))], encoding="bytes")[layout.names_key]
    class_names = tuple(name.decode("utf-8") for name in names)
    train, test = (
        [_read_batch(layout, files[name]) for name in part_names] for part_names in (layout.train, layout.test)
    )
    return Parts(_joined(train, class_names), _joined(test, class_names), f"{layout.title}, {source}")


def _read_batch(layout: CifarLayout, content: bytes) -> tuple[UInt8Array, Int64Array]:
    batch = pickle.loads(content, encoding="bytes")
    images_NCHW = batch[b"data"].reshape(-1, 3, CIFAR_PIXELS, CIFAR_PIXELS)
    return np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1)), np.asarray(batch[layout.labels_key], np.int64)


def _joined(batches: list[tuple[UInt8Array, Int64Array]], class_names: tuple[str, ...]) -> ImageSet:
    images, labels = zip(*batches, strict=True)
    return ImageSet(np.concatenate(images), np.concatenate(labels), class_names)
