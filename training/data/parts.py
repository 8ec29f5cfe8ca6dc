"""Train and test of a data set that is still undecoded, and what each class needs to be split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from training.data.errors import DataError
from training.data.image_set import FolderSet, ImageSet
from training.data.shard_set import ShardSet
from training.data.stratify import fraction_count, stratified_holdout

TEST_FRACTION = 0.1

Pictures = ImageSet | FolderSet | ShardSet
Undecoded = TypeVar("Undecoded", FolderSet, ShardSet)


@dataclass(frozen=True)
class Parts(Generic[Undecoded]):
    """Train and test, and in words what was read and how it was split."""

    train: Undecoded
    test: Undecoded
    source: str


def hold_out_test(everything: Undecoded, seed: int, place: object, title: str) -> Parts[Undecoded]:
    """A tenth of `everything`, at least one a class, as test, stratified by `seed`; `source` says so.

    place: where the pictures lie, for the message. Raises DataError for a class of fewer than three pictures.
    """
    check_class_sizes(everything, 3, "train, calibration and test", place)
    count = fraction_count(everything.labels_N, TEST_FRACTION)
    kept, held = stratified_holdout(everything.labels_N, count, seed)
    source = f"{title}; no test/ or val/, so {count} test pictures held out (seed {seed})"
    return Parts(everything.subset(kept), everything.subset(held), source)


def check_class_sizes(pictures: FolderSet | ShardSet, least: int, parts: str, place: object) -> None:
    """Raises DataError naming `place` and the smallest class when it has fewer than `least` pictures."""
    sizes = np.bincount(pictures.labels_N, minlength=len(pictures.class_names))
    if sizes.min() < least:
        raise DataError(
            f"{place}: class {pictures.class_names[sizes.argmin()]!r} has {sizes.min()} pictures to "
            f"learn from, at least {least} are needed, one each for {parts}; add pictures or remove the class"
        )
