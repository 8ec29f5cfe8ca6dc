"""Training runs: they learn, resume to the bit, and stop with a clear word when they cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from offramp.models.bundle import Bundle
from offramp.models.config import ModelConfig
from offramp.models.exit_policy import Calibration
from offramp.models.heads import ShallowHead
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize
from offramp.training.augment.augmentation import Augmentation
from offramp.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from offramp.training.epoch import EpochReport, Progress
from offramp.training.evaluate.evaluation import accuracy_per_exit
from offramp.training.methods import METHODS, Method
from offramp.training.precision import resolve_precision
from offramp.training.recipes import Recipe
from offramp.training.student import feature_adapters
from offramp.training.teacher import ExternalTeacher
from offramp.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]

NO_AUGMENTATION = Augmentation(crop_padding=0, flip=False)


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
        "averaged": {} if trainer.averaged is None else dict(trainer.averaged.state_dict()),
        "optimizers": trainer.optimizers.state_dict(),
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
        make_trainer(toy_recipe, dtype=dtype, file="cut.pt", checkpoint_s=0.0).fit(on_step=stop_at(epoch, step))
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


def test_a_resumed_run_repeats_dropout_muon_and_the_backbone_phase(
    make_trainer: MakeTrainer, toy_recipe: Recipe
) -> None:
    recipe = replace(toy_recipe, optimizer="muon", backbone_share=0.5, ema=0.9)

    def made(file: str, weights: int = 0) -> Trainer:
        trainer = make_trainer(recipe, weights=weights, file=file, checkpoint_s=0.0)
        trainer.net.stages[1].append(nn.Dropout(0.5))  # type: ignore[operator]
        return trainer

    whole = made("whole.pt")
    whole.fit()
    with pytest.raises(Stop):
        made("cut.pt").fit(on_step=stop_at(3, 2))
    resumed = made("cut.pt", weights=99)
    resumed.resume()
    resumed.fit()
    expected, got = everything(whole), everything(resumed)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def test_a_resumed_journal_run_repeats_its_learned_augmentation(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, epochs=2, schedule="steps", augmentation=Augmentation(policy="auto", cutout=4))
    whole = make_trainer(recipe, file="whole.pt")
    whole.fit()
    with pytest.raises(Stop):
        make_trainer(recipe, file="cut.pt", checkpoint_s=0.0).fit(on_step=stop_at(2, 1))
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
    trainer = make_trainer(replace(toy_recipe, epochs=24, augmentation=Augmentation(crop_padding=0)), dtype=dtype)
    reports: list[EpochReport] = []
    trainer.fit(on_epoch=reports.append)
    assert reports == trainer.history
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert min(reports[-1].accuracy) >= 0.9
    assert [report.epoch for report in reports] == list(range(1, 25))


def test_progress_is_reported_after_every_step(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    reports: list[Progress] = []
    make_trainer(replace(toy_recipe, epochs=2)).fit(on_step=reports.append)
    assert [(p.epoch, p.step, p.steps, p.pictures) for p in reports] == [
        (1, 1, 3, 8), (1, 2, 3, 16), (1, 3, 3, 24), (2, 1, 3, 8), (2, 2, 3, 16), (2, 3, 3, 24)
    ]  # fmt: skip


def test_one_step_is_momentum_sgd_on_the_journal_loss(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, nesterov=False, weight_decay=0.0, augmentation=NO_AUGMENTATION)
    trainer, twin = make_trainer(recipe), make_trainer(recipe, file="twin.pt")
    images_BHWC, labels_B = next(trainer.train.epoch(0))
    loss = trainer.train_step(images_BHWC, labels_B, torch.Generator(), backbone_only=False)
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
        assert before.grad is not None
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


@pytest.mark.parametrize(
    ("method", "adapters"),
    [
        (METHODS["dsn"], []),
        (METHODS["journal"], [nn.Linear, nn.Linear]),
        (replace(METHODS["journal"], beta=0.0), []),
        (replace(METHODS["journal"], feature_term="all"), [nn.Linear] * 3),
        (METHODS["scan"], [nn.Identity] * 3),
    ],
)
def test_a_feature_term_has_an_adapter_for_each_student(
    make_trainer: MakeTrainer, toy_recipe: Recipe, method: Method, adapters: list
) -> None:
    assert [type(adapter) for adapter in make_trainer(toy_recipe, method).adapters] == adapters


def test_embeddings_of_another_width_are_brought_to_the_teachers() -> None:
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4))
    net.heads[0] = ShallowHead([4, 20], 3)
    first, second, third = feature_adapters(net, METHODS["scan"])
    assert isinstance(first, nn.Linear)
    assert (first.in_features, first.out_features) == (20, 32)
    assert isinstance(second, nn.Identity)
    assert isinstance(third, nn.Identity)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_learns(make_trainer: MakeTrainer, toy_recipe: Recipe, method: Method) -> None:
    trainer = make_trainer(replace(toy_recipe, epochs=20, augmentation=NO_AUGMENTATION), method)
    trainer.fit()
    assert min(trainer.history[-1].accuracy) >= 0.75


def test_the_backbone_phase_leaves_the_shallow_heads_alone(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(replace(toy_recipe, epochs=2, backbone_share=0.5))
    before = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    moved: list[set[str]] = []

    def watch(report: EpochReport) -> None:
        now = trainer.net.state_dict()
        moved.append({name for name, tensor in before.items() if not torch.equal(tensor, now[name])})

    trainer.fit(on_epoch=watch)
    shallow = {name for name in before if name.startswith(("heads.0.", "heads.1.", "heads.2."))}
    assert not moved[0] & shallow
    assert {"stages.0.0.0.weight", "heads.3.classifier.weight"} <= moved[0]
    assert {name for name in shallow if name.endswith("classifier.weight")} <= moved[1]


def test_averaged_weights_follow_the_trained_ones_and_are_the_result(
    make_trainer: MakeTrainer, toy_recipe: Recipe
) -> None:
    trainer = make_trainer(replace(toy_recipe, epochs=1, ema=0.75, augmentation=NO_AUGMENTATION))
    name = "stages.0.0.0.weight"
    expected: list[torch.Tensor] = []

    def follow(progress: Progress) -> None:
        now = trainer.net.state_dict()[name].clone()
        expected.append(now if not expected else 0.75 * expected[-1] + 0.25 * now)

    trainer.fit(on_step=follow)
    torch.testing.assert_close(trainer.result.state_dict()[name], expected[-1])
    assert not torch.equal(trainer.result.state_dict()[name], trainer.net.state_dict()[name])
    assert trainer.history[0].accuracy == accuracy_per_exit(
        trainer.result, trainer.validation, trainer.preprocessing, torch.float32
    )


def test_without_averaging_the_result_is_the_network(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(toy_recipe)
    assert trainer.result is trainer.net


@pytest.mark.parametrize("method", [METHODS["journal"], METHODS["scan"], METHODS["dsn"]])
def test_a_batch_in_parts_gives_the_step_of_the_whole_one(
    make_trainer: MakeTrainer, toy_recipe: Recipe, method: Method
) -> None:
    recipe = replace(toy_recipe, augmentation=NO_AUGMENTATION)
    whole, parts = make_trainer(recipe, method), make_trainer(replace(recipe, accumulate=2), method, file="parts.pt")
    images_BHWC, labels_B = next(whole.train.epoch(0))
    # Twice the same half: batch statistics of each part are then those of the whole.
    images_BHWC, labels_B = images_BHWC[:4].repeat(2, 1, 1, 1), labels_B[:4].repeat(2)
    losses = [t.train_step(images_BHWC, labels_B, torch.Generator(), backbone_only=False) for t in (whole, parts)]
    torch.testing.assert_close(*losses)
    for one, other in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_parts_of_unequal_size_count_by_their_pictures(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(replace(toy_recipe, augmentation=NO_AUGMENTATION, accumulate=3), METHODS["dsn"])
    twin = make_trainer(replace(toy_recipe, augmentation=NO_AUGMENTATION), METHODS["dsn"], file="twin.pt")
    images_BHWC, labels_B = next(trainer.train.epoch(0))
    by_hand = sum(
        len(images) / 8 * twin.loss(images, labels)
        for images, labels in zip(images_BHWC.split([3, 3, 2]), labels_B.split([3, 3, 2]), strict=True)
    )
    loss = trainer.train_step(images_BHWC, labels_B, torch.Generator(), backbone_only=False)
    torch.testing.assert_close(loss, by_hand.detach())  # type: ignore[union-attr]


def test_an_external_teacher_has_its_share_of_the_loss(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    teacher_net = MultiExitNet(ModelConfig("resnet18", 3, width=5, input_size=16)).eval()
    calibration = Calibration((1.0, 1.5, 2.0, 2.5), (0.0, 0.5, 0.5, 1.0))
    bundle = Bundle(
        "t", "1", teacher_net.config, Preprocessing(16), ("blue", "green", "red"), calibration, 0.5, teacher_net
    )
    recipe = replace(toy_recipe, augmentation=NO_AUGMENTATION)
    taught = make_trainer(recipe, METHODS["dsn"], teacher=ExternalTeacher(bundle, weight=0.25, temperature=2.0))
    alone = make_trainer(recipe, METHODS["dsn"])
    images_BHWC, labels_B = next(taught.train.epoch(0))
    with torch.no_grad():
        teacher_logits = teacher_net(normalize(images_BHWC, Preprocessing(16))).logits
        accumulated = teacher_logits[0]
        for weight, logits_BC in zip(calibration.ensemble_weights[1:], teacher_logits[1:], strict=True):
            accumulated = weight * accumulated + logits_BC
        target = (accumulated / 2.5 / 2.0).softmax(dim=1)
        students = taught.net.train()(normalize(images_BHWC, taught.preprocessing)).logits
        external = sum(4.0 * -(target * (z / 2.0).log_softmax(dim=1)).sum(dim=1).mean() for z in students)
        expected = 0.75 * alone.loss(images_BHWC, labels_B) + 0.25 * external
        torch.testing.assert_close(taught.loss(images_BHWC, labels_B), expected)


def test_a_run_cut_inside_an_epoch_goes_on_there(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, ema=0.9)
    whole = make_trainer(recipe, file="whole.pt")
    whole.fit()
    with pytest.raises(Stop):
        make_trainer(recipe, file="cut.pt", checkpoint_s=0.0).fit(on_step=stop_at(2, 2))
    resumed = make_trainer(recipe, weights=99, file="cut.pt")
    resumed.resume()
    assert resumed.done == "1 of 3 epochs and 2 of 3 steps"
    reports: list[Progress] = []
    resumed.fit(on_step=reports.append)
    assert [(p.epoch, p.step, p.pictures) for p in reports[:2]] == [(2, 3, 24), (3, 1, 8)]
    expected, got = everything(whole), everything(resumed)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert without_times(whole.history) == without_times(resumed.history)


def test_a_diverged_run_says_so_and_keeps_its_last_good_epoch(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(toy_recipe, checkpoint_s=0.0)

    def poison(report: EpochReport) -> None:
        with torch.no_grad():
            next(trainer.net.parameters()).fill_(float("nan"))

    with pytest.raises(ValueError, match=r"the loss became nan in epoch 2: lower --learning-rate, or use --precision"):
        trainer.fit(on_epoch=poison)
    state = load_checkpoint(trainer.checkpoint)
    assert state["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in tensors(state["model"]).values())


@pytest.mark.parametrize("identity", [{}, {"teacher": None}])
def test_a_run_with_a_teacher_is_not_resumed_without(
    make_trainer: MakeTrainer, toy_recipe: Recipe, identity: dict
) -> None:
    taught = make_trainer(toy_recipe)
    taught.identity["teacher"] = "0123"
    taught.save()
    alone = make_trainer(toy_recipe)
    alone.identity |= identity
    with pytest.raises(CheckpointError, match="was trained with teacher 0123, not None"):
        alone.resume()


def test_a_diverged_epoch_is_not_saved_in_its_middle(make_trainer: MakeTrainer, toy_recipe: Recipe) -> None:
    trainer = make_trainer(toy_recipe, checkpoint_s=0.0)

    def poison(progress: Progress) -> None:
        with torch.no_grad():
            next(trainer.net.parameters()).fill_(float("nan"))

    with pytest.raises(ValueError, match="the loss became nan in epoch 1"):
        trainer.fit(on_step=poison)
    state = load_checkpoint(trainer.checkpoint)
    assert state["begun"]["steps"] == 1
    assert all(torch.isfinite(t).all() for t in tensors(state["model"]).values())


@pytest.mark.parametrize("field", ["recipe", "method", "model", "seed", "data"])
def test_another_runs_checkpoint_is_refused_by_the_field_that_differs(
    make_trainer: MakeTrainer, toy_recipe: Recipe, field: str
) -> None:
    make_trainer(toy_recipe).save()
    other = make_trainer(
        replace(toy_recipe, warmup=0.2) if field == "recipe" else toy_recipe,
        METHODS["dsn" if field == "method" else "journal"],
        seed=int(field == "seed"),
    )
    if field in ("model", "data"):
        other.identity[field] = "something else"
    before = everything(other)
    with pytest.raises(CheckpointError, match=rf"a.pt: was trained with {field} .* give the same options to resume"):
        other.resume()
    assert all(torch.equal(t, before[name]) for name, t in everything(other).items())


@pytest.mark.parametrize("missing", ["identity", "epoch", "history", "model", "adapters", "optimizers"])
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


def test_precision_is_as_asked() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == torch.float32
    assert resolve_precision("bfloat16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="precision 'fp8' is unknown: give one of auto, float32, bfloat16"):
        resolve_precision("fp8", cpu)
