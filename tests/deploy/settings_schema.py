"""The schema of the chart's `settings`, as server/settings.py declares them.

python -m tests.deploy.settings_schema writes it into values.schema.json.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from offramp.server.engine.choices import ON_ALARM, PRECISIONS, RUNNERS
from offramp.server.engine.policies import POLICIES
from offramp.server.settings import LOG_LEVELS, Settings

SCHEMA = Path(__file__).resolve().parents[2] / "deploy/helm/offramp/values.schema.json"

# The chart has values of its own for these.
OF_THE_CHART = frozenset({"model", "api_keys", "api_keys_file"})

# The templates compute with them, and the probes ask there.
REQUIRED = ["host", "port", "max_wait_s", "max_queue", "drain_delay_s", "drain_timeout_s"]

CHOICES = {
    "runner": RUNNERS,
    "precision": PRECISIONS,
    "policy": tuple(POLICIES),
    "audit_on_alarm": ON_ALARM,
    "log_level": LOG_LEVELS,
}
TYPES = {bool: "boolean", int: "integer", float: "number"}


def settings_schema() -> dict[str, Any]:
    """JSON schema of all settings that the chart hands on to the server."""
    hints = get_type_hints(Settings, include_extras=True)
    properties = {}
    for option in fields(Settings):
        if option.name not in OF_THE_CHART:
            kind, declared = get_args(hints[option.name])
            limits = {"minimum": declared.min, "maximum": declared.max, "enum": CHOICES.get(option.name)}
            properties[option.name] = {
                "description": declared.help,
                "type": TYPES.get(kind, "string"),
                **{name: limit for name, limit in limits.items() if limit is not None},
            }
    # The Service and the probes need a port that is known, and reach no loopback address.
    properties["port"]["minimum"] = 1
    properties["host"]["not"] = {"pattern": r"^(127\.|localhost$|::1$)"}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": REQUIRED,
        "properties": json.loads(json.dumps(properties)),
        # The server would take all cores of the node for each.
        "if": {"required": ["frontends"], "properties": {"frontends": {"minimum": 1}}},
        "then": {"required": ["decode_threads"]},
    }


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
