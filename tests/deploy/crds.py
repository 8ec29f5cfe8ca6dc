"""Schemas of the custom resources in deploy/, cut down to what we may set; other fields are refused.

Sources, under Apache-2.0:
KEDA, config/crd/bases/keda.sh_scaledobjects.yaml, and https://keda.sh/docs/latest/scalers/prometheus for the metadata.
Prometheus operator, example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml.
KServe, config/crd/full/serving.kserve.io_{inferenceservices,servingruntimes}.yaml, and
pkg/apis/serving/v1beta1/inference_service_validation.go for what its webhook refuses.
KubeRay, ray-operator/config/crd/bases/ray.io_rayservices.yaml.

Parts of pods are left to Kubernetes' own schema: `pods_of`.
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

# Fields of a pod, checked by Kubernetes' own schema.
POD_FIELDS = (
    *("automountServiceAccountToken", "containers", "enableServiceLinks", "nodeSelector", "securityContext"),
    *("serviceAccountName", "terminationGracePeriodSeconds", "tolerations", "volumes"),
)
POD: dict[str, Schema] = {name: {} for name in POD_FIELDS}

EXTERNAL_METRIC = fields(
    "metric target",
    metric=fields("backend query", backend={"const": "prometheus"}, serverAddress=TEXT, query=TEXT, namespace=TEXT),
    # KServe reads `value` alone.
    target=fields("type value", type={"enum": ["Value", "AverageValue"]}, value=NUMBER_AS_TEXT),
)
PREDICTOR: Schema = {
    **fields(
        minReplicas={"type": "integer", "minimum": 1},
        maxReplicas=WHOLE,
        containerConcurrency=WHOLE,
        timeout=WHOLE,
        autoScaling=fields("metrics", metrics=several(fields("type external", type={}, external=EXTERNAL_METRIC))),
        model=fields(
            "modelFormat",
            modelFormat=fields("name", name=TEXT, version=TEXT),
            runtime=TEXT,
            storageUri={"type": "string", "pattern": "^(s3|gs|pvc|oci|hdfs|webhdfs|https?)://"},
        ),
        **POD,
    ),
    "oneOf": [{"required": ["containers"]}, {"required": ["model"]}],
}
SERVING_RUNTIME = fields(
    "supportedModelFormats containers",
    supportedModelFormats=several(
        fields("name", name=TEXT, version=TEXT, autoSelect={"type": "boolean"}, priority=WHOLE)
    ),
    multiModel={"type": "boolean"},
    protocolVersions=several({"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}),
    containers={},
    volumes={},
)

POD_TEMPLATE = fields("spec", metadata=fields(labels=LABELS, annotations=LABELS), spec=fields("containers", **POD))
RAY_SERVICE = fields(
    "serveConfigV2 rayClusterConfig",
    serveConfigV2=TEXT,
    rayClusterConfig=fields(
        "headGroupSpec",
        rayVersion=TEXT,
        enableInTreeAutoscaling={"type": "boolean"},
        headGroupSpec=fields("rayStartParams template", rayStartParams=LABELS, template=POD_TEMPLATE),
        workerGroupSpecs=several(
            fields(
                "groupName minReplicas maxReplicas rayStartParams template",
                groupName=TEXT,
                replicas=WHOLE,
                minReplicas=WHOLE,
                maxReplicas=WHOLE,
                rayStartParams=LABELS,
                template=POD_TEMPLATE,
            )
        ),
    ),
)

CRDS = {
    "InferenceService": resource(
        "serving.kserve.io/v1beta1", "InferenceService", fields("predictor", predictor=PREDICTOR)
    ),
    "ServingRuntime": resource("serving.kserve.io/v1alpha1", "ServingRuntime", SERVING_RUNTIME),
    "RayService": resource("ray.io/v1", "RayService", RAY_SERVICE),
    "ScaledObject": resource("keda.sh/v1alpha1", "ScaledObject", SCALED_OBJECT),
    "ServiceMonitor": resource("monitoring.coreos.com/v1", "ServiceMonitor", SERVICE_MONITOR),
    "PrometheusRule": resource("monitoring.coreos.com/v1", "PrometheusRule", PROMETHEUS_RULE),
}


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Kubernetes' manifests of the pods that a resource of KServe or Ray describes."""
    spec = manifest["spec"]
    match manifest["kind"]:
        case "InferenceService":
            # A predictor with a model has the runtime's container.
            specs = [{"containers": [{"name": "kserve-container"}], **spec["predictor"]}]
        case "ServingRuntime":
            specs = [spec]
        case "RayService":
            cluster = spec["rayClusterConfig"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            specs = [group["template"]["spec"] for group in groups]
        case _:
            specs = []
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "of-it"},
            "spec": {name: value for name, value in each.items() if name in POD},
        }
        for each in specs
    ]
