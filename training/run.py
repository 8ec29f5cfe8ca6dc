"""A whole training run: data in, checkpoints, calibrated bundle out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from models.device import choose_device, device_errors
from models.preprocess import Channels, Preprocessing
from training.build import (
    build_method,
    build_network,
    build_preprocessing,
    build_recipe,
    bundle_name,
    margins_kept,
    sources,
)
from training.data import Batches, FolderSet, ImageSet, ShardSet, Splits, load_splits
from training.distributed import World, synchronized_batch_norm
from training.epoch import EpochReport, Progress
from training.held_out import check_start
from training.options import TrainOptions
from training.precision import resolve_precision
from training.recipes import Recipe
from training.teacher import ExternalTeacher, load_teacher
from training.trainer import ALONE, Trainer

STATISTICS_SAMPLE = 5_000
VALIDATION_BATCH = 500

# For a GPU that is full.
MEMORY = "give --accumulate a larger number, with --resume to continue; or lower --batch-size and start anew"


def channel_statistics(dataset: ImageSet | FolderSet | ShardSet) -> tuple[Channels, Channels]:
    """Mean and std per channel (0..1 scale, rounded to 4 digits) of up to 5,000 evenly spread training pictures."""
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), STATISTICS_SAMPLE)).astype(int))
    # One picture at a time, as sums of integers: exact, and large pictures need no memory.
    pixels, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for index in picked.tolist():
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
    """A run ready to train: its data, its trainer, and what identifies it."""

    options: TrainOptions
    splits: Splits
    preprocessing: Preprocessing
    trainer: Trainer


@device_errors("give a smaller --width or --device cpu")
def prepare(options: TrainOptions, world: World = ALONE, device: torch.device | None = None) -> Run:
    """Load the data, build network and trainer, take up the checkpoint where `resume` asks for it.

    world, device: of a run by several processes (`training.distributed.joined`); else `options.device` decides.
    Raises ValueError (DataError, CheckpointError) naming the option or file at fault, and when `output`
    holds a run already and resuming was not asked for.
    """
    bundle_name(options)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is a file: give a folder as --output")
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise ValueError(f"{options.output} holds a run already: add --resume to continue it, or give another --output")
    device = device or choose_device(options.device)
    dtype = resolve_precision(options.precision, device)
    unscaled = build_preprocessing(options)
    size = unscaled.size
    splits = load_splits(options.dataset, options.data_root, unscaled, options.calibration_size)
    for learnt_from in filter(None, (options.start_from, options.teacher)):
        check_start(learnt_from, splits)
    mean, std = channel_statistics(splits.train)
    preprocessing = replace(unscaled, mean=mean, std=std)
    recipe = build_recipe(options, preprocessing)
    if options.batch_size is None and recipe.batch_size > len(splits.train) // (4 * world.size):
        # A folder of a few pictures: at least four steps an epoch, rather than none.
        recipe = replace(recipe, batch_size=max(2, len(splits.train) // (4 * world.size)))
    method = build_method(options)
    torch.manual_seed(options.seed)
    net = build_network(options, method, splits.class_names, size)
    trainer = Trainer(
        synchronized_batch_norm(net, device) if options.sync_bn and world.size > 1 else net,
        method,
        recipe,
        *_batches(options, splits, recipe, device, world),
        preprocessing,
        device=device,
        dtype=dtype,
        seed=options.seed,
        checkpoint=checkpoint,
        teacher=_teacher(options, splits, size, device),
        checkpoint_s=60.0 * options.checkpoint_minutes,
        world=world,
        identity={
            "data": splits.train.fingerprint(),
            "precision": str(dtype),
            "sync_bn": options.sync_bn and world.size > 1,
            **sources(options),
        },
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if options.resume:
        trainer.resume()
    return Run(options, splits, preprocessing, trainer)


def _teacher(options: TrainOptions, splits: Splits, input_size: int, device: torch.device) -> ExternalTeacher | None:
    if options.teacher is None:
        return None
    weight, temperature = options.teacher_weight, options.teacher_temperature
    return load_teacher(options.teacher, input_size, splits.class_names, device, weight, temperature)


def _batches(
    options: TrainOptions, splits: Splits, recipe: Recipe, device: torch.device, world: World
) -> tuple[Batches, Batches]:
    """This process's share of the training pictures, and of the calibration pictures."""
    train = Batches(
        margins_kept(splits.train, recipe),
        recipe.batch_size,
        device,
        shuffle=True,
        drop_last=True,
        workers=options.workers,
        rank=world.rank,
        world_size=world.size,
    )
    calibration = Batches(
        splits.calibration,
        VALIDATION_BATCH,
        device,
        shuffle=False,
        drop_last=False,
        workers=options.workers,
        rank=world.rank,
        world_size=world.size,
    )
    return train, calibration


@device_errors(MEMORY, "--resume continues from the last checkpoint")
def train(
    run: Run,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train the epochs that are left; the leader writes one JSON line an epoch into `log.jsonl`."""
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

        # From the checkpoint: a run that was killed between checkpoint and log has a gap there.
        for report in run.trainer.history:
            write(report)
        run.trainer.fit(record, on_step)
