"""Values that every reader of JSON can take: a bundle's description comes from strangers, and is served again."""

from __future__ import annotations

from math import isfinite
from typing import Any

DEEPEST = 32
LEAST_INTEGER, LARGEST_INTEGER = -(2**63), 2**63 - 1


def check_plain(value: Any, place: tuple[object, ...] = ()) -> None:
    """Raise ValueError, with the place, for a value that some reader of JSON cannot take.

    Such values are lists and objects nested deeper than 32, whole numbers beyond 64 bits, numbers that are not finite,
    and texts with half of a surrogate pair, which UTF-8 cannot encode.
    """
    problem = _problem(value, len(place))
    if problem:
        raise ValueError(f"{'.'.join(map(str, place))[:200] or 'the description'} {problem}")
    if isinstance(value, dict):
        for name, member in value.items():
            check_plain(name, place)
            check_plain(member, (*place, name))
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            check_plain(member, (*place, index))


def _problem(value: Any, depth: int) -> str:
    """Why JSON cannot hold a value, apart from its members; empty if it can."""
    match value:
        case str() if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return f"holds {value[error.start]!r}, which is no character: leave it out"
        case float() if not isfinite(value):
            return f"is {value}: give a finite number"
        case int() if not LEAST_INTEGER <= value <= LARGEST_INTEGER:
            return "is a whole number of more than 64 bits: give a smaller one"
        case dict() | list() | tuple() if depth == DEEPEST:
            return f"is nested deeper than {DEEPEST} levels: flatten it"
    return ""
