"""Which pictures a training run held out: only these may calibrate and certify what it trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.bundle import load_bundle
from training.data import Splits
from training.data.stratify import HOLDOUT_SEED

# How `training.data.splits` words it, for bundles that were made before there was a record.
WORDED = re.compile(r"(\d+) calibration pictures held out of train \(seed (\d+)\)")


@dataclass(frozen=True)
class HeldOut:
    """How many pictures were held out of train, by which seed, and their fingerprint, empty where unknown."""

    pictures: int
    seed: int
    fingerprint: str = ""

    @classmethod
    def of(cls, splits: Splits) -> HeldOut:
        """What these splits hold out."""
        return cls(len(splits.calibration), HOLDOUT_SEED, splits.calibration.fingerprint())

    @classmethod
    def recorded(cls, training: Mapping[str, Any]) -> HeldOut | None:
        """What a bundle's account of its training says; None where it says nothing."""
        if record := training.get("held_out"):
            return cls(int(record["pictures"]), int(record["seed"]), str(record["fingerprint"]))
        worded = WORDED.search(str(training.get("data", "")))
        return cls(int(worded[1]), int(worded[2])) if worded else None

    @classmethod
    def required(cls, training: Mapping[str, Any]) -> HeldOut:
        """What a bundle's account of its training says. Raises ValueError where it says nothing."""
        recorded = cls.recorded(training)
        if recorded is None:
            raise ValueError(
                "the bundle does not say which pictures its training held out, so that some of these may have trained "
                "the weights: train it anew, or say --unseen where none of these pictures did"
            )
        return recorded

    def as_json(self) -> dict[str, Any]:
        """For the bundle."""
        return asdict(self)


def calibration_size(recorded: HeldOut | None, wanted: int | None) -> int | None:
    """How many pictures calibration takes; None is the data set's default.

    Raises ValueError where training held out another number: of more pictures some would have trained the weights, and
    fewer would not be those that the bundle tells of.
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
    """Raises ValueError where these splits hold out other pictures than training did."""
    now = HeldOut.of(splits)
    if recorded is None or (recorded.pictures, recorded.fingerprint or now.fingerprint) == (
        now.pictures,
        now.fingerprint,
    ):
        return
    raise ValueError(
        f"the {now.pictures} pictures held out now are not the {recorded.pictures} that training held out: the data "
        "set has changed, and some may have trained the weights; give it as it was, or say --unseen where none of its "
        "pictures did"
    )


def check_unseen(training: Mapping[str, Any], splits: Splits) -> None:
    """Raises ValueError where a bundle says that it was trained on the very data set that is said to be unseen."""
    if _same_data(training, splits):
        raise ValueError(
            f"--unseen, but the bundle was trained on this very data ({_of(str(training.get('data', '')))}): pictures "
            "that trained it would certify it; leave --unseen out, or give pictures that it has not seen"
        )


def _same_data(training: Mapping[str, Any], splits: Splits) -> bool:
    return _of(str(training.get("data", ""))) == _of(splits.source)


def _of(source: str) -> str:
    """The data set that a source is of, however much of it was held out."""
    return WORDED.sub("", source).strip("; ")


def check_start(bundle: Path, splits: Splits) -> None:
    """Raises ValueError where a bundle that a run learns from may itself have learnt from pictures that the run holds
    out: where it held out another number of the same data set, since fewer are not always among more."""
    training = load_bundle(bundle).training
    then, now = HeldOut.recorded(training), len(splits.calibration)
    if then is not None and _same_data(training, splits) and (then.pictures, then.seed) != (now, HOLDOUT_SEED):
        raise ValueError(
            f"the bundle {bundle} held out {then.pictures} pictures, this run holds out {now}: some of them may have "
            f"trained the bundle and must not certify; add --calibration-size {then.pictures}, or start from another "
            "bundle"
        )
