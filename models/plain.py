"""What every reader of JSON can take: a bundle's description comes from strangers, and is served again."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

DEEPEST = 32
LEAST_INTEGER, LARGEST_INTEGER = -(2**63), 2**63 - 1


class NotPlainError(ValueError):
    """A value that cannot be served as JSON; the message says where it stands."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.place: list[str] = []

    def __str__(self) -> str:
        place = ".".join(reversed(self.place)) or "the description"
        return f"{place[:200]} {self.cause}"


def check_plain(value: Any, depth: int = 0) -> None:
    """Raises NotPlainError, which names the place, for a value that some reader of JSON cannot take.

    That is: lists and objects nested deeper than 32, whole numbers beyond 64 bits, numbers that are not finite, and
    texts with half of a surrogate pair, which have no bytes in UTF-8.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value)
    elif isinstance(value, float):
        if not isfinite(value):
            raise NotPlainError(f"is {value}: give a finite number")
    elif isinstance(value, int):
        if not LEAST_INTEGER <= value <= LARGEST_INTEGER:
            raise NotPlainError("is a whole number of more than 64 bits: give a smaller one")
    elif isinstance(value, dict | list | tuple):
        if depth == DEEPEST:
            raise NotPlainError(f"is nested deeper than {DEEPEST} levels: flatten it")
        members: Iterable[tuple[Any, Any]] = enumerate(value)
        if isinstance(value, dict):
            members = value.items()
            for name in value:
                check_plain(name, depth)
        for name, inner in members:
            try:
                check_plain(inner, depth + 1)
            except NotPlainError as error:
                error.place.append(str(name))
                raise


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotPlainError(f"holds {text[error.start]!r}, which is no character: leave it out") from error
