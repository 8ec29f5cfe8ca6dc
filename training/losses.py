"""Losses of self-distillation: pure functions over lists of logits and embeddings, shallowest exit first."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """-sum softmax(teacher/T) log_softmax(student/T), batch mean; no T^2 factor. The teacher gets no gradient."""
    target = F.softmax(teacher_BC.detach() / temperature, dim=1)
    return -(target * F.log_softmax(student_BC / temperature, dim=1)).sum(dim=1).mean()


def self_distillation_loss(
    logits: Sequence[Tensor],
    labels_B: Tensor,
    *,
    temperature: float,
    alpha: float,
    beta: float = 0.0,
    adapted: Sequence[Tensor] = (),
    teacher_embedding: Tensor | None = None,
) -> Tensor:
    """The journal loss; alpha = beta = 0 is deep supervision (DSN), its control.

    CE(z_K, y) + sum_{k<K} [(1-alpha) CE(z_k, y) + alpha CE_soft(z_k/T, z_K/T)] + beta sum_k |A_k(f_k) - f_K|_2

    logits: K tensors (B, classes); the last is the teacher.
    adapted: A_k(f_k) for the exits with a feature term, (B, D) each; teacher_embedding: f_K (B, D).
    The feature term is the plain, unsquared L2 norm over the whole B x D tensor, as in the authors' code.
    Raises ValueError when beta > 0 without a teacher embedding.
    Source: Zhang, Bao, Ma, TPAMI 2022, and its public code.
    """
    teacher = logits[-1]
    loss = F.cross_entropy(teacher, labels_B)
    for student in logits[:-1]:
        hard = F.cross_entropy(student, labels_B)
        soft = soft_cross_entropy(student, teacher, temperature) if alpha else 0.0
        loss = loss + (1.0 - alpha) * hard + alpha * soft
    if beta:
        if teacher_embedding is None:
            raise ValueError("beta > 0 needs teacher_embedding: pass the deepest exit's embedding, or set beta to 0")
        for embedding in adapted:
            loss = loss + beta * (embedding - teacher_embedding.detach()).norm(p=2)
    return loss
