"""Schema of a Compose file, cut down to what ours may set; other fields are refused.

Source, under Apache-2.0: the Compose Specification, schema/compose-spec.json.
"""

from tests.deploy.crds import LABELS, TEXT, Schema, fields, several

TEXTS = several(TEXT)
SIZE: Schema = {"type": "string", "pattern": "^[0-9]+[bkmg]$"}
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}


def named(value: Schema) -> Schema:
    """An object of any names."""
    return {"type": "object", "additionalProperties": False, "patternProperties": {"^[a-zA-Z0-9._-]+$": value}}


SERVICE = fields(
    "image",
    build=TEXT,
    cap_drop=TEXTS,
    command=TEXTS,
    cpus={"type": "number"},
    depends_on=named(fields("condition", condition={"enum": ["service_started", "service_healthy"]})),
    environment=LABELS,
    healthcheck=fields(
        "test",
        test={"type": "array", "minItems": 2, "items": TEXT},
        interval=DURATION,
        timeout=DURATION,
        start_period=DURATION,
        retries={"type": "integer"},
    ),
    image=TEXT,
    mem_limit=SIZE,
    ports=TEXTS,
    read_only={"type": "boolean"},
    restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
    security_opt=TEXTS,
    stop_grace_period=DURATION,
    tmpfs=TEXTS,
    user=TEXT,
    volumes=TEXTS,
)
COMPOSE: Schema = {
    **fields("services", name=TEXT, services=named(SERVICE), volumes=named(fields())),
    "patternProperties": {"^x-": {}},
}
