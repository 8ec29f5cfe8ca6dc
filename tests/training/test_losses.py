"""Losses against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.training.losses import external_distillation_loss, feature_loss, self_distillation_loss, soft_cross_entropy
from offramp.training.methods import TeacherChoice

LABELS = torch.tensor([0, 2])


def exits(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, generator=generator, requires_grad=True) for _ in range(count)]


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z)
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(z)[np.arange(len(labels)), labels]).mean())


def soft(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    return float(-(softmax(teacher / temperature) * np.log(softmax(student / temperature))).sum(axis=1).mean())


def test_soft_cross_entropy_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0 * np.log(3.0)]])
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(np.log(2.0))
    # Teacher at T = 2: (1/4, 3/4); student at T = 2: (4/5, 1/5).
    student = torch.tensor([[2.0 * np.log(4.0), 0.0]])
    by_hand = -(0.25 * np.log(0.8) + 0.75 * np.log(0.2))
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-6)


def values(logits: list[Tensor]) -> list[np.ndarray]:
    return [logits_BC.detach().numpy().astype(np.float64) for logits_BC in logits]


def test_journal_loss_by_hand() -> None:
    logits = exits()
    loss = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.3)
    z, y = values(logits), LABELS.numpy()
    expected = cross_entropy(z[3], y)
    expected += sum(0.7 * cross_entropy(z[k], y) + 0.3 * soft(z[k], z[3], 3.0) for k in range(3))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_scan_scales_the_soft_term_by_the_squared_temperature() -> None:
    logits = exits()
    loss = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.5, scaled=True)
    z, y = values(logits), LABELS.numpy()
    expected = cross_entropy(z[3], y)
    expected += sum(0.5 * cross_entropy(z[k], y) + 0.5 * 9.0 * soft(z[k], z[3], 3.0) for k in range(3))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_later_exits_teach_with_the_mean_of_their_answers() -> None:
    logits = exits(3)
    loss = self_distillation_loss(logits, LABELS, temperature=2.0, alpha=0.4, teacher="later")
    z, y = values(logits), LABELS.numpy()
    expected = cross_entropy(z[2], y)
    expected += 0.6 * cross_entropy(z[1], y) + 0.4 * soft(z[1], z[2], 2.0)
    expected += 0.6 * cross_entropy(z[0], y) + 0.4 * 0.5 * (soft(z[0], z[1], 2.0) + soft(z[0], z[2], 2.0))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_alpha_0_is_deep_supervision() -> None:
    logits = exits()
    loss = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.0)
    torch.testing.assert_close(loss, torch.stack([F.cross_entropy(z, LABELS) for z in logits]).sum())


@pytest.mark.parametrize("teacher", ["deepest", "later"])
def test_a_single_exit_is_plain_cross_entropy(teacher: TeacherChoice) -> None:
    logits = exits(1)
    loss = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.3, teacher=teacher)
    torch.testing.assert_close(loss, F.cross_entropy(logits[0], LABELS))


def test_mixed_labels_are_taken_as_probabilities() -> None:
    logits = exits(2)
    targets_BC = torch.tensor([[0.7, 0.0, 0.3], [0.0, 1.0, 0.0]])
    loss = self_distillation_loss(logits, targets_BC, temperature=3.0, alpha=0.0)
    expected = sum(float(-(targets_BC.numpy() * np.log(softmax(z))).sum(axis=1).mean()) for z in values(logits))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_deepest_exit_as_teacher_learns_from_labels_alone() -> None:
    logits = exits()
    self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.3).backward()
    (from_labels,) = torch.autograd.grad(F.cross_entropy(logits[-1], LABELS), logits[-1])
    assert logits[-1].grad is not None
    torch.testing.assert_close(logits[-1].grad, from_labels)


def test_no_teacher_gets_a_gradient_through_its_students() -> None:
    logits = exits(3)
    # The soft terms alone: the first exit's, less what it would be without the others' gradients.
    self_distillation_loss(logits, LABELS, temperature=3.0, alpha=1.0, teacher="later").backward()
    alone = [z.detach().requires_grad_() for z in logits]
    deepest = F.cross_entropy(alone[2], LABELS)
    middle = soft_cross_entropy(alone[1], logits[2].detach(), 3.0)
    first = (
        soft_cross_entropy(alone[0], logits[1].detach(), 3.0) + soft_cross_entropy(alone[0], logits[2].detach(), 3.0)
    ) / 2
    (deepest + middle + first).backward()
    for got, expected in zip(logits, alone, strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_soft_target_passes_no_gradient_to_the_teacher() -> None:
    student, teacher = exits(2)
    soft_cross_entropy(student, teacher, 3.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_an_external_teacher_teaches_every_exit() -> None:
    logits, (teacher,) = exits(2), exits(1, seed=9)
    loss = external_distillation_loss(logits, teacher, 4.0)
    (t,) = values([teacher])
    assert loss.item() == pytest.approx(sum(16.0 * soft(z, t, 4.0) for z in values(logits)), rel=1e-5)
    loss.backward()
    assert teacher.grad is None


def test_feature_loss_is_the_norm_of_the_whole_tensor() -> None:
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert feature_loss([student], teacher, squared=False).item() == pytest.approx(5.0)
    assert feature_loss([student, teacher + 1.0], teacher, squared=False).item() == pytest.approx(5.0 + 2.0)
    assert feature_loss([student, teacher + 1.0], teacher, squared=True).item() == pytest.approx(25.0 + 4.0)


def test_feature_loss_moves_students_only() -> None:
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    feature_loss([student], teacher, squared=False).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.any()
