"""Which files below a folder are pictures, and which are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offramp.models.pictures.picture import EXTENSIONS

DEAD_LINK, CIRCLE = "links that lead nowhere", "links back to a folder that is read already"


@dataclass(frozen=True)
class Found:
    """names: of the pictures, relative to the folder, with forward slashes, sorted part by part.

    left_out: how many files and links were not taken, by suffix or by what is wrong with them. Hidden files, whose
    names begin with a dot, count nowhere.
    """

    names: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_pictures(folder: Path) -> Found:
    """Files with a picture's suffix in `folder` and deeper, behind links, too; each folder is looked into once.

    Names that are not UTF-8 are taken, as Python spells them. Raises OSError for a folder that cannot be read.
    """
    found = Found()
    # The folders around this one as well: a link to one of them would bring in all that lies beside it.
    seen = {_identity(place) for place in (*folder.absolute().parents, *folder.resolve().parents)}
    folders, links = [(str(folder), "")], list[tuple[str, str]]()
    while folders or links:
        if not folders:
            # After all that is there itself, and by name: which way to a folder counts does not depend on the disk.
            links.sort(reverse=True)
            folders.append(links.pop())
        place, before = folders.pop()
        if (identity := _identity(place)) in seen:
            found.left_out[CIRCLE] += 1
            continue
        seen.add(identity)
        # On 100,000 files it takes a fifth of the time of Path.rglob: the kernel tells files from folders on the way.
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                match _kind(entry):
                    case "folder":
                        to_do = links if entry.is_symlink() else folders
                        to_do.append((entry.path, f"{before}{entry.name}/"))
                    case "picture":
                        found.names.append(before + entry.name)
                    case left_out:
                        found.left_out[left_out] += 1
    found.names.sort(key=lambda name: name.split("/"))
    return found


def listed(errors: Sequence[Exception], most: int = 10) -> str:
    """How many pictures cannot be decoded, and the first of them, a line each; of one, what is wrong with it."""
    if len(errors) == 1:
        return str(errors[0])
    named = "".join(f"\n  {error}" for error in errors[:most])
    more = f"\n  and {len(errors) - most} more" if len(errors) > most else ""
    return f"{len(errors)} pictures cannot be decoded:{named}{more}"


def printable(name: object) -> str:
    """A file's name for messages, bytes that are not UTF-8 spelled as \\xe9."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "picture", or why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        is_file = entry.is_file()
    except OSError:
        # A link that leads to itself, or to where nothing may be looked at.
        is_file = False
    if not is_file:
        return DEAD_LINK if entry.is_symlink() else "no files"
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path takes longer than all else here
    return "picture" if suffix in EXTENSIONS else printable(suffix or "without suffix")


def _identity(place: str | Path) -> tuple[int, int]:
    status = os.stat(place)  # noqa: PTH116
    return status.st_dev, status.st_ino
