"""What a bundle answers by `offramp evaluate`'s own code, picture by picture, and where a server's answers differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.load import Record
from models.bundle import Bundle
from models.exit_policy import ExitRule, exits_taken
from training.build import check_labels
from training.data import Batches, load_splits
from training.evaluate import calibrated, collect_logits

BATCH_SIZE = 256


@dataclass(frozen=True)
class Reference:
    """Calibrated confidence (N, K), class and runner-up's confidence at every exit, and the true classes (N)."""

    confidence_NK: npt.NDArray[np.float32]
    second_NK: npt.NDArray[np.float32]
    class_id_NK: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]

    def exits(self, threshold: float) -> npt.NDArray[np.int64]:
        """The exit (1..K) each picture leaves at."""
        return exits_taken(self.confidence_NK, ExitRule.uniform(threshold, self.confidence_NK.shape[1]))


def evaluate_bundle(bundle: Bundle, dataset: str, data_root: Path, limit: int) -> Reference:
    """Run the first `limit` test pictures (0: all) through every exit on the CPU, in float32.

    Raises ValueError where the bundle's labels are not the data set's.
    """
    splits = load_splits(dataset, data_root, bundle.preprocessing)
    check_labels(bundle.labels, splits.class_names)
    test = splits.test
    subset = test.subset(np.arange(min(limit or len(test), len(test))))
    batches = Batches(subset, BATCH_SIZE, torch.device("cpu"), shuffle=False, drop_last=False)
    outputs = collect_logits(bundle.net, batches, bundle.preprocessing)
    best = calibrated(outputs, bundle.calibration).topk(2, dim=2)
    return Reference(
        confidence_NK=best.values[:, :, 0].T.numpy(),
        second_NK=best.values[:, :, 1].T.numpy(),
        class_id_NK=best.indices[:, :, 0].T.numpy(),
        labels_N=outputs.labels_N.numpy(),
    )


@dataclass(frozen=True)
class Difference:
    """A picture that was served otherwise than evaluated.

    distance: how far the evaluated confidence is from where the decision would turn: from the threshold, at the
    shallower of the two exits; from the runner-up's confidence where only the class differs.
    """

    picture: int
    threshold: float
    served_exit: int
    evaluated_exit: int
    served_class_id: int
    evaluated_class_id: int
    distance: float


def differences(records: Sequence[Record], reference: Reference, threshold: float) -> list[Difference]:
    """Every answer to `threshold` whose exit or class is not the evaluated one."""
    exit_N, found = reference.exits(threshold), []
    for record in records:
        assert record.exit is not None
        assert record.class_id is not None
        n, exit = record.picture, int(exit_N[record.picture])
        class_id = int(reference.class_id_NK[n, exit - 1])
        if (record.exit, record.class_id) == (exit, class_id):
            continue
        if record.exit != exit:
            distance = abs(float(reference.confidence_NK[n, min(exit, record.exit) - 1]) - threshold)
        else:
            distance = float(reference.confidence_NK[n, exit - 1] - reference.second_NK[n, exit - 1])
        found.append(Difference(n, threshold, record.exit, exit, record.class_id, class_id, distance))
    return found


def largest_confidence_difference(records: Sequence[Record], reference: Reference) -> float:
    """Between served and evaluated confidence at the exit that was served; 0 for no records."""
    return max(
        (
            abs(record.confidence - float(reference.confidence_NK[record.picture, record.exit - 1]))
            for record in records
            if record.confidence is not None and record.exit is not None
        ),
        default=0.0,
    )
