"""Fixtures of the training tests: tiny pictures, tiny networks, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.training.augment.augmentation import Augmentation
from offramp.training.data import Batches, ImageSet
from offramp.training.methods import METHODS, Method
from offramp.training.options import TrainOptions
from offramp.training.recipes import Recipe
from offramp.training.trainer import Trainer

CLASSES = ("blue", "green", "red")
CPU = torch.device("cpu")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def coloured(count: int, seed: int, size: int = 16) -> ImageSet:
    """Noise with a strong tint that tells the class."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(count, dtype=np.int64) % len(CLASSES)
    images_NHWC = rng.integers(0, 120, (count, size, size, 3), dtype=np.uint8)
    images_NHWC[np.arange(count), :, :, 2 - labels_N] += 120
    return ImageSet(images_NHWC, labels_N, CLASSES)


@pytest.fixture
def toy_set() -> ImageSet:
    """24 pictures of 16 pixels in three classes that a network learns in a few epochs."""
    return coloured(24, seed=0)


@pytest.fixture
def toy_recipe() -> Recipe:
    """Every part of the loss and of the schedule, three epochs."""
    return Recipe(
        "toy",
        3,
        Augmentation(crop_padding=2, cutout=4),
        batch_size=8,
        learning_rate=0.05,
        nesterov=True,
        decay_norms=False,
        schedule="cosine",
        warmup=0.1,
    )


@pytest.fixture
def make_trainer(toy_set: ImageSet, tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of a ResNet-18 of width 4 on the toy set; `weights` seeds the network."""

    def make(
        recipe: Recipe,
        method: Method = METHODS["journal"],
        *,
        weights: int = 0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        file: str = "a.pt",
        **others: Any,
    ) -> Trainer:
        torch.manual_seed(weights)
        return Trainer(
            MultiExitNet(ModelConfig("resnet18", len(CLASSES), width=4, input_size=16)),
            method,
            recipe,
            Batches(toy_set, recipe.batch_size, CPU, shuffle=True, drop_last=True),
            Batches(coloured(12, seed=1), 12, CPU),
            Preprocessing(16),
            device=CPU,
            dtype=dtype,
            seed=seed,
            checkpoint=tmp_path / file,
            identity={"data": toy_set.fingerprint()},
            **others,
        )

    return make


@pytest.fixture
def write_tree() -> Callable[..., Path]:
    """Writes train/<class>/*.png and test/<class>/*.png; the seeds decide the pixels."""

    def write(root: Path, train_seed: int = 0, test_seed: int = 1) -> Path:
        for part, count, seed in (("train", 30, train_seed), ("test", 12, test_seed)):
            pictures = coloured(count, seed)
            for index, (image_HWC, label) in enumerate(zip(pictures.images_NHWC, pictures.labels_N, strict=True)):
                path = root / part / CLASSES[label] / f"{index:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image_HWC).save(path)
        return root

    return write


@pytest.fixture
def tree_options(write_tree: Callable[..., Path], tmp_path: Path) -> TrainOptions:
    """One tiny epoch on a made tree."""
    return TrainOptions(
        str(write_tree(tmp_path / "colours")),
        tmp_path / "run",
        width=4,
        input_size=16,
        epochs=1,
        batch_size=8,
        device="cpu",
        precision="float32",
        workers=0,
    )
