"""CIFAR from the official files, from the archive and from mosaics; files that are not the official ones."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.models.preprocess import Preprocessing
from offramp.training.data import DataError, ImageSet, load_splits
from offramp.training.data.cifar import LAYOUTS, CifarLayout
from offramp.training.data.cifar import read_cifar as read_official_cifar
from offramp.training.data.image_set import Parts

COUNT = 1_000
NAMES_100 = tuple(f"class{i:03d}" for i in range(100))
NAMES_10 = tuple(f"class{i}" for i in range(10))


def python2_pickle(value: Any) -> bytes:
    """What Python 2's cPickle wrote at protocol 2: texts as byte strings, arrays through numpy.core."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case bytes() if len(value) < 256:
            return b"U" + struct.pack("<B", len(value)) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int() if 0 <= value < 256:
            return b"K" + struct.pack("<B", value)
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items()) + b"u"
        case np.ndarray():
            rows, columns = value.shape
            return (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
                + (_opcodes(0) + b"\x85" + _opcodes(b"b") + b"\x87R")
                + (b"(" + _opcodes(1) + _opcodes(rows) + _opcodes(columns) + b"\x86")
                + (b"cnumpy\ndtype\n" + _opcodes(f"{value.dtype.str[1:]}".encode()))
                + (_opcodes(0) + _opcodes(1) + b"\x87R(")
                + (_opcodes(3) + _opcodes(b"|") + b"NNN" + _opcodes(-1) + _opcodes(-1) + _opcodes(0) + b"tb")
                + (b"\x89" + _opcodes(value.tobytes()) + b"tb")
            )
    raise TypeError(type(value))


@functools.cache
def pictures(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    images_NHWC = random.randint(0, 256, (COUNT, 32, 32, 3)).astype(np.uint8)
    return images_NHWC, random.randint(0, classes, COUNT)


def rows(images_NHWC: np.ndarray) -> np.ndarray:
    return images_NHWC.transpose(0, 3, 1, 2).reshape(len(images_NHWC), 3072)


def batch_100(images_NHWC: np.ndarray, labels_N: np.ndarray) -> dict[bytes, Any]:
    return {
        b"filenames": [b"picture.png"] * len(labels_N),
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": labels_N.tolist(),
        b"coarse_labels": (labels_N // 5).tolist(),
        b"data": rows(images_NHWC),
    }


@functools.cache
def official_100() -> dict[str, bytes]:
    meta = {b"fine_label_names": [name.encode() for name in NAMES_100], b"coarse_label_names": [b"any"]}
    return {
        "file.txt~": b"",
        "meta": python2_pickle(meta),
        "test": python2_pickle(batch_100(*pictures(2, 100))),
        "train": python2_pickle(batch_100(*pictures(1, 100))),
    }


def members_100() -> dict[str, bytes]:
    return dict(official_100())


def official_10() -> dict[str, bytes]:
    members = {"batches.meta": python2_pickle({b"label_names": [name.encode() for name in NAMES_10]})}
    for i in range(6):
        images_NHWC, labels_N = pictures(i, 10)
        name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
        members[name] = python2_pickle({b"data": rows(images_NHWC), b"labels": labels_N.tolist()})
    return members


def layout_of(dataset: str, members: dict[str, bytes]) -> CifarLayout:
    """The layout of `dataset`, with the checksums of these files in place of the official ones."""

    def md5(names: Any) -> dict[str, str]:
        return {name: hashlib.md5(members[name]).hexdigest() for name in names}

    layout = LAYOUTS[dataset]
    return replace(layout, train=md5(layout.train), test=md5(layout.test), meta=md5(layout.meta))


@functools.cache
def layouts() -> dict[str, CifarLayout]:
    return {"cifar10": layout_of("cifar10", official_10()), "cifar100": layout_of("cifar100", official_100())}


def read_cifar(dataset: str, data_root: Path) -> Parts[ImageSet]:
    return read_official_cifar(dataset, data_root, layouts())


def write_folder(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)


def write_archive(archive: Path, folder_name: str, members: dict[str, bytes]) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder_name}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_mosaics(folder: Path) -> None:
    folder.mkdir()
    labels: dict[str, Any] = {"fine_names": NAMES_100, "coarse_names": []}
    for part, seed in (("train", 1), ("test", 2)):
        images_NHWC, labels_N = pictures(seed, 100)
        mosaic = images_NHWC.reshape(25, 40, 32, 32, 3).swapaxes(1, 2).reshape(800, 1280, 3)
        Image.fromarray(mosaic).save(folder / f"{part}-00.webp", lossless=True, quality=0, method=0)
        labels[part] = {"fine": labels_N.tolist(), "coarse": []}
    (folder / "labels.json").write_text(json.dumps(labels))


def test_the_official_folder_gives_pixels_labels_and_names_in_order(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar-100-python", members_100())
    sets = read_cifar("cifar100", tmp_path)
    for found, seed in ((sets.train, 1), (sets.test, 2)):
        images_NHWC, labels_N = pictures(seed, 100)
        np.testing.assert_array_equal(found.images_NHWC, images_NHWC)
        np.testing.assert_array_equal(found.labels_N, labels_N)
        assert found.class_names == NAMES_100
    assert sets.source == "CIFAR-100, official folder cifar-100-python"


def test_archive_folder_and_mosaics_of_the_same_pictures_are_equal(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("folder", "archive", "mosaics")]
    for root in roots:
        root.mkdir()
    write_folder(roots[0] / "cifar-100-python", members_100())
    write_archive(roots[1] / "cifar-100-python.tar.gz", "cifar-100-python", members_100())
    write_mosaics(roots[2] / "cifar100")
    found = [read_cifar("cifar100", root) for root in roots]
    assert len({sets.train.fingerprint() for sets in found}) == 1
    assert len({sets.test.fingerprint() for sets in found}) == 1
    assert len({sets.source for sets in found}) == 3
    assert not (roots[1] / "cifar-100-python").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_joins_its_five_batches_in_order(tmp_path: Path, packed: bool) -> None:
    parts = [pictures(seed, 10) for seed in range(6)]
    members = official_10()
    if packed:
        write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", members)
    else:
        write_folder(tmp_path / "cifar-10-batches-py", members)
    sets = read_cifar("cifar10", tmp_path)
    np.testing.assert_array_equal(sets.train.images_NHWC, np.concatenate([p[0] for p in parts[:5]]))
    np.testing.assert_array_equal(sets.train.labels_N, np.concatenate([p[1] for p in parts[:5]]))
    np.testing.assert_array_equal(sets.test.images_NHWC, parts[5][0])
    assert sets.test.class_names == NAMES_10


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_an_attacking_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int, name: str) -> None:
    trace = tmp_path / "trace"
    attack = pickle.dumps({"data": Attack(trace)}, protocol=protocol)
    write_folder(tmp_path / "cifar-100-python", {**members_100(), name: attack})
    with pytest.raises(DataError, match=rf"cifar-100-python/{name}: is not the official file .*download .* anew"):
        read_cifar("cifar100", tmp_path)
    assert not trace.exists()
    pickle.loads(attack)
    assert trace.exists()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_files_without_the_published_checksum_are_refused(tmp_path: Path, dataset: str) -> None:
    members = official_10() if dataset == "cifar10" else members_100()
    write_folder(tmp_path / LAYOUTS[dataset].folder, members)
    with pytest.raises(DataError, match=r"data_batch_1|train: is not the official file"):
        read_official_cifar(dataset, tmp_path)


@pytest.mark.parametrize("length", [0, 1, 100, 3_000, 3_000_000])
def test_a_truncated_file_is_named(tmp_path: Path, length: int) -> None:
    members = members_100()
    write_folder(tmp_path / "cifar-100-python", {**members, "train": members["train"][:length]})
    with pytest.raises(DataError, match=r"cifar-100-python/train: is not the official file"):
        read_cifar("cifar100", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_missing_member_is_named(tmp_path: Path, packed: bool) -> None:
    members = members_100()
    del members["meta"]
    if packed:
        write_archive(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", members)
    else:
        write_folder(tmp_path / "cifar-100-python", members)
    with pytest.raises(DataError, match=r"missing .*meta"):
        read_cifar("cifar100", tmp_path)


def test_a_truncated_or_altered_archive_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-100-python.tar.gz"
    write_archive(archive, "cifar-100-python", members_100())
    whole = archive.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for broken in (b"", b"no archive", whole[:middle], whole[:-4], flipped):
        archive.write_bytes(broken)
        with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz: .*download it anew"):
            read_cifar("cifar100", tmp_path)


def test_broken_mosaics_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar100"
    write_mosaics(folder)
    whole = (folder / "train-00.webp").read_bytes()
    (folder / "train-00.webp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-00\.webp: cannot be decoded"):
        read_cifar("cifar100", tmp_path)
    Image.new("RGB", (640, 800)).save(folder / "train-00.webp")
    with pytest.raises(DataError, match=r"train-00\.webp: is 640×800 pixels; a mosaic is 1280×800"):
        read_cifar("cifar100", tmp_path)
    (folder / "train-00.webp").unlink()
    with pytest.raises(DataError, match=r"missing train-00\.webp"):
        read_cifar("cifar100", tmp_path)
    (folder / "labels.json").write_text('{"fine_names": [], "train": {"fine": [0]}}')
    with pytest.raises(DataError, match=r"labels\.json: needs .*'test'"):
        read_cifar("cifar100", tmp_path)
    (folder / "labels.json").write_text("{")
    with pytest.raises(DataError, match=r"labels\.json: no valid JSON"):
        read_cifar("cifar100", tmp_path)


def test_an_error_for_missing_data_names_every_place_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_cifar("cifar100", tmp_path)
    places = ("cifar-100-python/", "cifar-100-python.tar.gz", "cifar100/")
    for expected in (
        *(str(tmp_path / p) + p[len(p.rstrip("/")) :] for p in places),
        "--data-root",
        "OFFRAMP_DATA_ROOT",
    ):
        assert expected in str(caught.value)


def test_calibration_comes_out_of_train_never_out_of_test(tmp_path: Path) -> None:
    write_mosaics(tmp_path / "cifar100")
    splits = load_splits("cifar100", tmp_path, Preprocessing(size=32), calibration_size=200)
    parts = (splits.train, splits.calibration, splits.test)
    pixels = []
    for part in parts:
        assert isinstance(part, ImageSet)
        pixels.append({image_HWC.tobytes() for image_HWC in part.images_NHWC})
    assert [len(found) for found in pixels] == [800, 200, 1_000]
    assert pixels[0] | pixels[1] == {image_HWC.tobytes() for image_HWC in pictures(1, 100)[0]}
    assert pixels[2] == {image_HWC.tobytes() for image_HWC in pictures(2, 100)[0]}


@pytest.mark.parametrize("size", [8, 32])
def test_another_size_or_crop_is_applied_as_serving_does(tmp_path: Path, size: int) -> None:
    write_mosaics(tmp_path / "cifar100")
    preprocessing = Preprocessing(size=size, crop_fraction=0.5)
    needed_bytes = 2 * COUNT * size * size * 3
    splits = load_splits("cifar100", tmp_path, preprocessing, calibration_size=200, memory_limit_bytes=needed_bytes)
    assert isinstance(splits.test, ImageSet)
    served = [preprocessing.apply(Image.fromarray(image_HWC)) for image_HWC in pictures(2, 100)[0]]
    np.testing.assert_array_equal(splits.test.images_NHWC, served)
    with pytest.raises(DataError, match=r"pixels the pictures take .* choose a smaller size"):
        load_splits("cifar100", tmp_path, preprocessing, calibration_size=200, memory_limit_bytes=needed_bytes - 1)
