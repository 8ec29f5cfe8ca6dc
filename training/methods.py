"""Methods: what the exits of one network learn from: the labels, one another's answers and features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Teacher = Literal["deepest", "later"]
FeatureTerm = Literal["off", "code", "comment", "all"]


@dataclass(frozen=True)
class Method:
    """What each exit learns from. The terms of the loss are `self_distillation_loss` and `feature_loss`.

    exits: "all", or "last": the plain network, without the shallow exits.
    alpha: weight of the teacher's answer against the label; 0 is deep supervision.
    temperature: T of both softmaxes. scaled: multiply the soft term by T^2 (Hinton et al. 2015).
    teacher: the teacher of an exit: the "deepest" exit, or the mean over all "later" exits.
    beta: weight of the feature term. feature_term: its students among the exits 1..K-1: all but the deepest of them
        (as the journal paper's "code" does), all but the shallowest (as that code's "comment" says), "all", or "off".
    squared: the feature term as the squared norm. adapters: a linear layer on each student's embedding, used in
        training only; if off, only embeddings whose width differs from the teacher's get one.
    """

    name: str
    exits: Literal["all", "last"] = "all"
    alpha: float = 0.0
    temperature: float = 3.0
    scaled: bool = False
    teacher: Teacher = "deepest"
    beta: float = 0.0
    feature_term: FeatureTerm = "off"
    squared: bool = False
    adapters: bool = False

    def __post_init__(self) -> None:
        if self.exits not in ("all", "last"):
            raise ValueError(f"exits {self.exits!r} is unknown: choose all or last")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha {self.alpha} is out of range: give a number in [0, 1]")
        if not 0.0 <= self.beta < math.inf:
            raise ValueError(f"beta {self.beta} is out of range: give a finite number of 0 or more")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is out of range: give a finite number above 0")
        if self.teacher not in get_args(Teacher):
            raise ValueError(f"teacher {self.teacher!r} is unknown: choose one of {', '.join(get_args(Teacher))}")
        if self.feature_term not in get_args(FeatureTerm):
            raise ValueError(
                f"feature_term {self.feature_term!r} is unknown: choose one of {', '.join(get_args(FeatureTerm))}"
            )

    def feature_exits(self, num_exits: int) -> tuple[int, ...]:
        """The exits (1-based) whose embedding is pulled to the deepest one's."""
        students = tuple(range(1, num_exits))
        if not self.beta or self.feature_term == "off":
            return ()
        return {"code": students[:-1], "comment": students[1:], "all": students}[self.feature_term]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # The plain network, trained by its labels.
        Method("baseline", exits="last"),
        # Deep supervision: every exit learns from the labels alone (Lee et al. 2015).
        Method("dsn"),
        # "Be Your Own Teacher" (Zhang et al., ICCV 2019), as third parties read its text.
        Method("byot", alpha=0.1, scaled=True, beta=1e-6, feature_term="all", squared=True),
        # SCAN (Zhang et al., NeurIPS 2019).
        Method("scan", alpha=0.5, scaled=True, beta=5e-7, feature_term="all", squared=True),
        # The journal paper (Zhang, Bao, Ma, TPAMI 2022) and its public code.
        Method("journal", alpha=0.3, beta=0.03, feature_term="code", adapters=True),
        # Ours.
        Method("ours", alpha=0.3, scaled=True, teacher="later"),
    )
}
