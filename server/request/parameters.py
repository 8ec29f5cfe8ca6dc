"""The parameters of a prediction, for query strings, form fields and JSON alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from offramp.server.http.problems import INVALID_PARAMETER, Problem

MAX_DEADLINE_MS = 3_600_000
MAX_THRESHOLDS = 64

# Limits of an error message.
ECHOED_CHARACTERS = 60
MAX_SENTENCES = 10


def _not_boolean(value: Any) -> Any:
    # Python's True is an int, and pydantic takes it for 1.
    if isinstance(value, bool):
        raise ValueError("a boolean is no number")
    return value


def _split_and_count(value: Any) -> Any:
    # Counted before the items are validated: each wrong item would be an error of its own.
    numbers = value.split(",", MAX_THRESHOLDS) if isinstance(value, str) else value
    if isinstance(numbers, list) and len(numbers) > MAX_THRESHOLDS:
        raise PydanticCustomError("too_long", "more numbers than any network has exits")
    return numbers


class Allowed(str):
    """The allowed values of a parameter, for error messages."""


# NaN and infinity are outside all bounds. Bounds come before the validator: after it, pydantic writes them into the
# JSON schema as "ge" and "le", which clients do not read.
NOT_BOOLEAN = BeforeValidator(_not_boolean)
Fraction = Annotated[float, Field(ge=0, le=1), NOT_BOOLEAN, Allowed("a number in [0, 1]")]
Ordinal = Annotated[int, Field(ge=1), NOT_BOOLEAN, Allowed("a whole number of at least 1")]
Milliseconds = Annotated[
    float, Field(gt=0, le=MAX_DEADLINE_MS), NOT_BOOLEAN, Allowed(f"a number above 0 and up to {MAX_DEADLINE_MS}")
]
Thresholds = Annotated[
    list[Fraction],
    BeforeValidator(_split_and_count),
    Allowed("numbers in [0, 1], one per early exit, such as 0.9,0.8,0.7"),
]
Flag = Annotated[bool, Allowed("true or false")]
Version = Annotated[str, Allowed("the name of a version")]


def optional(description: str, examples: list[Any] | None = None) -> Any:
    """A field of a model that may be left out; it is None then."""
    return Field(default=None, description=description, examples=examples)


class ContractParameters(BaseModel):
    """The parameters that the engine must keep. None: not given. The answer shows those that were given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: Fraction | None = optional(
        "Answer at the first exit whose calibrated confidence reaches this value. 0: always exit 1. "
        "1: always the last exit. Default: the threshold of the bundle."
    )
    thresholds: Thresholds | None = optional(
        "One threshold per early exit, shallowest first. Outside JSON: separated by commas."
    )
    max_disagreement: Fraction | None = optional(
        "Promise: at most this share of the answers differs from the answer at full depth. Needs a bundle with a "
        "certificate; GET /v1/models/{model} shows the shares that it certifies."
    )
    degrade_to: Fraction | None = optional(
        "The promise under brownout: at most this share of the answers differs from the answer at full depth. Default: "
        "the server's setting for a request without thresholds, promise and bounds on depth; else none."
    )
    min_exit: Ordinal | None = optional("Answer at this exit or deeper. Default 1.")
    max_exit: Ordinal | None = optional("Answer at this exit at the latest. Default: the last.")
    deadline_ms: Milliseconds | None = optional(
        "Answer within this time, with the deepest exit computed. Default: the server's setting."
    )


class Parameters(ContractParameters):
    """All parameters of a prediction request."""

    top_k: Ordinal = Field(default=1, description="Number of classes to return. Default 1.")
    detail: Flag = Field(default=False, description="Add the answer of each exit passed, as `visited`. Default false.")
    version: Version | None = optional("Version of the model. Default: the first one given to the server.")


def allowed(name: str) -> str:
    """The allowed values of a parameter."""
    field = Parameters.model_fields[name]
    alternatives = (getattr(kind, "__metadata__", ()) for kind in get_args(field.annotation))
    return next(item for item in (*field.metadata, *chain(*alternatives)) if isinstance(item, Allowed))


DEFAULTS = Parameters()


def parse_parameters(given: Mapping[str, Any], body_names: Iterable[str] = ()) -> Parameters:
    """Validate parameters. body_names: other names in the same body, such as "images" in JSON.

    Raises Problem (422) that names each wrong parameter, its value and the allowed values.
    """
    if not given:
        return DEFAULTS
    try:
        parameters = Parameters.model_validate(given)
    except ValidationError as error:
        wrong: dict[str, ErrorDetails] = {}
        for item in error.errors(include_url=False, include_context=False):
            wrong.setdefault(str(item["loc"][0]), item)
        names = list(wrong)[:MAX_SENTENCES]
        known = [*body_names, *Parameters.model_fields]
        sentences = [_sentence(name, wrong[name], known) for name in names]
        raise Problem(INVALID_PARAMETER, "; ".join(sentences), parameters=short(names)) from error
    _check_together(parameters)
    return parameters


def merge_parameters(*places: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """One value per name. places: names and values of the query string, and of the body.

    The same value may come twice: some tools send a parameter in each place that the OpenAPI document names. Raises
    Problem (422) if the values of a name differ.
    """
    merged: dict[str, Any] = {}
    for name, value in (pair for place in places for pair in _join_thresholds(place)):
        if name in merged and not _is_same(name, merged[name], value):
            detail = f"{quoted(name)} is given twice with different values: give it once"
            raise Problem(INVALID_PARAMETER, detail, parameters=short([name]))
        merged[name] = value
    return merged


def _join_thresholds(place: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
    """Outside JSON, a list may come as one parameter for each number."""
    numbers = [value for name, value in place if name == "thresholds"]
    if len(numbers) < 2 or not all(isinstance(value, str) and "," not in value for value in numbers):
        return place
    return [*(pair for pair in place if pair[0] != "thresholds"), ("thresholds", ",".join(numbers))]


def _is_same(name: str, first: Any, second: Any) -> bool:
    if isinstance(first, str) and first == second:
        return True
    try:
        first, second = (getattr(Parameters.model_validate({name: value}), name) for value in (first, second))
    except (ValidationError, AttributeError):
        return False
    return bool(first == second)


def _check_together(parameters: Parameters) -> None:
    ways = [name for name in ("threshold", "thresholds", "max_disagreement") if getattr(parameters, name) is not None]
    if len(ways) > 1:
        raise Problem(INVALID_PARAMETER, f"{' and '.join(ways)} contradict each other: give one", parameters=ways)
    low, high = parameters.min_exit, parameters.max_exit
    if low is not None and high is not None and low > high:
        detail = f"min_exit {quoted(low)} is above max_exit {quoted(high)}: min_exit <= max_exit must hold"
        raise Problem(INVALID_PARAMETER, detail, parameters=["min_exit", "max_exit"])
    certain, degraded = parameters.max_disagreement, parameters.degrade_to
    if certain is not None and degraded is not None and degraded < certain:
        detail = f"degrade_to {degraded} is below max_disagreement {certain}: max_disagreement <= degrade_to must hold"
        raise Problem(INVALID_PARAMETER, detail, parameters=["max_disagreement", "degrade_to"])
    if parameters.thresholds is not None and degraded is not None:
        detail = (
            "thresholds and degrade_to contradict each other: the disagreement of thresholds is unknown; give "
            "threshold or max_disagreement beside degrade_to"
        )
        raise Problem(INVALID_PARAMETER, detail, parameters=["thresholds", "degrade_to"])
    bounds = [name for name in ("min_exit", "max_exit") if getattr(parameters, name) is not None]
    for name in ("max_disagreement", "degrade_to"):
        if bounds and getattr(parameters, name) is not None:
            detail = f"{name} and {bounds[0]} contradict each other: the certificate holds for all exits; give one"
            raise Problem(INVALID_PARAMETER, detail, parameters=[name, *bounds])


def _sentence(name: str, error: ErrorDetails, known: list[str]) -> str:
    if error["type"] == "extra_forbidden":
        return f"{quoted(name)} is unknown: {_nearest(name, known)}the parameters are {', '.join(known)}"
    if error["type"] == "too_long":
        return f"{name} has more than {MAX_THRESHOLDS} numbers: give {allowed(name)}"
    place = "".join(f"[{part}]" for part in error["loc"][1:])
    return f"{name}{place} {quoted(error['input'])} is not allowed: give {allowed(name)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    # Longer than any parameter, and the search is slow.
    near = [] if len(name) > ECHOED_CHARACTERS else get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def quoted(value: Any) -> str:
    """A value for a message. A container becomes its kind: its content may be deep or huge."""
    if isinstance(value, Mapping):
        return "given as an object"
    if isinstance(value, list):
        return "given as a list"
    text = repr(value[: ECHOED_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= ECHOED_CHARACTERS else text[:ECHOED_CHARACTERS] + "…"


def short(names: list[str]) -> list[str]:
    """Names cut for a message."""
    return [name[:ECHOED_CHARACTERS] for name in names]
