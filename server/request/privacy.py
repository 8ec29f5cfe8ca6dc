"""Private mode: nothing in an answer shows how deep a picture went. All its rules are here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect

from offramp.server.http.problems import INVALID_PARAMETER, Problem
from offramp.server.request.parameters import Parameters

# Parameters that show the exit: bounds on depth, thresholds to compare with the confidence, and the exits themselves.
SHOW_EXIT = ("threshold", "thresholds", "min_exit", "max_exit", "detail")

# Fields of an answer that show the exit.
HIDDEN = {"timing_ms"}
HIDDEN_IN_CONTRACT = {"threshold", "thresholds"}
HIDDEN_IN_PREDICTION = {"exit", "exits", "exit_reason", "compute"}

CONFIDENCE_DIGITS = 2


def check_private(parameters: Parameters) -> None:
    """Raises Problem (422) for parameters that would show the exit."""
    given = [name for name in SHOW_EXIT if (value := getattr(parameters, name)) is not None and value is not False]
    if given:
        detail = (
            f"{given[0]} would show at which exit pictures leave, and this server is private: leave it out, or ask "
            "with max_disagreement"
        )
        raise Problem(INVALID_PARAMETER, detail, parameters=given)


def redact(content: dict[str, Any]) -> dict[str, Any]:
    """An answer without the fields that show the exit, and with rounded probabilities."""

    def rounded(prediction: dict[str, Any]) -> dict[str, Any]:
        left = {name: value for name, value in prediction.items() if name not in HIDDEN_IN_PREDICTION}
        left["confidence"] = round(left["confidence"], CONFIDENCE_DIGITS)
        left["top_k"] = [
            {**ranked, "probability": round(ranked["probability"], CONFIDENCE_DIGITS)} for ranked in left["top_k"]
        ]
        return left

    left = {name: value for name, value in content.items() if name not in HIDDEN}
    left["contract"] = {name: value for name, value in left["contract"].items() if name not in HIDDEN_IN_CONTRACT}
    left["predictions"] = [rounded(prediction) for prediction in left["predictions"]]
    return left


@asynccontextmanager
async def answer_at_multiple(step_s: float, started_s: float) -> AsyncIterator[None]:
    """End the block, with an error too, at a multiple of `step_s` after the start, so that its time shows little.

    step_s: 0 ends it at once.
    """
    try:
        yield
    except ClientDisconnect:
        raise
    except Exception:
        await _until_next_multiple(step_s, started_s)
        raise
    await _until_next_multiple(step_s, started_s)


async def _until_next_multiple(step_s: float, started_s: float) -> None:
    if step_s:
        await asyncio.sleep(-(time.monotonic() - started_s) % step_s)
