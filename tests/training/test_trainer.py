"""Training runs: they learn, resume to the bit, and stop with a clear word when they cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models.config import ModelConfig
from models.multi_exit import MultiExitNet
from models.preprocess import normalize
from training.augment import Augmentation
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.recipes import Recipe
from training.trainer import EpochReport, Progress, Trainer, build_optimizer, resolve_precision

MakeTrainer = Callable[..., Trainer]


class Stop(Exception):
    """Ends a run where a signal would."""


def stop_at(epoch: int, step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            raise Stop

    return on_step


def tensors(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, by its place."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: t for key, value in items for name, t in tensors(value, f"{prefix}/{key}").items()}


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = {
        "model": dict(trainer.net.state_dict()),
        "adapters": dict(trainer.adapters.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
    }
    return tensors(state)


def without_times(history: list[EpochReport]) -> list[EpochReport]:
    return [replace(report, seconds=0.0, images_per_s=0.0) for report in history]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (2, 3), (3, 1)])
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(
    make_trainer: MakeTrainer, toy_recipe: Recipe, dtype: torch.dtype, epoch: int, step: int
) -> None:
    whole = make_trainer(toy_recipe, dtype=dtype, file="whole.pt")
    whole.fit()

    with pytest.raises(Stop):
        make_trainer(toy_recipe, dtype=dtype, file="cut.pt").fit(on_step=stop_at(epoch, step))
    # Other weights and another global random state: all must come from the checkpoint.
    resumed = make_trainer(toy_recipe, dtype=dtype, weights=99, file="cut.pt")
    resumed.resume()
    assert resumed.epoch == epoch - 1
    resumed.fit()

    expected, got = everything(whole), everything(resumed)
    assert any("momentum_buffer" in name for name in expected)
    assert any("adapters" in name for name in expected)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert without_times(whole.history) == without_times(resumed.history)


def test_a_resumed_journal_run_repeats_its_learned_augmentation(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, epochs=2, schedule="steps", augmentation=Augmentation(policy="auto", cutout=4))
    whole = make_trainer(recipe, file="whole.pt")
    whole.fit()
    with pytest.raises(Stop):
        make_trainer(recipe, file="cut.pt").fit(on_step=stop_at(2, 1))
    resumed = make_trainer(recipe, weights=99, file="cut.pt")
    resumed.resume()
    resumed.fit()
    expected, got = everything(whole), everything(resumed)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def test_seed_decides_order_and_augmentation(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, epochs=1)
    same, again, other = (make_trainer(recipe, seed=seed, file=f"{n}.pt") for n, seed in enumerate((0, 0, 1)))
    for trainer in (same, again, other):
        trainer.fit()
    name = "/model/stages.0.0.0.weight"
    assert torch.equal(everything(same)[name], everything(again)[name])
    assert not torch.equal(everything(same)[name], everything(other)[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learnable_set_is_learned_at_every_exit(
    make_trainer: MakeTrainer, toy_recipe: Recipe, dtype: torch.dtype
) -> None:
    trainer = make_trainer(replace(toy_recipe, epochs=12, augmentation=Augmentation(crop_padding=0)), dtype=dtype)
    told: list[EpochReport] = []
    trainer.fit(on_epoch=told.append)
    assert told == trainer.history
    assert told[-1].loss < 0.5 * told[0].loss
    assert min(told[-1].accuracy) >= 0.9
    assert [report.epoch for report in told] == list(range(1, 13))


def test_progress_is_told_after_every_step(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    told: list[Progress] = []
    make_trainer(replace(toy_recipe, epochs=2)).fit(on_step=told.append)
    assert [(p.epoch, p.step, p.steps, p.pictures) for p in told] == [
        (1, 1, 3, 8), (1, 2, 3, 16), (1, 3, 3, 24), (2, 1, 3, 8), (2, 2, 3, 16), (2, 3, 3, 24)
    ]  # fmt: skip


def test_one_step_is_momentum_sgd_on_the_journal_loss(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, nesterov=False, weight_decay=0.0, augmentation=Augmentation(0, flip=False))
    trainer, twin = make_trainer(recipe), make_trainer(recipe, file="twin.pt")
    images_BHWC, labels_B = next(trainer.train.epoch(0))
    loss = trainer.train_step(images_BHWC, labels_B, torch.Generator())
    logits, embeddings = twin.net(normalize(images_BHWC, twin.preprocessing))
    ce, soften = nn.functional.cross_entropy, nn.functional.log_softmax
    target = (logits[3].detach() / 3).softmax(dim=1)
    by_hand = ce(logits[3], labels_B)
    for k in range(3):
        by_hand = by_hand + 0.7 * ce(logits[k], labels_B) + 0.3 * -(target * soften(logits[k] / 3, 1)).sum(1).mean()
    for k in range(2):
        by_hand = by_hand + 0.03 * (twin.adapters[k](embeddings[k]) - embeddings[3].detach()).square().sum().sqrt()
    torch.testing.assert_close(loss, by_hand.detach())
    by_hand.backward()
    for after, before in zip(trainer.net.parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.05 * before.grad, rtol=1e-4, atol=1e-5)


def test_validation_accuracy_is_that_of_each_exit_in_evaluation_mode(
    make_trainer: MakeTrainer, toy_recipe: Recipe
) -> None:
    trainer = make_trainer(replace(toy_recipe, epochs=1))
    trainer.fit()
    ((images_BHWC, labels_B),) = trainer.validation.epoch()
    with torch.no_grad():
        logits = trainer.net.eval()(normalize(images_BHWC, trainer.preprocessing)).logits
    expected = tuple((z.argmax(dim=1) == labels_B).float().mean().item() for z in logits)
    assert trainer.history[0].accuracy == pytest.approx(expected)


def test_without_beta_there_are_no_adapters(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    assert len(make_trainer(replace(toy_recipe, beta=0.0)).adapters) == 0
    assert len(make_trainer(toy_recipe).adapters) == 2


@pytest.mark.parametrize("exits", [(0,), (4,), (1, 5)])
def test_feature_exits_that_are_not_there_are_refused(
    make_trainer: MakeTrainer, toy_recipe: Recipe, exits: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"feature_exits \(.*\) is out of range: give exits of 1 to 3"):
        make_trainer(replace(toy_recipe, feature_exits=exits))


def test_a_diverged_run_says_so_and_keeps_its_last_good_epoch(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(toy_recipe)

    def poison(report: EpochReport) -> None:
        with torch.no_grad():
            next(trainer.net.parameters()).fill_(float("nan"))

    with pytest.raises(ValueError, match=r"the loss became nan in epoch 2: lower --learning-rate, or use --precision"):
        trainer.fit(on_epoch=poison)
    state = load_checkpoint(trainer.checkpoint)
    assert state["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in tensors(state["model"]).values())


@pytest.mark.parametrize("field", ["recipe", "model", "seed", "data"])
def test_another_runs_checkpoint_is_refused_by_the_field_that_differs(
    make_trainer: MakeTrainer, toy_recipe: Recipe, field: str
) -> None:
    make_trainer(toy_recipe).save()
    other = make_trainer(replace(toy_recipe, alpha=0.4) if field == "recipe" else toy_recipe, seed=int(field == "seed"))
    if field in ("model", "data"):
        other.identity[field] = "something else"
    before = everything(other)
    with pytest.raises(CheckpointError, match=rf"a.pt: was trained with {field} .* give the same options to resume"):
        other.resume()
    assert all(torch.equal(t, before[name]) for name, t in everything(other).items())


@pytest.mark.parametrize("missing", ["identity", "epoch", "history", "model", "adapters", "optimizer"])
def test_a_file_that_is_no_runs_checkpoint_is_refused(
    make_trainer: MakeTrainer, toy_recipe: Recipe, missing: str
) -> None:
    trainer = make_trainer(toy_recipe)
    trainer.save()
    state = load_checkpoint(trainer.checkpoint)
    del state[missing]
    save_checkpoint(trainer.checkpoint, state)
    with pytest.raises(CheckpointError, match=rf"a.pt: not a checkpoint of a training run \(KeyError: '{missing}'\)"):
        trainer.resume()


def test_a_checkpoint_of_another_shape_is_refused(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(toy_recipe)
    trainer.save()
    state = load_checkpoint(trainer.checkpoint)
    state["model"]["heads.3.classifier.bias"] = torch.zeros(7)
    save_checkpoint(trainer.checkpoint, state)
    with pytest.raises(CheckpointError, match=r"(?s)not a checkpoint of a training run .*size mismatch"):
        trainer.resume()
    save_checkpoint(trainer.checkpoint, {"identity": 3})
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        trainer.resume()


@pytest.mark.parametrize(("decay_norms", "expected"), [(True, 5e-4), (False, 0.0)])
def test_decay_reaches_vectors_only_where_the_recipe_says_so(
    toy_recipe: Recipe, decay_norms: bool, expected: float
) -> None:
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4))
    kernels, vectors = build_optimizer([net], replace(toy_recipe, decay_norms=decay_norms)).param_groups
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (5e-4, expected)
    assert {p.ndim for p in vectors["params"]} == {1}
    assert min(p.ndim for p in kernels["params"]) == 2
    assert len(kernels["params"]) + len(vectors["params"]) == len(list(net.parameters()))
    assert (kernels["momentum"], kernels["nesterov"]) == (0.9, True)


def test_precision_is_as_asked() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == torch.float32
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) in (torch.float32, torch.bfloat16)
