"""The pictures that a training run held out. No other pictures of its data set may calibrate and certify its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.models.bundle import Bundle
from offramp.training.data import Splits
from offramp.training.data.stratify import HOLDOUT_SEED


@dataclass(frozen=True)
class HeldOut:
    """The pictures held out of train.

    pictures: their number. seed: seed of the hold-out. fingerprint: SHA-256 of the pictures. data_fingerprint: SHA-256
    of the data set's whole train part, held-out pictures included.
    """

    pictures: int
    seed: int
    fingerprint: str
    data_fingerprint: str

    @classmethod
    def of(cls, splits: Splits) -> HeldOut:
        """The record of these splits."""
        return cls(len(splits.calibration), HOLDOUT_SEED, splits.calibration.fingerprint(), splits.fingerprint)

    @classmethod
    def recorded(cls, training: Mapping[str, Any]) -> HeldOut | None:
        """The record in a bundle's training record; None when it has none."""
        return cls(**training["held_out"]) if "held_out" in training else None

    @classmethod
    def required(cls, training: Mapping[str, Any]) -> HeldOut:
        """The record in a bundle's training record. Raises ValueError when it has none."""
        recorded = cls.recorded(training)
        if recorded is None:
            raise ValueError(
                "the bundle does not say which pictures its training held out, so some of these may have trained the "
                "weights: train it anew, or give --unseen if none of these pictures trained it"
            )
        return recorded


def calibration_size(recorded: HeldOut | None, wanted: int | None) -> int | None:
    """Number of pictures for calibration; None is the data set's default.

    Raises ValueError when training held out another number. Of more pictures, some trained the weights. Fewer pictures
    are not those that the bundle names.
    """
    if recorded is None:
        return wanted
    if recorded.seed != HOLDOUT_SEED:
        raise ValueError(
            f"the bundle's calibration pictures were held out by seed {recorded.seed}, this Offramp holds out by seed "
            f"{HOLDOUT_SEED}: pictures that trained it would certify it; calibrate with the Offramp that trained it"
        )
    if wanted not in (None, recorded.pictures):
        raise ValueError(
            f"--calibration-size {wanted} is not what training held out, {recorded.pictures}: pictures that trained "
            "the weights must never certify them; leave it out, or train with that size"
        )
    return recorded.pictures


def check_held_out(recorded: HeldOut | None, splits: Splits) -> None:
    """Raise ValueError when these splits do not hold out the pictures that training held out."""
    now = HeldOut.of(splits)
    if recorded is None or (recorded.pictures, recorded.fingerprint) == (now.pictures, now.fingerprint):
        return
    raise ValueError(
        f"the {now.pictures} pictures held out now are not the {recorded.pictures} that training held out: the data "
        "set has changed, and some may have trained the weights; give it as it was, or give --unseen if none of its "
        "pictures trained the bundle"
    )


def check_unseen(training: Mapping[str, Any], splits: Splits) -> None:
    """Raise ValueError when a bundle was trained on the data set that the operator calls unseen."""
    recorded = HeldOut.recorded(training)
    if recorded is not None and recorded.data_fingerprint == splits.fingerprint:
        raise ValueError(
            f"--unseen, but the bundle was trained on this very data ({splits.source}): pictures that trained it would "
            "certify it; leave --unseen out, or give pictures that it has not seen"
        )


def check_start(path: Path, bundle: Bundle, splits: Splits) -> None:
    """Raise ValueError when a run may hold out pictures that trained the bundle that it learns from.

    This is possible when the bundle held out another number of pictures of the same data set. A smaller hold-out is not
    always part of a larger one.
    """
    then, now = HeldOut.recorded(bundle.training), len(splits.calibration)
    if then is None or then.data_fingerprint != splits.fingerprint:
        return
    if (then.pictures, then.seed) != (now, HOLDOUT_SEED):
        raise ValueError(
            f"the bundle {path} held out {then.pictures} pictures, this run holds out {now}: some of them may have "
            f"trained the bundle and must not certify; add --calibration-size {then.pictures}, or start from another "
            "bundle"
        )
