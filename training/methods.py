"""Methods: a method says what each exit learns from: labels, other exits' answers and features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

TeacherChoice = Literal["deepest", "later"]
FeatureTerm = Literal["off", "code", "comment", "all"]


@dataclass(frozen=True)
class Method:
    """What each exit learns from. The parts of the loss are `self_distillation_loss` and `feature_loss`.

    exits: "all", or "last": the plain network without shallow exits.
    alpha: weight of the teacher's answer against the label; 0 is deep supervision.
    temperature: T of both softmaxes. scaled: multiply the soft term by T^2 (Hinton et al. 2015).
    teacher: the teacher of an exit: the "deepest" exit, or the mean over all "later" exits.
    beta: weight of the feature term. feature_term: its students among the exits 1..K-1: all but the deepest of them
        (as the journal paper's "code" does), all but the shallowest (as that code's "comment" says), "all", or "off".
    squared: the feature term as the squared norm. adapters: a linear layer on each student's embedding, used in
        training only. If off, only embeddings with another width than the teacher's get one.
    """

    name: str
    exits: Literal["all", "last"] = "all"
    alpha: float = 0.0
    temperature: float = 3.0
    scaled: bool = False
    teacher: TeacherChoice = "deepest"
    beta: float = 0.0
    feature_term: FeatureTerm = "off"
    squared: bool = False
    adapters: bool = False

    def __post_init__(self) -> None:
        teachers, choices = get_args(TeacherChoice), get_args(FeatureTerm)
        checks = (
            ("exits", self.exits in ("all", "last"), "unknown: choose all or last"),
            ("alpha", 0.0 <= self.alpha <= 1.0, "out of range: give a number in [0, 1]"),
            ("beta", 0.0 <= self.beta < math.inf, "out of range: give a finite number of 0 or more"),
            ("temperature", 0.0 < self.temperature < math.inf, "out of range: give a finite number above 0"),
            ("teacher", self.teacher in teachers, f"unknown: choose one of {', '.join(teachers)}"),
            ("feature_term", self.feature_term in choices, f"unknown: choose one of {', '.join(choices)}"),
        )
        for name, valid, fault in checks:
            if not valid:
                raise ValueError(f"{name} {getattr(self, name)!r} is {fault}")

    def feature_exits(self, num_exits: int) -> tuple[int, ...]:
        """The exits (1-based) whose embedding learns from the deepest exit's."""
        students = tuple(range(1, num_exits))
        if not self.beta or self.feature_term == "off":
            return ()
        return {"code": students[:-1], "comment": students[1:], "all": students}[self.feature_term]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # The plain network, trained by its labels.
        Method("baseline", exits="last"),
        # DSN, "Deeply-Supervised Nets": every exit learns from the labels alone (Lee et al. 2015).
        Method("dsn"),
        # BYOT, "Be Your Own Teacher" (Zhang et al., ICCV 2019), as third parties read its text.
        Method("byot", alpha=0.1, scaled=True, beta=1e-6, feature_term="all", squared=True),
        # SCAN, "A Scalable Neural Networks Framework towards Compact and Efficient Models" (Zhang et al., NeurIPS
        # 2019).
        Method("scan", alpha=0.5, scaled=True, beta=5e-7, feature_term="all", squared=True),
        # The journal paper (Zhang, Bao, Ma, TPAMI 2022) and its public code.
        Method("journal", alpha=0.3, beta=0.03, feature_term="code", adapters=True),
        # Ours.
        Method("ours", alpha=0.3, scaled=True, teacher="later"),
    )
}
