"""The journal loss against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import self_distillation_loss, soft_cross_entropy

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


def test_journal_loss_by_hand() -> None:
    logits = exits()
    embeddings = [torch.randn(2, 5, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    loss = self_distillation_loss(
        logits, LABELS, temperature=3.0, alpha=0.3, beta=0.03, adapted=embeddings[:2], teacher_embedding=embeddings[2]
    )
    z = [logits_BC.detach().numpy().astype(np.float64) for logits_BC in logits]
    y = LABELS.numpy()
    expected = cross_entropy(z[3], y)
    expected += sum(0.7 * cross_entropy(z[k], y) + 0.3 * soft(z[k], z[3], 3.0) for k in range(3))
    f = [embedding_BD.numpy().astype(np.float64) for embedding_BD in embeddings]
    expected += 0.03 * sum(np.sqrt(((f[k] - f[2]) ** 2).sum()) for k in range(2))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_alpha_and_beta_0_are_deep_supervision() -> None:
    logits = exits()
    loss = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.0, beta=0.0)
    torch.testing.assert_close(loss, torch.stack([F.cross_entropy(z, LABELS) for z in logits]).sum())


def test_a_single_exit_is_plain_cross_entropy() -> None:
    logits = exits(1)
    loss = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.3)
    torch.testing.assert_close(loss, F.cross_entropy(logits[0], LABELS))


def test_the_teacher_learns_from_labels_alone() -> None:
    logits = exits()
    teacher_embedding = torch.randn(2, 5, requires_grad=True)
    student_embedding = torch.randn(2, 5, requires_grad=True)
    self_distillation_loss(
        logits,
        LABELS,
        temperature=3.0,
        alpha=0.3,
        beta=0.03,
        adapted=[student_embedding],
        teacher_embedding=teacher_embedding,
    ).backward()
    (from_labels,) = torch.autograd.grad(F.cross_entropy(logits[-1], LABELS), logits[-1])
    assert logits[-1].grad is not None
    torch.testing.assert_close(logits[-1].grad, from_labels)
    assert teacher_embedding.grad is None
    assert student_embedding.grad is not None
    assert student_embedding.grad.any()


def test_soft_target_passes_no_gradient_to_the_teacher() -> None:
    student, teacher = exits(2)
    soft_cross_entropy(student, teacher, 3.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_feature_term_is_the_unsquared_norm_of_the_whole_tensor() -> None:
    logits = exits(1)
    adapted, teacher = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    without = self_distillation_loss(logits, LABELS, temperature=3.0, alpha=0.0)
    with_one = self_distillation_loss(
        logits, LABELS, temperature=3.0, alpha=0.0, beta=2.0, adapted=[adapted], teacher_embedding=teacher
    )
    assert (with_one - without).item() == pytest.approx(2.0 * 5.0, rel=1e-5)


def test_beta_without_a_teacher_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta > 0 needs teacher_embedding: .* or set beta to 0"):
        self_distillation_loss(exits(), LABELS, temperature=3.0, alpha=0.3, beta=0.03, adapted=[torch.zeros(2, 5)])
