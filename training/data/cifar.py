"""CIFAR-10 and CIFAR-100 from the official distribution (Krizhevsky, 2009), and CIFAR-100 from mosaics."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.errors import DataError
from training.data.image_set import ImageSet
from training.data.mosaics import read_mosaics
from training.data.restricted_pickle import load_official_pickle

CIFAR_PIXELS = 32
HOME_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two sets is laid out on disk and inside its files."""

    title: str
    folder: str
    archive: str
    mosaic_folder: str | None
    train_members: tuple[str, ...]
    test_member: str
    meta_member: str
    labels_key: bytes
    names_key: bytes

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.train_members, self.test_member, self.meta_member)


LAYOUTS: dict[str, CifarLayout] = {
    "cifar10": CifarLayout(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        mosaic_folder=None,
        train_members=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test_member="test_batch",
        meta_member="batches.meta",
        labels_key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": CifarLayout(
        title="CIFAR-100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        mosaic_folder="cifar100",
        train_members=("train",),
        test_member="test",
        meta_member="meta",
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}


@dataclass(frozen=True)
class CifarSets:
    """The two official sets, in the official order, and where they came from."""

    train: ImageSet
    test: ImageSet
    source: str


def read_cifar(dataset: str, data_root: Path) -> CifarSets:
    """Read "cifar10" or "cifar100": the official folder, the official archive or mosaics, the first found.

    data_root: the folder they lie in. Archives are read in memory, and no pickled code runs. Raises DataError
    naming the broken file, or, where nothing is found, every place that was looked at.
    """
    layout = LAYOUTS[dataset]
    folder, archive = data_root / layout.folder, data_root / layout.archive
    if folder.is_dir():
        return _from_members(layout, _read_folder(layout, folder), folder, f"official folder {layout.folder}")
    if archive.is_file():
        return _from_members(layout, _read_archive(layout, archive), archive, f"official archive {layout.archive}")
    if layout.mosaic_folder is not None and (data_root / layout.mosaic_folder).is_dir():
        train, test = read_mosaics(data_root / layout.mosaic_folder)
        return CifarSets(train, test, f"{layout.title}, lossless mosaics {layout.mosaic_folder}")
    raise DataError(_nothing_found(layout, data_root))


def _nothing_found(layout: CifarLayout, data_root: Path) -> str:
    lines = [f"{layout.title} was not found. Looked for:"]
    lines.append(f"  {data_root / layout.folder}/ (the official folder, with {', '.join(layout.members)})")
    lines.append(f"  {data_root / layout.archive} (the official archive, as downloaded)")
    if layout.mosaic_folder is not None:
        lines.append(f"  {data_root / layout.mosaic_folder}/ (lossless mosaics, with labels.json)")
    lines.append(
        f"Download {layout.archive} from {HOME_PAGE} into {data_root}, unpacked or not, or name the folder "
        "that holds it with --data-root or the environment variable OFFRAMP_DATA_ROOT."
    )
    return "\n".join(lines)


def _read_folder(layout: CifarLayout, folder: Path) -> dict[str, bytes]:
    missing = [name for name in layout.members if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: missing {', '.join(missing)}; unpack {layout.archive} anew")
    return {name: (folder / name).read_bytes() for name in layout.members}


def _read_archive(layout: CifarLayout, archive: Path) -> dict[str, bytes]:
    wanted = {f"{layout.folder}/{name}": name for name in layout.members}
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as content:
            # One pass in file order: seeking backwards in a gzip stream would decompress it again.
            with tarfile.open(fileobj=content, mode="r:") as tar:
                for member in tar:
                    name = wanted.get(member.name.removeprefix("./"))
                    stream = tar.extractfile(member) if name is not None and member.isfile() else None
                    if name is not None and stream is not None:
                        found[name] = stream.read()
            # The checksum comes last: a stream is only known to be whole when read to its end.
            while content.read(1024 * 1024):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{archive}: truncated or no gzip tar ({type(error).__name__}: {error}); download it anew from {HOME_PAGE}"
        ) from error
    missing = [path for path, name in wanted.items() if name not in found]
    if missing:
        raise DataError(f"{archive}: missing {', '.join(missing)}; download it anew from {HOME_PAGE}")
    return found


def _from_members(layout: CifarLayout, members: dict[str, bytes], place: Path, source: str) -> CifarSets:
    meta_path = place / layout.meta_member
    meta = load_official_pickle(members[layout.meta_member], str(meta_path))
    try:
        names = tuple(name.decode("utf-8") for name in meta[layout.names_key])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{meta_path}: needs a list of texts under {layout.names_key.decode()!r} "
            f"({type(error).__name__}: {error}); download it anew"
        ) from error
    parts = [_read_batch(layout, members[name], place / name) for name in layout.train_members]
    images_NHWC = np.concatenate([images for images, _ in parts])
    labels_N = np.concatenate([labels for _, labels in parts])
    test_batch = _read_batch(layout, members[layout.test_member], place / layout.test_member)
    try:
        train, test = ImageSet(images_NHWC, labels_N, names), ImageSet(*test_batch, names)
    except DataError as error:
        raise DataError(f"{place}: {error}; download {layout.archive} anew") from error
    return CifarSets(train, test, f"{layout.title}, {source}")


def _read_batch(layout: CifarLayout, content: bytes, path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch: dict[bytes, Any] = load_official_pickle(content, str(path))
    data, labels = batch.get(b"data"), batch.get(layout.labels_key)
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise DataError(
            f"{path}: needs an array 'data' and a list {layout.labels_key.decode()!r}; it holds "
            f"{sorted(batch)}. Download {layout.archive} anew"
        )
    row = 3 * CIFAR_PIXELS * CIFAR_PIXELS
    if data.dtype != np.uint8 or data.shape != (len(labels), row):
        raise DataError(
            f"{path}: 'data' must be uint8 of shape ({len(labels)}, {row}), a row for each label; "
            f"got {data.dtype} {data.shape}. Download {layout.archive} anew"
        )
    if not all(type(label) is int for label in labels):
        raise DataError(f"{path}: {layout.labels_key.decode()!r} must hold whole numbers only; download it anew")
    images_NCHW = data.reshape(-1, 3, CIFAR_PIXELS, CIFAR_PIXELS)
    return np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1)), np.asarray(labels, dtype=np.int64)
