"""Pictures a second of the training's data pipeline alone: read, decode, resize, batch, copy to the device.

The pipeline keeps a device busy if it is faster than the pictures a second that training reports. Every figure is of
whole epochs in a shuffled order, each after one that is not counted.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Document, interleave, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import publish
from benchmarks.options import PipelineOptions
from offramp.models.device import choose_device, hardware
from offramp.models.preprocess import Preprocessing
from offramp.training.data import Batches, FolderSet
from offramp.training.data.image_folder import read_image_folder

# Pictures whose mean file size is reported.
SIZED_PICTURES = 1_000


@dataclass(frozen=True)
class Epoch:
    """One epoch. cpu_ms: of all processes, for a picture; it stays the same where other programs take cores."""

    pictures_per_s: float
    cpu_ms: float
    cores_used: float


def run(options: PipelineOptions) -> None:
    """Measure the pipeline and write the result file."""
    publish(options.output, measure(options), section)


def measure(options: PipelineOptions) -> dict[str, Any]:
    """The result document. Raises DataError for pictures that cannot be used."""
    head, device = provenance("pipeline", options), choose_device(options.device)
    pictures = read_pictures(options)
    batches = {
        workers: Batches(pictures, options.batch_size, device, shuffle=True, drop_last=True, workers=workers)
        for workers in options.worker_counts()
    }
    # The first epoch starts the processes and brings the files into the page cache.
    ways = {workers: partial(measure_epoch, each) for workers, each in batches.items()}
    epochs = {workers: some[1:] for workers, some in interleave(ways, options.rounds + 1).items()}
    return {
        **head,
        "device": hardware(device),
        "threads": torch.get_num_threads(),
        "pictures": len(pictures),
        "mean_file_bytes": round(float(np.mean([path.stat().st_size for path in pictures.paths[:SIZED_PICTURES]]))),
        "size": options.size,
        "batch_size": options.batch_size,
        "rounds_each": options.rounds,
        "rows": [
            {"workers": workers, **spreads(some, "pictures_per_s", "cpu_ms", "cores_used")}
            for workers, some in epochs.items()
        ],
        "rounds": [
            {"workers": workers, "round": number, **vars(epoch)}
            for workers, some in epochs.items()
            for number, epoch in enumerate(some, start=1)
        ],
    }


def measure_epoch(batches: Batches, seed: int) -> Epoch:
    """One epoch, until its last batch is on the device."""
    before_s, start_s = cpu_s(), perf_counter()
    count = sum(len(labels_B) for _, labels_B in batches.epoch(seed))
    if batches.device.type == "cuda":
        torch.cuda.synchronize(batches.device)
    seconds, used_s = perf_counter() - start_s, cpu_s() - before_s
    return Epoch(count / seconds, 1e3 * used_s / count, used_s / seconds)


def cpu_s() -> float:
    """CPU time of this process and of its decoding processes; idle ones of other rows add nothing."""
    workers = [process.pid for process in multiprocessing.active_children()]
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in [os.getpid(), *workers] if pid is not None)


def read_pictures(options: PipelineOptions) -> FolderSet:
    """The training pictures, spread evenly over the folder. Raises BenchmarkError for a path that is no folder."""
    if not Path(options.path).is_dir():
        raise BenchmarkError(f"{options.path} is not a folder of classes")
    train = read_image_folder(Path(options.path), Preprocessing(options.size)).train
    count = min(len(train), options.pictures)
    return train.subset(np.unique(np.linspace(0, len(train) - 1, count).astype(np.int64)))


def section(document: Document) -> str:
    """The table with its conditions."""
    columns = {
        "workers": "{workers}",
        "pictures/s": "{pictures_per_s:.0f}",
        "CPU a picture, ms": "{cpu_ms:.2f}",
        "cores used": "{cores_used:.2f}",
    }
    how = (
        "{pictures:,} pictures of {mean_file_bytes:,} bytes to {size} pixels, batches of {batch_size} to {device}. "
        "Median (least–most) of {rounds_each} interleaved epochs; workers 0: decoded by the training process itself. "
        "CPU: of all processes. Load before: {machine[load_average_before]}."
    )
    return section_of(document, table(columns, document["rows"]), how)
