"""When a run writes checkpoints: as often as asked, at its end and on Ctrl-C, and always of whole steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from offramp.training.checkpoint import load_checkpoint
from offramp.training.epoch import EpochReport, Progress
from offramp.training.recipes import Recipe
from offramp.training.trainer import Trainer
from tests.training.test_trainer import everything, without_times

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal has it: a process in the background may have been started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Clock:
    """Tells the seconds that it was set to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def stored(trainer: Trainer) -> tuple[int, int]:
    """Epochs, and steps of the next one, that the checkpoint holds."""
    state = load_checkpoint(trainer.checkpoint)
    return state["epoch"], state["begun"]["steps"]


def test_epochs_shorter_than_the_interval_share_a_checkpoint_and_the_last_has_one(
    make_trainer: MakeTrainer, toy_recipe: Recipe
) -> None:
    clock = Clock()
    trainer = make_trainer(replace(toy_recipe, epochs=8), checkpoint_s=300.0, clock=clock)
    saved: list[tuple[int, int]] = []

    def on_step(progress: Progress) -> None:
        clock.now_s += 102.0 / progress.steps

    trainer.fit(lambda report: saved.append(stored(trainer)), on_step)
    assert saved == [(0, 0), (0, 0), (3, 0), (3, 0), (3, 0), (6, 0), (6, 0), (8, 0)]


def test_epochs_longer_than_the_interval_have_checkpoints_inside(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    clock = Clock()
    trainer = make_trainer(replace(toy_recipe, epochs=2), checkpoint_s=20.0, clock=clock)
    saved: list[tuple[int, int]] = []

    def on_step(progress: Progress) -> None:
        saved.append(stored(trainer))
        clock.now_s += 20.0

    trainer.fit(on_step=on_step)
    assert saved == [(0, 0), (0, 2), (0, 2), (1, 0), (1, 2), (1, 2)]


def test_a_run_killed_between_checkpoints_repeats_epochs_to_the_bit(
    make_trainer: MakeTrainer, toy_recipe: Recipe
) -> None:
    whole = make_trainer(toy_recipe, file="whole.pt")
    whole.fit()

    class Killed(Exception):
        pass

    def kill(report: EpochReport) -> None:
        if report.epoch == 2:
            raise Killed

    cut = make_trainer(toy_recipe, file="cut.pt")
    with pytest.raises(Killed):
        cut.fit(kill)
    assert stored(cut) == (0, 0)
    assert_resumes_as(whole, make_trainer(toy_recipe, weights=99, file="cut.pt"))


def assert_resumes_as(whole: Trainer, resumed: Trainer) -> None:
    resumed.resume()
    resumed.fit()
    expected, got = everything(whole), everything(resumed)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert without_times(whole.history) == without_times(resumed.history)


class AtCall:
    """A forward hook that acts at one call of the network; in evaluation mode or in training."""

    def __init__(self, call: int, training: bool, act: Callable[[], object]) -> None:
        self.left, self.training, self.act = call, training, act

    def __call__(self, net: nn.Module, *others: Any) -> None:
        if net.training == self.training:
            self.left -= 1
            if self.left == 0:
                self.act()


def press() -> None:
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("call", "training", "held"),
    [
        pytest.param(5, True, (1, 2), id="inside a step"),
        pytest.param(2, False, (1, 3), id="while an epoch is evaluated"),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_of_all_whole_steps(
    make_trainer: MakeTrainer, toy_recipe: Recipe, call: int, training: bool, held: tuple[int, int]
) -> None:
    whole = make_trainer(toy_recipe, file="whole.pt")
    whole.fit()
    cut = make_trainer(toy_recipe, file="cut.pt")
    cut.net.register_forward_hook(AtCall(call, training, press))
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    assert stored(cut) == held
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_resumes_as(whole, make_trainer(toy_recipe, weights=99, file="cut.pt"))


def test_a_second_ctrl_c_cuts_the_step_and_leaves_the_checkpoint_as_it_was(
    make_trainer: MakeTrainer, toy_recipe: Recipe
) -> None:
    trainer = make_trainer(toy_recipe)

    def press_twice() -> None:
        press()
        press()

    trainer.net.register_forward_hook(AtCall(5, True, press_twice))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert stored(trainer) == (0, 0)


def test_who_ignores_ctrl_c_goes_on(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(replace(toy_recipe, epochs=1))
    trainer.net.register_forward_hook(AtCall(2, True, press))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer.fit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert stored(trainer) == (1, 0)
