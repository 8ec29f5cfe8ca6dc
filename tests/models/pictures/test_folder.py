"""Pictures below a folder: through links, never twice, and what is left out is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from offramp.models.pictures.folder import CIRCLE, DEAD_LINK, find_pictures, listed, printable


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_behind_links_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "deep" / "b.jpg", tmp_path / "cats" / "a.jpg")
    (tmp_path / "cats" / "more").symlink_to(tmp_path / "elsewhere")
    assert find_pictures(tmp_path / "cats").names == ["a.jpg", "more/deep/b.jpg"]


def test_a_folder_is_read_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    touch(tmp_path / "cats" / "z" / "a.jpg")
    for name in ("first", "second"):
        (tmp_path / "cats" / name).symlink_to(tmp_path / "cats" / "z")
    files = find_pictures(tmp_path / "cats")
    assert (files.names, files.left_out) == (["z/a.jpg"], {CIRCLE: 2})


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    cats, outside = tmp_path / "cats", tmp_path / "outside"
    touch(cats / "a.jpg", outside / "b.jpg", tmp_path / "dogs" / "c.jpg")
    for link, target in (("self", cats), ("up", tmp_path), ("out", outside)):
        (cats / link).symlink_to(target)
    (outside / "back").symlink_to(cats)
    (cats / "itself").symlink_to(cats / "itself")
    files = find_pictures(cats)
    assert (files.names, files.left_out) == (["a.jpg", "out/b.jpg"], {CIRCLE: 3, DEAD_LINK: 1})


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.JFIF", "b.heic", "c.HEIC", "README", ".hidden.jpg", "d.caf\udce9")))
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    files = find_pictures(tmp_path)
    assert files.names == ["a.JFIF"]
    assert files.left_out == {".heic": 2, "without suffix": 1, ".caf\\xe9": 1, DEAD_LINK: 1, "no files": 1}


def test_names_that_are_not_utf8_are_taken_and_can_be_told(tmp_path: Path) -> None:
    touch(tmp_path / "caf\udce9" / "\udcff.jpg")
    (name,) = find_pictures(tmp_path).names
    assert (tmp_path / name).is_file()
    assert printable(tmp_path / name) == f"{tmp_path}/caf\\xe9/\\xff.jpg"
    assert printable("café.jpg") == "café.jpg"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "0 is bad"),
        (2, "2 pictures cannot be decoded:\n  0 is bad\n  1 is bad"),
        (4, "4 pictures cannot be decoded:\n  0 is bad\n  1 is bad\n  and 2 more"),
    ],
)
def test_several_errors_are_listed_up_to_a_number(count: int, text: str) -> None:
    assert listed([ValueError(f"{i} is bad") for i in range(count)], most=2) == text
