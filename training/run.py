"""A whole training run: data in, checkpoint every epoch, calibrated bundle out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from models.bundle import NAME
from models.config import ModelConfig
from models.device import choose_device
from models.multi_exit import MultiExitNet
from models.preprocess import Preprocessing
from training.data import Batches, FolderSet, ImageSet, Splits, load_splits
from training.options import TrainOptions
from training.recipes import RECIPES, Recipe
from training.trainer import EpochReport, Precision, Progress, Trainer, resolve_precision

STATISTICS_SAMPLE = 5_000
VALIDATION_BATCH = 500


def check_precision(name: str) -> Precision:
    """Raises ValueError for a name that is none of auto, fp32, bf16."""
    for precision in get_args(Precision):
        if name == precision:
            return precision  # type: ignore[no-any-return]
    raise ValueError(f"precision {name!r} is unknown: give one of {', '.join(get_args(Precision))}")


def build_recipe(options: TrainOptions, preprocessing: Preprocessing) -> Recipe:
    """The named recipe with the options' changes. Raises ValueError for an unknown name."""
    if options.recipe not in RECIPES:
        raise ValueError(f"recipe {options.recipe!r} is unknown: choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[options.recipe]() if options.epochs is None else RECIPES[options.recipe](options.epochs)
    given = {name: getattr(options, name) for name in ("batch_size", "learning_rate", "alpha", "beta")}
    red, green, blue = (round(255 * mean) for mean in preprocessing.mean)
    augmentation = replace(recipe.augmentation, mean_colour=(red, green, blue))
    return replace(recipe, augmentation=augmentation, **{k: v for k, v in given.items() if v is not None})


def channel_statistics(dataset: ImageSet | FolderSet) -> Preprocessing:
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
    return Preprocessing(picture_HWC.shape[0], mean=(red, green, blue), std=(red_std, green_std, blue_std))


@dataclass(frozen=True)
class Run:
    """A run ready to train: its data, its trainer, and what identifies it."""

    options: TrainOptions
    splits: Splits
    preprocessing: Preprocessing
    trainer: Trainer


def prepare(options: TrainOptions) -> Run:
    """Load the data, build network and trainer, take up the checkpoint where `resume` asks for it.

    Raises ValueError (DataError, CheckpointError) naming the option or file at fault, and when `output`
    holds a run already and resuming was not asked for.
    """
    bundle_name(options)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is a file: give a folder as --output")
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise ValueError(f"{options.output} holds a run already: add --resume to continue it, or give another --output")
    device = choose_device(options.device)
    dtype = resolve_precision(check_precision(options.precision), device)
    cifar = options.dataset in ("cifar10", "cifar100")
    size = options.input_size or (32 if cifar else 64)
    splits = load_splits(options.dataset, options.data_root, Preprocessing(size))
    preprocessing = channel_statistics(splits.train)
    recipe = build_recipe(options, preprocessing)
    if options.batch_size is None and recipe.batch_size > len(splits.train) // 4:
        # A folder of a few pictures: at least four steps an epoch, rather than none.
        recipe = replace(recipe, batch_size=max(2, len(splits.train) // 4))
    config = ModelConfig(options.architecture, len(splits.class_names), options.width, size)
    torch.manual_seed(options.seed)
    trainer = Trainer(
        MultiExitNet(config),
        recipe,
        Batches(splits.train, recipe.batch_size, device, shuffle=True, drop_last=True, workers=options.workers),
        Batches(
            splits.calibration,
            VALIDATION_BATCH,
            device,
            shuffle=False,
            drop_last=False,
            workers=options.workers,
        ),
        preprocessing,
        device=device,
        dtype=dtype,
        seed=options.seed,
        checkpoint=checkpoint,
        identity={"data": splits.train.fingerprint(), "precision": str(dtype)},
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if options.resume:
        trainer.resume()
    return Run(options, splits, preprocessing, trainer)


def bundle_name(options: TrainOptions) -> str:
    """The model's name: as given, else after data set and architecture. Raises ValueError for an unusable one."""
    if options.name is None:
        folder = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(options.dataset).resolve().name)[:40].strip("-._")
        return f"{folder}-{options.architecture}".lstrip("-")
    if not NAME.fullmatch(options.name):
        raise ValueError(f"name {options.name!r} is not usable: give up to 64 letters, digits, '.', '_' or '-'")
    return options.name


def train(
    run: Run,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train the epochs that are left, one JSON line an epoch in `log.jsonl`."""
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


def check_labels(labels: Sequence[str], class_names: Sequence[str]) -> None:
    """Raises ValueError when a data set's classes are not the bundle's, in the same order."""
    if tuple(labels) != tuple(class_names):
        strange = sorted(set(labels) ^ set(class_names))
        raise ValueError(
            f"the data set has {len(class_names)} classes, the bundle {len(labels)}; they differ in "
            f"{', '.join(strange[:5]) or 'their order'}: give the data set that the bundle was trained on"
        )
