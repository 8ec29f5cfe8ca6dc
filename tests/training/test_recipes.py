"""Recipes: the learning rate over a run, the journal paper's figures, refused values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from offramp.training.augment.augmentation import Augmentation
from offramp.training.recipes import RECIPES, Recipe, journal, short

STEPS = 390


def rate(recipe: Recipe, epoch: int, step: int = 0) -> float:
    """As the trainer asks for it."""
    return recipe.learning_rate * recipe.rate_at((epoch + step / STEPS) / recipe.epochs)


@pytest.mark.parametrize(
    ("epoch", "step", "expected"),
    [
        (0, 0, 0.1),
        (82, STEPS - 1, 0.1),
        (83, 0, 0.01),
        (165, STEPS - 1, 0.01),
        (166, 0, 0.001),
        (239, STEPS - 1, 0.001),
        (240, 0, 0.0001),
        (249, STEPS - 1, 0.0001),
    ],
)
def test_journal_divides_by_10_at_epochs_83_166_and_240(epoch: int, step: int, expected: float) -> None:
    assert rate(journal(), epoch, step) == pytest.approx(expected)


def test_journal_is_the_papers() -> None:
    recipe = journal()
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (250, 128, 0.9, 5e-4)
    assert recipe.decay_norms
    assert not recipe.nesterov
    augmentation = recipe.augmentation
    assert (augmentation.crop_padding, augmentation.flip, augmentation.policy, augmentation.cutout) == (
        4,
        True,
        "auto",
        16,
    )


def test_a_shorter_journal_keeps_the_shares_of_its_milestones() -> None:
    recipe = journal(50)
    assert [rate(recipe, epoch) for epoch in (16, 17, 33, 34, 48)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 1e-4])


def test_cosine_warms_up_linearly_then_falls_to_0() -> None:
    recipe = short()
    assert recipe.rate_at(0.0) == 0.0
    assert recipe.rate_at(0.05) == pytest.approx(0.5)
    assert recipe.rate_at(0.1) == pytest.approx(1.0)
    assert recipe.rate_at(0.1 + 0.9 / 3) == pytest.approx(0.75)
    assert recipe.rate_at(0.55) == pytest.approx(0.5)
    assert recipe.rate_at(1.0) == pytest.approx(0.0, abs=1e-12)
    after_peak = [recipe.rate_at(0.1 + 0.9 * step / 50) for step in range(51)]
    assert after_peak == sorted(after_peak, reverse=True)


def test_cosine_without_warm_up_starts_at_the_peak() -> None:
    assert replace(short(), warmup=0.0).rate_at(0.0) == 1.0


def test_recipes_are_found_by_their_own_names_and_take_a_length() -> None:
    for name, make in RECIPES.items():
        assert make().name == name
        assert make(7).epochs == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs 0 is out of range: train for at least 1 epoch"),
        ({"batch_size": 1}, "batch_size 1 is out of range: batch norm needs at least 2"),
        ({"learning_rate": 0.0}, r"learning_rate 0.0 is out of range: give a number in \(0, 10\]"),
        ({"learning_rate": 11.0}, "learning_rate 11.0 is out of range"),
        ({"learning_rate": math.nan}, "learning_rate nan is out of range"),
        ({"accumulate": 0}, "accumulate 0 is out of range: give 1 to 64"),
        ({"accumulate": 65}, "accumulate 65 is out of range: .* at least 2 pictures"),
        ({"optimizer": "adam"}, "optimizer 'adam' is unknown: choose sgd or muon"),
        ({"muon_rate": 0.0}, r"muon_rate 0.0 is out of range: give a number in \(0, 1\]"),
        ({"backbone_share": 1.0}, r"backbone_share 1.0 is out of range: give a share of the run in \[0, 1\)"),
        ({"ema": 1.0}, r"ema 1.0 is out of range: give a decay in \[0, 1\)"),
        ({"warmup": 1.0}, r"warmup 1.0 is out of range: give a share of the run in \[0, 1\)"),
        ({"schedule": "linear"}, "schedule 'linear' is unknown: choose 'steps' or 'cosine'"),
    ],
)
def test_unusable_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Recipe("toy", 3, Augmentation()), **changes)
