"""Class-balanced hold-outs that are the same on every machine."""

from __future__ import annotations

import numpy as np

from offramp.training.data.image_set import DataError, Int64Array

HOLDOUT_SEED = 0
"""Seed of every hold-out, independent of the training seed: all runs, resumed or repeated, share one split."""


def fraction_count(labels_N: Int64Array, fraction: float) -> int:
    """Number of pictures in `fraction` of the set, at least one a class."""
    return max(round(len(labels_N) * fraction), len(np.unique(labels_N)))


def stratified_holdout(labels_N: Int64Array, count: int, seed: int) -> tuple[Int64Array, Int64Array]:
    """Split indices into (kept, held out), each sorted. `count` are held out, in proportion to class sizes.

    Every class gives at least one picture and keeps at least one. A pure function of its arguments.
    Raises DataError when `count` is out of range or a class has a single picture.
    """
    classes, sizes = np.unique(labels_N, return_counts=True)
    if len(classes) and sizes.min() < 2:
        raise DataError(
            f"class {classes[sizes.argmin()]} has a single picture, which cannot be both kept and held out; "
            "add pictures to it or remove the class"
        )
    if not len(classes) <= count <= len(labels_N) - len(classes):
        raise DataError(
            f"cannot hold out {count} of {len(labels_N)} pictures in {len(classes)} classes: "
            f"choose {len(classes)} to {len(labels_N) - len(classes)}, so that each class keeps and gives at "
            "least one"
        )
    # NumPy guarantees the stream of RandomState; that of default_rng may change between releases.
    random = np.random.RandomState(seed)
    held_out = [
        random.permutation(np.flatnonzero(labels_N == label))[:share]
        for label, share in zip(classes, _shares(sizes, count), strict=True)
    ]
    held_out_M = np.sort(np.concatenate(held_out)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels_N)), held_out_M), held_out_M


def _shares(sizes: Int64Array, count: int) -> Int64Array:
    """Pictures to hold out of each class: proportional by largest remainder, within 1..size-1."""
    ideal = sizes * (count / sizes.sum())
    shares: Int64Array = np.clip(np.floor(ideal), 1, sizes - 1).astype(np.int64)
    while shares.sum() != count:
        step = 1 if shares.sum() < count else -1
        movable = (shares < sizes - 1) if step > 0 else (shares > 1)
        gap = np.where(movable, step * (ideal - shares), -np.inf)
        shares[gap.argmax()] += step
    return shares
