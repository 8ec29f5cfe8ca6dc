"""The embedded model's answers on the 15,000 CIFAR-100 pictures that did not train it, as a small file.

Made anew by `python -m tests.training.cached_answers DATA_ROOT`, from the repository's root.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from offramp.models.bundle import EMBEDDED, load_bundle
from offramp.training.data import Batches, load_splits
from offramp.training.evaluate.evaluation import calibrated, collect_logits
from offramp.training.evaluate.predictions import ExitPredictions

FILE = Path(__file__).with_name("cached_answers.npz")


def load() -> ExitPredictions:
    """Held-out pictures first, then test. Confidences are of float16, so that some are exactly 1."""
    with np.load(FILE) as stored:
        return ExitPredictions(
            stored["confidence_NK"].astype(np.float32),
            stored["class_id_NK"].astype(np.int64),
            stored["labels_N"].astype(np.int64),
        )


def make(data_root: Path) -> None:
    """Compute and write."""
    bundle = load_bundle(EMBEDDED)
    splits = load_splits("cifar100", data_root, bundle.preprocessing)
    parts = []
    for pictures in (splits.calibration, splits.test):
        batches = Batches(pictures, 256, torch.device("cpu"))
        outputs = collect_logits(bundle.net, batches, bundle.preprocessing)
        parts.append(ExitPredictions.of(calibrated(outputs, bundle.calibration), outputs.labels_N))
    np.savez_compressed(
        FILE,
        confidence_NK=np.concatenate([part.confidence_NK for part in parts]).astype(np.float16),
        class_id_NK=np.concatenate([part.class_id_NK for part in parts]).astype(np.uint8),
        labels_N=np.concatenate([part.labels_N for part in parts]).astype(np.uint8),
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]))
