"""Schemas of the custom resources that the chart writes, cut down to what a chart may set; other fields are refused.

Sources, under Apache-2.0:
KEDA, config/crd/bases/keda.sh_scaledobjects.yaml, and https://keda.sh/docs/latest/scalers/prometheus for the metadata.
Prometheus operator, example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
DURATION: Schema = {
    "type": "string",
    "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
}
NUMBER_AS_TEXT: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object of these fields and no others; required: names with blanks between."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def several(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = fields("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


RULES = fields(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
    policies=several(
        fields("type value periodSeconds", type={"enum": ["Pods", "Percent"]}, value=WHOLE, periodSeconds=WHOLE)
    ),
)
TRIGGER = fields(
    "type metadata",
    type={"const": "prometheus"},
    name=TEXT,
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=fields(
        "serverAddress query threshold",
        serverAddress=TEXT,
        query=TEXT,
        threshold=NUMBER_AS_TEXT,
        activationThreshold=NUMBER_AS_TEXT,
        ignoreNullValues={"enum": ["true", "false"]},
    ),
    authenticationRef=fields("name", name=TEXT, kind=TEXT),
)
SCALED_OBJECT = fields(
    "scaleTargetRef triggers",
    scaleTargetRef=fields("name", apiVersion=TEXT, kind=TEXT, name=TEXT, envSourceContainerName=TEXT),
    pollingInterval=WHOLE,
    cooldownPeriod=WHOLE,
    minReplicaCount=WHOLE,
    maxReplicaCount=WHOLE,
    advanced=fields(
        restoreToOriginalReplicaCount={"type": "boolean"},
        horizontalPodAutoscalerConfig=fields(name=TEXT, behavior=fields(scaleUp=RULES, scaleDown=RULES)),
    ),
    triggers=several(TRIGGER),
)
SERVICE_MONITOR = fields(
    "selector endpoints",
    jobLabel=TEXT,
    selector=fields("matchLabels", matchLabels=LABELS),
    endpoints=several(fields("port", port=TEXT, path=TEXT, scheme=TEXT, interval=DURATION, scrapeTimeout=DURATION)),
)
RULE = fields(
    "expr alert",
    alert=TEXT,
    expr=TEXT,
    keep_firing_for=DURATION,
    labels=LABELS,
    annotations=LABELS,
    **{"for": DURATION},
)
PROMETHEUS_RULE = fields("groups", groups=several(fields("name", name=TEXT, interval=DURATION, rules=several(RULE))))

CRDS = {
    "ScaledObject": resource("keda.sh/v1alpha1", "ScaledObject", SCALED_OBJECT),
    "ServiceMonitor": resource("monitoring.coreos.com/v1", "ServiceMonitor", SERVICE_MONITOR),
    "PrometheusRule": resource("monitoring.coreos.com/v1", "PrometheusRule", PROMETHEUS_RULE),
}
