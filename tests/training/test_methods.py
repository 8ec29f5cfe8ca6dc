"""Methods: what each is, which exits its feature term takes, refused values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from offramp.training.methods import METHODS, FeatureTerm, Method


def test_methods_are_found_by_their_own_names() -> None:
    assert list(METHODS) == [method.name for method in METHODS.values()]
    assert {"baseline", "dsn", "byot", "scan", "journal", "ours"} <= set(METHODS)


def test_journal_is_the_papers() -> None:
    journal = METHODS["journal"]
    assert (journal.temperature, journal.alpha, journal.beta, journal.scaled) == (3.0, 0.3, 0.03, False)
    assert (journal.teacher, journal.squared, journal.adapters) == ("deepest", False, True)
    assert journal.feature_exits(4) == (1, 2)


def test_scan_and_byot_are_as_published() -> None:
    scan, byot = METHODS["scan"], METHODS["byot"]
    assert (scan.alpha, scan.temperature, scan.scaled, scan.beta, scan.squared) == (0.5, 3.0, True, 5e-7, True)
    assert (byot.alpha, byot.scaled, byot.beta, byot.squared) == (0.1, True, 1e-6, True)
    assert scan.feature_exits(4) == byot.feature_exits(4) == (1, 2, 3)


def test_the_controls_distil_nothing() -> None:
    assert (METHODS["dsn"].alpha, METHODS["dsn"].feature_exits(4)) == (0.0, ())
    assert (METHODS["baseline"].alpha, METHODS["baseline"].exits) == (0.0, "last")


@pytest.mark.parametrize(
    ("term", "exits"), [("off", ()), ("code", (1, 2, 3)), ("comment", (2, 3, 4)), ("all", (1, 2, 3, 4))]
)
def test_the_feature_term_takes_students_by_its_name(term: FeatureTerm, exits: tuple[int, ...]) -> None:
    method = replace(METHODS["journal"], feature_term=term)
    assert method.feature_exits(5) == exits
    assert method.feature_exits(1) == ()
    assert replace(method, beta=0.0).feature_exits(5) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": "some"}, "exits 'some' is unknown: choose all or last"),
        ({"alpha": 1.1}, r"alpha 1.1 is out of range: give a number in \[0, 1\]"),
        ({"alpha": -0.1}, "alpha -0.1 is out of range"),
        ({"beta": -1.0}, "beta -1.0 is out of range: give a finite number of 0 or more"),
        ({"beta": math.inf}, "beta inf is out of range"),
        ({"temperature": 0.0}, "temperature 0.0 is out of range: give a finite number above 0"),
        ({"teacher": "me"}, "teacher 'me' is unknown: choose one of deepest, later"),
        ({"feature_term": "some"}, "feature_term 'some' is unknown: choose one of off, code, comment, all"),
    ],
)
def test_unusable_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Method("toy"), **changes)
