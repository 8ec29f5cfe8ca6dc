"""A training step never waits for its device: no constant is copied to it, and nothing is read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.training.augment.augmentation import Policy
from offramp.training.augment.mixing import Mixing
from offramp.training.recipes import RECIPES
from offramp.training.trainer import Trainer

# What makes a stream wait: a tensor of Python values, a value of a tensor, a shape that depends on values.
WAITS = ("lift_fresh", "_local_scalar_dense", "bincount", "nonzero", "masked_select")


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to finish its work."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["none", "auto", "auto_imagenet", "rand", "trivial"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_copies_no_constant_to_the_device_and_reads_nothing_back(
    make_trainer: Callable[..., Trainer], recipe: str, policy: Policy
) -> None:
    made = RECIPES[recipe]()
    augmentation = replace(made.augmentation, policy=policy, erase=0.25)
    trainer = make_trainer(replace(made, batch_size=8, augmentation=augmentation, mixing=Mixing(0.2, 1.0)))
    images_BHWC, labels_B = next(trainer.train.epoch(0))
    # The first step makes the constants.
    for _ in range(2):
        with Waits() as waits:
            trainer.train_step(images_BHWC, labels_B, torch.Generator(), backbone_only=False)
    assert not waits.counts
