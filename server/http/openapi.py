"""Additions to FastAPI's /openapi.json: three forms of body, and errors as problem+json."""

from __future__ import annotations

from typing import Any

from offramp.server.http.problems import KINDS, MEDIA_TYPE
from offramp.server.http.schemas import ProblemDetails
from offramp.server.request.images import MEDIA_TYPES
from offramp.server.request.parameters import Parameters

PICTURE = {"type": "string", "format": "binary"}

# A GIF of one pixel: the example on the docs page gets an answer without changes.
EXAMPLE_PICTURE = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

COMMA_SEPARATED = {"style": "form", "explode": False}

PREDICTION_ERRORS = (400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504)
MODEL_ERRORS = (401, 403, 404, 500)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`: each error status with its kinds of problem."""
    return {
        status: {
            "description": "; ".join(kind.title for kind in KINDS if kind.status == status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def prediction_extra() -> dict[str, Any]:
    """For FastAPI's `openapi_extra`: the parameters and the three forms of body."""
    properties = _parameter_schemas()
    return {
        "parameters": [_query_parameter(name, schema) for name, schema in properties.items()],
        "requestBody": {
            "required": True,
            "description": "One picture as it is, or several in a form or in JSON. Parameters may stand in the query "
            "string, in the form's fields or in the JSON object; one that stands twice must have the same value.",
            "content": {
                **{media_type: {"schema": PICTURE} for media_type in (*MEDIA_TYPES, "application/octet-stream")},
                "multipart/form-data": {
                    "schema": _object("image", {"type": "array", "items": PICTURE, "minItems": 1}, properties),
                    "encoding": {"thresholds": COMMA_SEPARATED},
                },
                "application/json": {
                    "example": {"images": [EXAMPLE_PICTURE]},
                    "schema": _object(
                        "images",
                        {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}, "minItems": 1},
                        properties,
                    ),
                },
            },
        },
    }


def complete(schema: dict[str, Any], with_keys: bool) -> dict[str, Any]:
    """FastAPI's document with the problem schema and, where keys are set, the ways to send one."""
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {})["ProblemDetails"] = ProblemDetails.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if with_keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in schema["paths"].items():
            if path.startswith("/v1/"):
                for operation in operations.values():
                    operation["security"] = [{"bearer": []}, {"key": []}]
    return schema


def _parameter_schemas() -> dict[str, dict[str, Any]]:
    """The schema of each parameter, without default and null: tools would send them."""
    schemas = {}
    for name, schema in Parameters.model_json_schema()["properties"].items():
        kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
        schema.pop("default", None)
        schemas[name] = {**schema, **(kinds[0] if kinds else {})}
    return schemas


def _query_parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    parameter = {"name": name, "in": "query", "required": False, "schema": schema}
    style = COMMA_SEPARATED if name == "thresholds" else {}
    return parameter | style | {"description": schema["description"]}


def _object(image_name: str, images: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [image_name],
        "properties": {image_name: images, **properties},
        "additionalProperties": False,
    }
