"""Which tar files a data set's name stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from training.data.errors import DataError
from training.data.image_folder import class_folders

MOST_SHARDS = 100_000
TEST_PARTS = ("test", "val")
PART = re.compile(r"(?:^|[-_.])(train|test|val)(?:ing|idation)?(?=[-_.\d])")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class ShardFiles:
    """The shards of a data set by part. test may be empty. folder: where class names may lie. title: for cards."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    folder: Path
    title: str


def find_shards(dataset: str, root: Path) -> ShardFiles | None:
    """The shards of a folder with `…train….tar`, or of a pattern such as `train-{000..127}.tar`; None for others.

    Both are looked for as given, then below `root`. The parts are told by the words train, val(idation) and test in
    the names; in a pattern, a name without one is train, and where it names no test shards, those beside it are taken.
    Raises DataError for a pattern that is malformed or names shards that are not there.
    """
    places = [Path(dataset).expanduser(), root / dataset]
    for place in places:
        if place.is_dir():
            return _in_folder(place)
    if "{" not in dataset and not dataset.endswith(".tar"):
        return None
    return _in_pattern(dataset, places)


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` and `{a,b-{0..3}}.tar` spelled out, as a shell does. Raises DataError for a malformed one."""
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise DataError(f"shards {pattern!r}: a brace lacks its partner; write train-{{000..127}}.tar")
        return [pattern]
    end, commas = _matching_brace(pattern, start)
    body = pattern[start + 1 : end]
    numbers = RANGE.fullmatch(body)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MOST_SHARDS:
            raise DataError(f"shards {pattern!r}: {{{body}}} must rise, to at most {MOST_SHARDS} shards")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    elif commas:
        edges = [start, *commas, end]
        choices = [c for a, b in pairwise(edges) for c in expand_braces(pattern[a + 1 : b])]
    else:
        raise DataError(
            f"shards {pattern!r}: {{{body}}} is neither a range such as {{000..127}} nor a list such as {{a,b}}"
        )
    rests = expand_braces(pattern[end + 1 :])
    if len(choices) * len(rests) > MOST_SHARDS:
        raise DataError(f"shards {pattern!r}: names more than {MOST_SHARDS} shards; give fewer")
    return [pattern[:start] + choice + rest for choice in choices for rest in rests]


def _matching_brace(pattern: str, start: int) -> tuple[int, list[int]]:
    """Where the brace opened at `start` closes, and the commas between that belong to it."""
    depth = 0
    commas: list[int] = []
    for place, letter in enumerate(pattern[start:], start):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return place, commas
        if letter == "," and depth == 1:
            commas.append(place)
    raise DataError(f"shards {pattern!r}: a brace lacks its partner; write train-{{000..127}}.tar")


def _in_folder(folder: Path) -> ShardFiles | None:
    parts = _by_part(sorted(folder.glob("*.tar")))
    # The archives that a folder of classes was unpacked from may lie beside it.
    if "train" not in parts or class_folders(folder / "train"):
        return None
    test, which = _test_part(parts)
    return ShardFiles(parts["train"], test, folder, f"shards in {folder.resolve().name} ({_count(parts, which)})")


def _in_pattern(pattern: str, places: Sequence[Path]) -> ShardFiles:
    paths = _existing(pattern, places)
    folder = paths[0].parent
    parts = _by_part(paths)
    train = parts.get("train", ()) + parts.get("", ())
    if not train:
        raise DataError(f"shards {pattern!r}: names no training shards; name them too, as {{train-…,val-…}}.tar")
    if not _test_part(parts)[0]:
        beside = _by_part(sorted(folder.glob("*.tar")))
        parts |= {part: beside[part] for part in TEST_PARTS if part in beside}
    test, which = _test_part(parts)
    count = _count({**parts, "train": train}, which)
    return ShardFiles(train, test, folder, f"shards {Path(pattern).name} ({count})")


def _existing(pattern: str, places: Sequence[Path]) -> list[Path]:
    """The pattern's files, below the first place that has any."""
    for place in places:
        paths = [Path(name) for name in expand_braces(str(place))]
        missing = [path for path in paths if not path.is_file()]
        if len(missing) < len(paths):
            break
    if missing:
        raise DataError(
            f"shards {pattern!r}: {len(missing)} of {len(paths)} are not there, such as {missing[0]}. Looked at "
            f"{' and '.join(str(place.parent) for place in places)}; name those that are there, and in a shell put "
            "the pattern in quotes"
        )
    if len(set(paths)) < len(paths):
        raise DataError(f"shards {pattern!r}: names a shard twice; name each once")
    return paths


def _by_part(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    parts: dict[str, list[Path]] = {}
    for path in paths:
        word = PART.search(path.name.lower())
        parts.setdefault(word[1] if word else "", []).append(path)
    return {part: tuple(found) for part, found in parts.items()}


def _test_part(parts: dict[str, tuple[Path, ...]]) -> tuple[tuple[Path, ...], str]:
    which = next((part for part in TEST_PARTS if part in parts), "")
    return (parts[which], which) if which else ((), "")


def _count(parts: dict[str, tuple[Path, ...]], which: str) -> str:
    test = f", {len(parts[which])} {which}" if which else ""
    unused = "".join(f"; {part} unused" for part in TEST_PARTS if part in parts and part != which)
    return f"{len(parts['train'])} train{test}{unused}"
