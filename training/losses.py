"""Losses of self-distillation: pure functions over lists of logits and embeddings, shallowest exit first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.training.methods import TeacherChoice


def soft_cross_entropy(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """-sum softmax(teacher/T) log_softmax(student/T), batch mean; no T^2 factor. The teacher gets no gradient."""
    target = F.softmax(teacher_BC.detach() / temperature, dim=1)
    return -(target * F.log_softmax(student_BC / temperature, dim=1)).sum(dim=1).mean()


def teachers_of(exit: int, logits: Sequence[Tensor], teacher: TeacherChoice) -> list[Tensor]:
    """The logits (B, classes) that teach exit 1..K; empty for the deepest exit, which learns from labels alone."""
    return list(logits[exit:]) if teacher == "later" or exit == len(logits) else list(logits[-1:])


def self_distillation_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    scaled: bool = False,
    teacher: TeacherChoice = "deepest",
) -> Tensor:
    """The loss of every exit's logits, summed over exits; alpha = 0 is deep supervision, the control.

    sum_k [(1-alpha) CE(z_k, y) + alpha s mean_t CE_soft(z_k/T, z_t/T)], with the teachers t of exit k, and s = T^2 if
    `scaled`, else 1. The deepest exit has CE(z_k, y) alone. With the deepest exit as teacher and s = 1 this is the
    journal's loss.

    logits: K tensors (B, classes). targets: class numbers (B), or probabilities (B, classes) for mixed labels.
    Source: Zhang, Bao, Ma, TPAMI 2022, and its public code.
    """
    scale = temperature**2 if scaled else 1.0
    losses = []
    for exit, student in enumerate(logits, start=1):
        hard = F.cross_entropy(student, targets)
        teachers = teachers_of(exit, logits, teacher) if alpha else []
        if not teachers:
            losses.append(hard)
            continue
        soft = torch.stack([soft_cross_entropy(student, t, temperature) for t in teachers]).mean()
        losses.append((1.0 - alpha) * hard + alpha * scale * soft)
    return torch.stack(losses).sum()


def external_distillation_loss(logits: Sequence[Tensor], teacher_BC: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation from another network, T^2 CE_soft(z_k/T, t/T), summed over exits.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
    """
    return torch.stack([temperature**2 * soft_cross_entropy(z, teacher_BC, temperature) for z in logits]).sum()


def feature_loss(students: Sequence[Tensor], teacher_BD: Tensor, squared: bool) -> Tensor:
    """sum_k |f_k - f_K|_2 over embeddings (B, D): the L2 norm of the whole B x D tensor, as in the authors' code.

    The journal's code does not square it, SCAN does. The teacher gets no gradient.
    """
    norms = [(student_BD - teacher_BD.detach()).norm(p=2) for student_BD in students]
    return torch.stack([norm**2 if squared else norm for norm in norms]).sum()
