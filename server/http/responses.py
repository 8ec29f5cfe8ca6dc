"""The JSON answers of the server: predictions, and the facts of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response

from offramp.models.exit_policy import ranking
from offramp.server.engine.request import Answer
from offramp.server.registry import Registry, ServedModel
from offramp.server.request.images import MEDIA_TYPES
from offramp.server.request.privacy import redact
from offramp.server.request.resolve import ResolvedRequest

# Digits of probabilities.
DIGITS = 6


def prediction_response(
    resolved: ResolvedRequest, answers: Sequence[Answer], decode_s: float, total_s: float, private: bool = False
) -> Response:
    """The answer to one request, which took `total_s`. private: see `privacy`."""
    bundle = resolved.served.bundle
    times_ms = {
        "decode": decode_s * 1000,
        "queue": max(answer.queue_s for answer in answers) * 1000,
        "inference": max(answer.inference_s for answer in answers) * 1000,
    }
    content = {
        "model": bundle.name,
        "version": bundle.version,
        "predictions": [_prediction(resolved, answer) for answer in answers],
        "contract": resolved.echo,
        "timing_ms": {name: round(ms, 3) for name, ms in (*times_ms.items(), ("total", total_s * 1000))},
    }
    if private:
        return json_response(redact(content))
    headers = {"Server-Timing": ", ".join(f"{name};dur={ms:.3f}" for name, ms in times_ms.items())}
    if len(answers) == 1:
        headers["X-Offramp-Exit"] = str(answers[0].exit)
    return json_response(content, headers)


def json_response(content: Any, headers: dict[str, str] | None = None) -> Response:
    """application/json, in one line."""
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
    multiply_adds = cost.sequential_multiply_adds
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
            {**recorded[k], "exit": k + 1, "compute": served.compute[k], "multiply_adds": multiply_adds[k]}
            for k in range(served.num_exits)
        ],
        "operating_points": list(bundle.operating_points),
        "certificate": bundle.certificate
        and {**bundle.certificate.as_json(), "version": bundle.certificate.calibration_id},
        "fronts": bundle.fronts,
        "training": bundle.training,
        "parameters": cost.total_parameters,
        "multiply_adds": multiply_adds[-1],
    }


def _prediction(resolved: ResolvedRequest, answer: Answer) -> dict[str, Any]:
    served = resolved.served
    labels = served.bundle.labels
    prediction: dict[str, Any] = {
        "label": labels[answer.class_id],
        "class_id": answer.class_id,
        "confidence": round(answer.confidence, DIGITS),
    }
    if answer.replacement is not None:
        prediction["in_force"] = {"max_disagreement": answer.replacement.max_disagreement}
    prediction |= {
        "exit": answer.exit,
        "exits": served.num_exits,
        "exit_reason": answer.reason.value,
        "compute": served.compute[answer.exit - 1],
    }
    prediction["top_k"] = [
        {"label": labels[class_id], "class_id": class_id, "probability": round(probability, DIGITS)}
        for class_id, probability in _most_probable(answer, resolved.parameters.top_k)
    ]
    if resolved.parameters.detail:
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
