"""What the server says: predictions, and what a bundle tells of itself, as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response

from models.exit_policy import ranking
from server.engine.request import Answer
from server.images import MEDIA_TYPES
from server.registry import Registry, ServedModel
from server.terms import CONFIDENCE_DIGITS, Terms

# Of probabilities.
DIGITS = 6


def prediction_response(
    served: ServedModel,
    terms: Terms,
    answers: Sequence[Answer],
    decode_s: float,
    started_s: float,
    private: bool = False,
) -> Response:
    """The answer to one request. decode_s: time until all pictures were decoded; started_s: when it came.

    private: without anything that tells how deep a picture went: exit, reason, compute, times.
    """
    content: dict[str, Any] = {
        "model": served.bundle.name,
        "version": served.bundle.version,
        "predictions": [_prediction(served, terms, answer, private) for answer in answers],
        "contract": terms.told,
    }
    if private:
        return json_response(content)
    queue_ms = max(answer.queue_s for answer in answers) * 1000
    inference_ms = max(answer.inference_s for answer in answers) * 1000
    decode_ms = decode_s * 1000
    content["timing_ms"] = {
        "decode": round(decode_ms, 3),
        "queue": round(queue_ms, 3),
        "inference": round(inference_ms, 3),
        "total": round((time.monotonic() - started_s) * 1000, 3),
    }
    headers = {
        "Server-Timing": f"decode;dur={decode_ms:.3f}, queue;dur={queue_ms:.3f}, inference;dur={inference_ms:.3f}"
    }
    if len(answers) == 1:
        headers["X-Offramp-Exit"] = str(answers[0].exit)
    return json_response(content, headers)


def json_response(content: Any, headers: dict[str, str] | None = None) -> Response:
    """application/json, as one line."""
    return Response(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE), 200, headers, "application/json")


def model_summary(served: ServedModel) -> dict[str, Any]:
    """`schemas.ModelSummary`."""
    bundle = served.bundle
    return {
        "name": bundle.name,
        "version": bundle.version,
        "architecture": bundle.config.architecture,
        "classes": bundle.config.num_classes,
        "exits": served.num_exits,
        "threshold": bundle.threshold,
        "device": served.device,
    }


def model_facts(served: ServedModel, registry: Registry) -> dict[str, Any]:
    """`schemas.ModelFacts`."""
    bundle, cost = served.bundle, served.cost
    recorded = bundle.exits or ({},) * served.num_exits
    spent = cost.sequential_multiply_adds
    return {
        "name": bundle.name,
        "version": bundle.version,
        "versions": list(registry.versions(bundle.name)),
        "architecture": bundle.config.architecture,
        "width": bundle.config.width,
        "device": served.device,
        "labels": list(bundle.labels),
        "input": {
            "width": bundle.config.input_size,
            "height": bundle.config.input_size,
            "media_types": list(MEDIA_TYPES),
        },
        "threshold": bundle.threshold,
        "exits": [
            {**recorded[k], "exit": k + 1, "compute": served.compute[k], "multiply_adds": spent[k]}
            for k in range(served.num_exits)
        ],
        "operating_points": list(bundle.operating_points),
        "certificate": bundle.certificate and {**bundle.certificate.as_json(), "version": bundle.certificate.version},
        "fronts": bundle.fronts,
        "training": bundle.training,
        "parameters": cost.total_parameters,
        "multiply_adds": spent[-1],
    }


def _prediction(served: ServedModel, terms: Terms, answer: Answer, private: bool) -> dict[str, Any]:
    labels = served.bundle.labels
    prediction: dict[str, Any] = {
        "label": labels[answer.class_id],
        "class_id": answer.class_id,
        "confidence": round(answer.confidence, CONFIDENCE_DIGITS if private else DIGITS),
    }
    if answer.rung:
        promise = terms.contract.rung(answer.rung).promise
        prediction["in_force"] = {"max_disagreement": promise.max_disagreement if promise else 0.0}
    if not private:
        prediction |= {
            "exit": answer.exit,
            "exits": served.num_exits,
            "exit_reason": answer.reason.value,
            "compute": served.compute[answer.exit - 1],
        }
    prediction["top_k"] = [
        {
            "label": labels[class_id],
            "class_id": class_id,
            "probability": round(probability, CONFIDENCE_DIGITS if private else DIGITS),
        }
        for class_id, probability in _most_probable(answer, terms.top_k)
    ]
    if terms.detail:
        prediction["visited"] = [
            {
                "exit": visit.exit,
                "label": labels[visit.class_id],
                "class_id": visit.class_id,
                "confidence": round(visit.confidence, DIGITS),
            }
            for visit in answer.visited
        ]
    return prediction


def _most_probable(answer: Answer, top_k: int) -> list[tuple[int, float]]:
    if top_k == 1:
        return [(answer.class_id, answer.confidence)]
    return ranking(answer.probabilities_C, top_k)
