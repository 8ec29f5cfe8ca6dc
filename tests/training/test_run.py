"""A run from its options: data, network, recipe, log, and what is refused before any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.models.preprocess import Preprocessing
from offramp.training.checkpoint import CheckpointError
from offramp.training.data import FolderSet, ImageSet
from offramp.training.epoch import EpochReport, Progress
from offramp.training.options import TrainOptions
from offramp.training.run import channel_statistics, prepare, train


class Stop(Exception):
    """Ends a run where a signal would."""


def log_of(options: TrainOptions) -> list[dict]:
    return [json.loads(line) for line in (options.output / "log.jsonl").read_text().splitlines()]


def test_options_become_network_recipe_and_data(tree_options: TrainOptions) -> None:
    run = prepare(replace(tree_options, alpha=0.1, beta=0.0, learning_rate=0.02))
    config, recipe, method = run.trainer.net.config, run.trainer.recipe, run.trainer.method
    assert (config.architecture, config.width, config.input_size, config.num_classes) == ("resnet18", 4, 16, 3)
    assert (recipe.name, recipe.epochs, recipe.batch_size) == ("short", 1, 8)
    assert (method.name, method.alpha, method.beta, recipe.learning_rate) == ("journal", 0.1, 0.0, 0.02)
    assert recipe.augmentation.mean_colour == tuple(round(255 * mean) for mean in run.preprocessing.mean)
    assert run.splits.class_names == ("blue", "green", "red")
    assert (len(run.splits.train), len(run.splits.calibration), len(run.splits.test)) == (27, 3, 12)
    assert run.trainer.train.dataset is run.splits.train
    assert run.trainer.validation.dataset is run.splits.calibration
    assert run.trainer.identity["data"] == run.splits.train.fingerprint()


def test_a_seed_gives_the_same_weights_every_time(tree_options: TrainOptions) -> None:
    first, second = prepare(tree_options).trainer.net, prepare(tree_options).trainer.net
    other = prepare(replace(tree_options, seed=1)).trainer.net
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_gpu_that_is_full_ends_a_run_in_a_sentence_and_resuming_in_smaller_parts_goes_on(
    tree_options: TrainOptions,
) -> None:
    options = replace(tree_options, epochs=2, checkpoint_minutes=0.0)

    def full(progress: Progress) -> None:
        if progress.epoch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nIf reserved memory is large")

    with pytest.raises(ValueError, match=r"^CUDA out of memory.*2.00 GiB; give --accumulate .*--resume.*--batch-size"):
        train(prepare(options), on_step=full)
    resumed = prepare(replace(options, resume=True, accumulate=2))
    assert resumed.trainer.epoch == 1
    train(resumed)
    assert resumed.trainer.epoch == 2


def test_the_log_has_a_line_for_each_epoch_also_after_resuming(tree_options: TrainOptions) -> None:
    options = replace(tree_options, epochs=3, checkpoint_minutes=0.0)

    def stop_in_the_third(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        train(prepare(options), on_step=stop_in_the_third)
    assert [line["epoch"] for line in log_of(options)] == [1, 2]
    # Killed after the checkpoint, before the line was written.
    (options.output / "log.jsonl").write_text(json.dumps(log_of(options)[0]) + "\n")
    reports: list[EpochReport] = []
    run = prepare(replace(options, resume=True))
    train(run, on_epoch=reports.append)
    assert [report.epoch for report in reports] == [3]
    assert log_of(options) == json.loads(json.dumps([asdict(report) for report in run.trainer.history]))
    assert [line["epoch"] for line in log_of(options)] == [1, 2, 3]


def test_a_finished_run_resumes_to_nothing_left(tree_options: TrainOptions) -> None:
    train(prepare(tree_options))
    before = (tree_options.output / "log.jsonl").read_bytes()
    reports: list[EpochReport] = []
    train(prepare(replace(tree_options, resume=True)), on_epoch=reports.append)
    assert reports == []
    assert (tree_options.output / "log.jsonl").read_bytes() == before


def test_a_run_is_never_overwritten_by_accident(tree_options: TrainOptions) -> None:
    train(prepare(tree_options))
    with pytest.raises(ValueError, match=r"run holds a run already: add --resume to continue it, or give another"):
        prepare(tree_options)


def test_resuming_what_was_not_begun_is_refused(tree_options: TrainOptions) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: no checkpoint to resume from"):
        prepare(replace(tree_options, resume=True))


@pytest.mark.parametrize(
    ("changes", "field"), [({"seed": 1}, "seed"), ({"width": 5}, "model"), ({"epochs": 2}, "recipe epochs 1, not 2;")]
)
def test_resuming_with_other_options_is_refused(tree_options: TrainOptions, changes: dict, field: str) -> None:
    prepare(tree_options).trainer.save()
    with pytest.raises(CheckpointError, match=f"was trained with {field}"):
        prepare(replace(tree_options, resume=True, **changes))


def test_resuming_on_other_pictures_is_refused(tree_options: TrainOptions, write_tree: Callable[..., Path]) -> None:
    prepare(tree_options).trainer.save()
    write_tree(Path(tree_options.dataset), train_seed=7)
    with pytest.raises(CheckpointError, match="was trained with data "):
        prepare(replace(tree_options, resume=True))


def test_an_output_that_is_a_file_is_refused_before_any_work(tree_options: TrainOptions) -> None:
    tree_options.output.write_text("mine")
    with pytest.raises(ValueError, match="run is a file: give a folder as --output"):
        prepare(tree_options)


def test_channel_statistics_are_those_of_the_training_pixels(toy_set: ImageSet) -> None:
    scaled = toy_set.images_NHWC.reshape(-1, 3) / 255.0
    mean, std = channel_statistics(toy_set)
    assert mean == pytest.approx(scaled.mean(axis=0), abs=5.1e-5)
    assert std == pytest.approx(scaled.std(axis=0), abs=5.1e-5)


def test_channel_statistics_of_files_equal_those_in_memory(tree_options: TrainOptions) -> None:
    root = Path(tree_options.dataset)
    names = sorted(str(path.relative_to(root)) for path in root.glob("train/*/*.png"))
    labels_N = np.zeros(len(names), dtype=np.int64)
    files = FolderSet(root, tuple(names), labels_N, ("a",), Preprocessing(16))
    held = ImageSet(np.stack([files[index][0] for index in range(len(names))]), labels_N, ("a",))
    assert channel_statistics(files) == channel_statistics(held)


def test_pictures_of_one_colour_still_have_a_spread_to_divide_by() -> None:
    grey = ImageSet(np.full((3, 16, 16, 3), 51, np.uint8), np.zeros(3, np.int64), ("grey",))
    assert channel_statistics(grey) == ((0.2, 0.2, 0.2), (0.01, 0.01, 0.01))


def test_a_recipe_of_resized_crops_trains_on_parts_and_asks_about_the_centre(tree_options: TrainOptions) -> None:
    run = prepare(replace(tree_options, recipe="imagenet", input_size=32))
    assert (run.preprocessing.size, run.preprocessing.crop_fraction) == (32, 0.875)
    assert run.trainer.recipe.augmentation.resized_side == 32
    assert run.splits.test.images_NHWC.shape[1:] == (32, 32, 3)  # type: ignore[union-attr]
    train(run)
    assert run.trainer.epoch == 1
