"""A whole training run: data in, checkpoints, calibrated bundle out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch

from offramp.models.device import choose_device, device_errors
from offramp.models.preprocess import Channels, Preprocessing
from offramp.training.build import (
    Sources,
    build_method,
    build_network,
    build_preprocessing,
    build_recipe,
    bundle_name,
    load_sources,
    with_margins,
)
from offramp.training.certify.held_out import check_start
from offramp.training.data import Batches, FolderSet, ImageSet, Splits, load_splits
from offramp.training.distributed import World, synchronized_batch_norm
from offramp.training.epoch import EpochReport, Progress
from offramp.training.options import TrainOptions
from offramp.training.precision import resolve_precision
from offramp.training.recipes import Recipe
from offramp.training.teacher import external_teacher
from offramp.training.trainer import ALONE, Trainer

STATISTICS_SAMPLE = 5_000
VALIDATION_BATCH = 500

# The advice for a full GPU.
MEMORY = "give --accumulate a larger number, with --resume to continue; or lower --batch-size and start anew"


def channel_statistics(dataset: ImageSet | FolderSet) -> tuple[Channels, Channels]:
    """Mean and std per channel (0..1 scale, rounded to 4 digits) of up to 5,000 evenly spread training pictures."""
    sample = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), STATISTICS_SAMPLE)).astype(int))
    # Sums of integers, one picture at a time: exact, and large pictures need little memory.
    pixels, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for index in sample.tolist():
        picture_HWC = dataset.images_NHWC[index] if isinstance(dataset, ImageSet) else dataset[index][0]
        values = picture_HWC.reshape(-1, 3).astype(np.int64)
        pixels += len(values)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
    mean = total / pixels
    std = np.sqrt(squares / pixels - mean**2)
    red, green, blue = (mean / 255.0).round(4).tolist()
    red_std, green_std, blue_std = (std / 255.0).round(4).clip(0.01).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. name: of its bundle. sources: the bundles that it learns from."""

    options: TrainOptions
    name: str
    sources: Sources
    splits: Splits
    preprocessing: Preprocessing
    trainer: Trainer


@device_errors("give a smaller --width or --device cpu")
def prepare(options: TrainOptions, world: World = ALONE, device: torch.device | None = None) -> Run:
    """Load the data, build network and trainer, and load the checkpoint with `resume`.

    world, device: from `offramp.training.distributed.join_processes`, for several processes; None takes
    `options.device`.
    Raises ValueError (DataError, CheckpointError) that names the wrong option or file, and when `output` holds a run
    and `resume` is off.
    """
    sources = load_sources(options)
    name = bundle_name(options, sources.start)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is a file: give a folder as --output")
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise ValueError(f"{options.output} holds a run already: add --resume to continue it, or give another --output")
    device = device or choose_device(options.device)
    dtype = resolve_precision(options.precision, device)
    unscaled = build_preprocessing(options, sources.start)
    size = unscaled.size
    splits = load_splits(options.dataset, options.data_root, unscaled, options.calibration_size)
    for path, bundle in ((options.start_from, sources.start), (options.teacher, sources.teacher)):
        if path is not None and bundle is not None:
            check_start(path, bundle, splits)
    mean, std = channel_statistics(splits.train)
    preprocessing = replace(unscaled, mean=mean, std=std)
    recipe = build_recipe(options, preprocessing)
    if options.batch_size is None and recipe.batch_size > len(splits.train) // (4 * world.size):
        # A folder with few pictures gets at least four steps in an epoch.
        recipe = replace(recipe, batch_size=max(2, len(splits.train) // (4 * world.size)))
    teacher = None
    if options.teacher is not None and sources.teacher is not None:
        weight, temperature = options.teacher_weight, options.teacher_temperature
        classes = splits.class_names
        teacher = external_teacher(sources.teacher, options.teacher, size, classes, device, weight, temperature)
    method = build_method(options)
    synchronized = options.sync_bn and world.size > 1
    torch.manual_seed(options.seed)
    net = build_network(options, method, splits.class_names, size, sources.start)
    trainer = Trainer(
        synchronized_batch_norm(net, device) if synchronized else net,
        method,
        recipe,
        *_batches(options, splits, recipe, device, world),
        preprocessing,
        device=device,
        dtype=dtype,
        seed=options.seed,
        checkpoint=checkpoint,
        teacher=teacher,
        checkpoint_s=60.0 * options.checkpoint_minutes,
        world=world,
        identity={
            "data": splits.train.fingerprint(),
            "precision": str(dtype),
            "sync_bn": synchronized,
            **sources.identity(options),
        },
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if options.resume:
        trainer.resume()
    return Run(options, name, sources, splits, preprocessing, trainer)


def _batches(
    options: TrainOptions, splits: Splits, recipe: Recipe, device: torch.device, world: World
) -> tuple[Batches, Batches]:
    """This process's share of the training pictures, and of the calibration pictures."""
    share = partial(Batches, device=device, workers=options.workers, rank=world.rank, world_size=world.size)
    return (
        share(with_margins(splits.train, recipe), recipe.batch_size, shuffle=True, drop_last=True),
        share(splits.calibration, VALIDATION_BATCH),
    )


@device_errors(MEMORY, "--resume continues from the last checkpoint")
def train(
    run: Run,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train the epochs that are left. The leader writes one JSON line for each epoch into `log.jsonl`."""
    if not run.trainer.world.leader:
        run.trainer.fit()
        return
    log = run.options.output / "log.jsonl"
    with log.open("w") as lines:

        def write(report: EpochReport) -> None:
            try:
                lines.write(json.dumps(asdict(report)) + "\n")
                lines.flush()
            except OSError as error:
                raise ValueError(
                    f"{log}: cannot be written ({error.strerror}); free disk space, then --resume"
                ) from error

        def record(report: EpochReport) -> None:
            write(report)
            on_epoch(report)

        # The log is rewritten from the checkpoint, because a run that ends between checkpoint and log leaves a gap.
        for report in run.trainer.history:
            write(report)
        run.trainer.fit(record, on_step)
