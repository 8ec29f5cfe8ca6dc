"""WebDataset shards: which files, what is in them, what is broken, and the same pictures as from a folder."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.preprocess import Preprocessing
from training.data import Batches, DataError, FolderSet, ImageSet, ShardSet, load_splits
from training.data.names import Names
from training.data.parts import Parts
from training.data.shard_files import expand_braces, find_shards
from training.data.shard_index import cached_index, default_cache, index_shard
from training.data.shards import read_shards

PREPROCESSING = Preprocessing(size=16)
CPU = torch.device("cpu")

Members = Sequence[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(colour: tuple[int, int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(content, format="PNG")
    return content.getvalue()


def sample(number: int, label: int) -> Members:
    return [(f"{number:04d}.png", png((number, 80 * label, 7))), (f"{number:04d}.cls", str(label).encode())]


def write_shard(path: Path, members: Members, form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, part: str, count: int, shards: int = 2, classes: int = 3, first: int = 0) -> None:
    numbers = [range(first + i, first + count, shards) for i in range(shards)]
    for i, mine in enumerate(numbers):
        members = [member for number in mine for member in sample(number, number % classes)]
        write_shard(folder / f"{part}-{i:06d}.tar", members)


def read(dataset: Path | str, root: Path = Path("nowhere"), cache: Path | None = None) -> Parts[ShardSet]:
    files = find_shards(str(dataset), root)
    assert files is not None
    return read_shards(files, PREPROCESSING, 0, cache)


def reds(pictures: ShardSet) -> list[int]:
    return [int(pictures[i][0][0, 0, 0]) for i in range(len(pictures))]


def test_a_folder_of_shards_becomes_three_disjoint_sets(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 30)
    write_shards(tmp_path, "val", 6, shards=1, first=100)
    splits = load_splits(str(tmp_path), None, PREPROCESSING, memory_limit_bytes=0)
    parts = (splits.train, splits.calibration, splits.test)
    assert [len(part) for part in parts] == [27, 3, 6]
    assert splits.class_names == ("0", "1", "2")
    found: set[int] = set()
    for part in parts:
        assert isinstance(part, ShardSet)
        for i in range(len(part)):
            picture_HWC, label = part[i]
            assert picture_HWC.shape == (16, 16, 3)
            assert picture_HWC[0, 0, 1] == 80 * label == 80 * part.labels_N[i]
            found.add(int(picture_HWC[0, 0, 0]))
    assert found == {*range(30), *range(100, 106)}
    assert sorted(splits.calibration.labels_N) == [0, 1, 2]
    assert "(2 train, 1 val); 3 calibration pictures held out of train" in splits.source


def test_shards_that_fit_into_memory_are_decoded_once(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 12)
    streamed = load_splits(str(tmp_path), None, PREPROCESSING, memory_limit_bytes=0)
    held = load_splits(str(tmp_path), None, PREPROCESSING)
    for a, b in ((held.train, streamed.train), (held.calibration, streamed.calibration), (held.test, streamed.test)):
        assert isinstance(a, ImageSet)
        assert isinstance(b, ShardSet)
        np.testing.assert_array_equal(a.images_NHWC, [b[i][0] for i in range(len(b))])
        np.testing.assert_array_equal(a.labels_N, b.labels_N)


def test_without_test_shards_a_tenth_is_held_out(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 30)
    sets = read(tmp_path)
    np.testing.assert_array_equal(np.bincount(sets.test.labels_N), [1, 1, 1])
    assert not set(reds(sets.train)) & set(reds(sets.test))
    assert "3 test pictures held out (seed 0)" in sets.source


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_shuffled_walk_over_shards_equals_one_over_a_folder(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path / "shards", "train", 22, shards=3)
    shards = read(tmp_path / "shards").train
    for i in range(len(shards)):
        (tmp_path / f"{i}.png").write_bytes(shards.read(i))
    names = [f"{i}.png" for i in range(len(shards))]
    folder = FolderSet(tmp_path, names, shards.labels_N, shards.class_names, PREPROCESSING)
    walks = [
        list(Batches(pictures, 4, CPU, shuffle=True, drop_last=True, workers=w).epoch(5))
        for pictures, w in ((shards, workers), (folder, 0))
    ]
    assert len(walks[0]) == 4
    for (images_a, labels_a), (images_b, labels_b) in zip(*walks, strict=True):
        assert torch.equal(images_a, images_b)
        assert torch.equal(labels_a, labels_b)


def test_file_names_follow_the_convention_of_webdataset(tmp_path: Path) -> None:
    picture = png((1, 2, 3))
    members = [
        ("./a/0001.JPEG", picture),
        ("./a/0001.cls", b" 2\n"),
        ("./a/0001.seg.png", png((9, 9, 9))),
        ("b/0001.json", json.dumps({"cls": 1, "caption": "x"}).encode()),
        ("b/0001.png", picture),
        ("0001.cls.txt", b"seven"),
        ("._0001.png", b"what some systems add"),
        ("0002.json", b'{"label": 5}'),
        ("0002.cls", b"0"),
        ("0002.jpg", picture),
        ("n0003.5.cls", b"1"),
        ("x" * 200 + "/0004.png", picture),
        ("x" * 200 + "/0004.cls", b"3"),
    ]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        index = index_shard(write_shard(tmp_path / "train-0.tar", members, form))
        assert list(index.keys) == ["a/0001", "b/0001", "0002", "x" * 200 + "/0004"]
        assert index.labels_N.tolist() == [2, 1, 0, 3]
        assert index.sizes_N.tolist() == [len(picture)] * 4


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"p")], r"sample 'a' has no label.*a\.cls.*'label' or 'cls'"),
        ([("a.png", b"p"), ("a.json", b'{"label": "cat"}')], "sample 'a' has no label"),
        ([("a.png", b"p"), ("a.json", b'{"label": true}')], "sample 'a' has no label"),
        ([("a.png", b"p"), ("a.json", b'{"label": -1}')], "sample 'a' has no label"),
        ([("a.png", b"p"), ("a.json", b"{")], r"a\.json is no JSON"),
        ([("a.png", b"p"), ("a.json", b"[" * 100_000)], r"a\.json is no JSON"),
        ([("a.png", b"p"), ("a.cls", b"-1")], r"a\.cls holds b'-1'.*whole number"),
        ([("a.png", b"p"), ("a.cls", b"9999999")], r"a\.cls holds b'9999999'"),
        ([("a.png", b"p"), ("a.cls", b"\x80\x04K\x01.")], r"a\.cls holds"),
        ([("a.cls", b"1")], "sample 'a' has a label but no picture"),
        ([("a.png", b"p"), ("a.jpg", b"p"), ("a.cls", b"1")], "sample 'a' has two pictures"),
        ([("a.cls", b" " * 1_048_577)], r"'a\.cls' takes 1048577 bytes, above the limit"),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path: Path, members: Members, message: str) -> None:
    shard = write_shard(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=message) as caught:
        index_shard(shard)
    assert str(caught.value).startswith(f"{shard}: ")


def damage(shard: Path, how: str) -> None:
    content = shard.read_bytes()
    if how == "header":
        content = content[:1024] + b"\xff" * 512 + content[1536:]
    elif how == "cut in a picture":
        content = content[: 512 + 10]
    elif how == "cut in a header":
        content = content[:1200]
    elif how == "text":
        content = b"no tar at all " * 100
    elif how == "negative size":
        # The second header sends its reader back to itself.
        header = bytearray(content[1024:1536])
        header[124:136] = (-512).to_bytes(12, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        content = content[:1024] + bytes(header) + content[1536:]
    shard.write_bytes(content)


@pytest.mark.parametrize("how", ["header", "cut in a picture", "cut in a header", "text", "negative size"])
def test_a_damaged_shard_is_named_and_never_taken_for_a_shorter_one(tmp_path: Path, how: str) -> None:
    picture, label = sample(0, 0)
    shard = write_shard(tmp_path / "train-0.tar", [picture, ("0000.txt", b"a caption"), label, *sample(1, 1)])
    damage(shard, how)
    with pytest.raises(DataError, match=r"train-0\.tar: .*copy the shard anew"):
        index_shard(shard)


def test_a_compressed_or_missing_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    for name in ("train-0.tar", "train-1.tar"):
        with pytest.raises(DataError, match="plain, uncompressed tar"):
            cached_index(tmp_path / name, tmp_path / "cache")


def test_links_are_not_followed_out_of_the_shard(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png((1, 1, 1)))
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("a.png")
            link.type, link.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(link)
        label = tarfile.TarInfo("a.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"0"))
    with pytest.raises(DataError, match="'a' has a label but no picture"):
        index_shard(tmp_path / "train-0.tar")


def test_a_broken_picture_is_named_by_shard_and_key(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 12, shards=1)
    write_shards(tmp_path, "test", 3, shards=1)
    broken = write_shard(tmp_path / "train-000001.tar", [("odd.png", b"no picture"), ("odd.cls", b"0")])
    sets = read(tmp_path)
    for pictures in (sets.train, sets.train.subset(np.arange(len(sets.train))[::-1])):
        with pytest.raises(DataError, match=rf"{broken}, sample 'odd': cannot be decoded"):
            reds(pictures)


def test_shards_that_change_while_training_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 12, shards=1)
    pictures = read(tmp_path).train
    shard = pictures.shards[0]
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match="ends before sample"):
        reds(pictures)
    shard.unlink()
    with pytest.raises(DataError, match="bring the shard back"):
        reds(pictures)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "cat\ndog \n\u00e9lan\n", ("cat", "dog", "\u00e9lan")),
        ("classnames.json", '["cat", "dog", "elk", "fox"]', "class 'fox' has 0 pictures"),
        ("classnames.json", '{"1": "dog", "0": "cat", "2": "elk"}', ("cat", "dog", "elk")),
        ("classes.txt", "cat\ncat\nelk", "'cat' stands twice"),
        ("classes.txt", "cat\n\nelk", "a name is empty"),
        ("classes.txt", "cat\ndog", r"is of class 2, but there are 2 classes, 0 to 1"),
        ("classnames.json", '{"1": "dog"}', "classnames.json: '0'; give"),
        ("classnames.json", "[1, 2, 3]", "must be a list of texts"),
        ("classnames.json", "[", "classnames.json: "),
    ],
)
def test_class_names_lie_beside_the_shards(
    tmp_path: Path, name: str, text: str, expected: str | tuple[str, ...]
) -> None:
    write_shards(tmp_path, "train", 12)
    write_shards(tmp_path, "test", 3)
    (tmp_path / name).write_text(text, encoding="utf-8")
    if isinstance(expected, tuple):
        assert read(tmp_path).train.class_names == expected
        return
    with pytest.raises(DataError, match=expected):
        read(tmp_path)


def test_classes_must_fit_together(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 6, classes=1)
    with pytest.raises(DataError, match="hold 1 classes, at least 2"):
        read(tmp_path)
    write_shards(tmp_path, "train", 6, classes=2)
    write_shards(tmp_path, "test", 6, classes=3, shards=1)
    with pytest.raises(DataError, match=r"test-000000\.tar: sample '0002' is of class 2, but there are 2 classes"):
        read(tmp_path)
    write_shards(tmp_path, "train", 3, classes=3)
    with pytest.raises(DataError, match="class '0' has 1 pictures"):
        read(tmp_path)


def test_an_index_is_kept_until_the_shard_changes(tmp_path: Path) -> None:
    shard, cache = tmp_path / "train-0.tar", tmp_path / "kept"
    write_shard(shard, sample(1, 0))
    first = cached_index(shard, cache)
    times = shard.stat()
    # Same size and time: what is kept answers, and the file is not read.
    shard.write_bytes(b"\xff" * times.st_size)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = cached_index(shard, cache)
    assert again.keys == first.keys
    for name in ("offsets_N", "sizes_N", "labels_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    write_shard(shard, [*sample(1, 0), *sample(2, 1)])
    assert list(cached_index(shard, cache).keys) == ["0001", "0002"]
    assert len(list(cache.iterdir())) == 1


def test_a_broken_or_forbidden_cache_is_no_error(tmp_path: Path) -> None:
    shard, cache = write_shard(tmp_path / "train-0.tar", sample(1, 0)), tmp_path / "kept"
    cached_index(shard, cache)
    for entry in cache.iterdir():
        entry.write_bytes(b"PK\x03\x04 torn")
    assert list(cached_index(shard, cache).keys) == ["0001"]
    (tmp_path / "file").write_text("where a folder should be")
    assert list(cached_index(shard, tmp_path / "file").keys) == ["0001"]


def test_the_cache_lies_where_the_system_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache() == tmp_path / "cache" / "offramp" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "offramp" / "shards"


def test_a_fingerprint_tells_keys_sizes_and_labels_but_not_the_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "one", "train", 8, shards=1, classes=2)
    samples = [member for number in range(8) for member in sample(number, number % 2)]
    write_shard(tmp_path / "two" / "train-0.tar", samples[:6])
    write_shard(tmp_path / "two" / "train-1.tar", samples[6:])
    write_shard(tmp_path / "label" / "train-0.tar", [*samples[:-1], (samples[-1][0], b"0")])
    write_shard(tmp_path / "key" / "train-0.tar", [*samples[:-2], ("000x.png", samples[-2][1]), ("000x.cls", b"1")])
    for name in ("one", "two", "label", "key"):
        write_shards(tmp_path / name, "test", 2, classes=2)
    one, two, label, key = (read(tmp_path / name).train.fingerprint() for name in ("one", "two", "label", "key"))
    assert one == two
    assert len({one, label, key}) == 3
    assert read(tmp_path / "one").train.subset(np.arange(3)).fingerprint() != one


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("plain.tar", ["plain.tar"]),
        ("t-{08..10}.tar", ["t-08.tar", "t-09.tar", "t-10.tar"]),
        ("{train-{0..1},val-{0,7}}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-7.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
    ],
)
def test_braces_are_spelled_out_as_a_shell_does(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..3.tar", "lacks its partner"),
        ("0..3}.tar", "lacks its partner"),
        ("{3..0}.tar", "must rise"),
        ("{0..99999999}.tar", "at most 100000"),
        ("{0..999}{0..999}.tar", "more than 100000"),
        ("{train}.tar", "neither a range"),
    ],
)
def test_malformed_patterns_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand_braces(pattern)


def test_a_pattern_names_the_training_shards_and_test_shards_beside_are_found(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "train", 30, shards=4)
    write_shards(tmp_path / "set", "val", 6, first=100)
    for dataset, root in (
        ("set/train-{000000..000001}.tar", tmp_path),
        (f"{tmp_path}/set/train-00000{{0,1}}.tar", Path()),
    ):
        sets = read(dataset, root)
        assert sorted(reds(sets.train)) == [n for n in range(30) if n % 4 < 2]
        assert sorted(reds(sets.test)) == list(range(100, 106))
        assert "(2 train, 2 val)" in sets.source
    named = read(f"{tmp_path}/set/{{train-{{000000..000003}},val-000001}}.tar")
    assert len(named.train) == 30
    assert sorted(reds(named.test)) == [101, 103, 105]


def test_names_without_a_part_are_training_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, "pets", 12)
    assert len(read(f"{tmp_path}/pets-{{000000..000001}}.tar").train) == 9
    assert find_shards(str(tmp_path), tmp_path) is None


def test_parts_are_told_by_whole_words(tmp_path: Path) -> None:
    for name in ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "strain-0.tar", "Train_1.tar"):
        (tmp_path / name).touch()
    files = find_shards(str(tmp_path), tmp_path)
    assert files is not None
    assert [path.name for path in files.train] == ["Train_1.tar", "imagenet1k-train-0000.tar"]
    assert [path.name for path in files.test] == ["imagenet1k-validation-00.tar"]
    (tmp_path / "test.tar").touch()
    files = find_shards(str(tmp_path), tmp_path)
    assert files is not None
    assert [path.name for path in files.test] == ["test.tar"]
    assert "(2 train, 1 test; val unused)" in files.title


def test_a_tree_of_classes_goes_before_the_archives_beside_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(3):
            path = tmp_path / "train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png((i, 0, 0)))
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    assert load_splits(str(tmp_path), None, PREPROCESSING).class_names == ("a", "b")


def test_shards_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 12)
    with pytest.raises(DataError, match=r"2 of 4 are not there, such as .*000002\.tar.*in quotes"):
        load_splits("train-{000000..000003}.tar", tmp_path, PREPROCESSING)
    write_shards(tmp_path, "val", 3)
    with pytest.raises(DataError, match="names no training shards"):
        load_splits("val-{000000..000001}.tar", tmp_path, PREPROCESSING)
    with pytest.raises(DataError, match="names a shard twice"):
        load_splits("train-{000000,000000}.tar", tmp_path, PREPROCESSING)


def test_names_are_a_sequence_of_texts_of_any_bytes() -> None:
    texts = ["a", "", "\u00e9/\u00fc.png", os.fsdecode(b"\xff.jpg")]
    names = Names(texts)
    assert list(names) == [names[i] for i in range(4)] == texts
    assert names[-1] == texts[-1]
    assert list(names[1:3]) == texts[1:3]
    assert names == Names(tuple(texts)) != Names(texts[:3])
    assert list(Names.joined([names, Names(), names])) == [*texts, *texts]
    assert list(Names.joined([])) == []
    with pytest.raises(IndexError):
        names[4]
