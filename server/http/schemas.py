"""Models of the answers, for OpenAPI. `responses.py` builds plain dicts, which is faster; tests compare the two."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from offramp.models.exit_policy import ExitReason
from offramp.server.request.parameters import ContractParameters, optional


class Exact(BaseModel):
    """Base: an answer has no other fields."""

    model_config = ConfigDict(extra="forbid")


class ClassProbability(Exact):
    """One class and its calibrated probability."""

    label: str
    class_id: int
    probability: float


class VisitedExit(Exact):
    """The answer of one exit on the way."""

    exit: int
    label: str
    class_id: int
    confidence: float


class InForce(Exact):
    """The contract that was really used."""

    max_disagreement: float = Field(description="The promise of this contract; 0 is full depth.")


class Prediction(Exact):
    """The answer to one picture."""

    label: str = Field(examples=["rocket"])
    class_id: int = Field(examples=[69])
    confidence: float = Field(description="Calibrated probability of the label.", examples=[0.974])
    exit: int | None = optional(
        "Where the picture left, 1..exits. A server in private mode leaves this and the next three out.",
        examples=[2],
    )
    exits: int | None = optional("Exits of the model.", examples=[4])
    exit_reason: ExitReason | None = None
    compute: float | None = optional("Share of the full depth's multiply-adds that was spent.", examples=[0.53])
    in_force: InForce | None = optional(
        "The contract that was really used. Present only if it is not the one asked for: a looser point under load "
        "(degrade_to), or a stricter one after an audit has found the promise broken."
    )
    top_k: list[ClassProbability]
    visited: list[VisitedExit] | None = optional("Every exit passed; with detail=true only.")


class CertifiedPoint(Exact):
    """The certified point that keeps the promise asked for: the model's `certificate` has the rest."""

    max_disagreement: float = Field(description="The proven share: at most the share that was asked for.")
    bound: float = Field(
        description="Upper confidence bound at these thresholds alone. It shows the margin; only max_disagreement is "
        "proven."
    )
    delta: float = Field(description="Chance that the proof is wrong, because its pictures are a random sample.")
    pictures: int = Field(description="Number of pictures of the proof.")
    calibration: str = Field(description="Id of the calibration: its date, and digits of a hash of the certificate.")


class AskedContract(ContractParameters):
    """The contract asked for, with the server's defaults filled in. `in_force` shows another one that was used."""

    disagreement_bound: float | None = optional(
        "Upper confidence bound of the disagreement with full depth at this threshold. It stays valid if you try "
        "several thresholds and keep the best. Only if the bundle has a certificate and no bound on depth was set."
    )
    certified: CertifiedPoint | None = None


class Timing(Exact):
    """Times in milliseconds; the largest queue and the largest inference time of all pictures, each for itself."""

    decode: float
    queue: float
    inference: float
    total: float


class PredictionAnswer(Exact):
    """The answer to one request; predictions in the order of its pictures."""

    model: str = Field(examples=["cifar100-resnet18"])
    version: str = Field(examples=["1"])
    predictions: list[Prediction]
    contract: AskedContract
    timing_ms: Timing | None = optional("Not in private mode.")


class InputFacts(Exact):
    """The network's input: the centre square of a picture, resized."""

    width: int
    height: int
    media_types: list[str]


class ExitFacts(BaseModel):
    """One exit, with further fields that training has recorded, such as its accuracy."""

    model_config = ConfigDict(extra="allow")

    exit: int
    compute: float = Field(description="Share of the full depth's multiply-adds, earlier heads included.")
    multiply_adds: int


class ModelSummary(Exact):
    """One model version, in short."""

    name: str
    version: str
    architecture: str
    classes: int
    exits: int
    threshold: float = Field(description="The default operating point.")
    device: str


class ModelList(Exact):
    """All served models."""

    default: str
    models: list[ModelSummary]


class ModelFacts(Exact):
    """All facts about a model version."""

    name: str
    version: str
    versions: list[str]
    architecture: str
    width: int
    device: str
    labels: list[str]
    input: InputFacts
    threshold: float
    exits: list[ExitFacts]
    operating_points: list[dict[str, Any]]
    certificate: dict[str, Any] | None = Field(
        description="Certified points (max_disagreement, thresholds, bound, compute, exit mix), bounds for any single "
        "threshold, delta, pictures, data, fingerprint and date; null without a certificate."
    )
    fronts: dict[str, Any] = Field(
        description="Pareto fronts: the cheapest thresholds for each disagreement, by multiply-adds and by measured "
        "milliseconds, on the pictures that chose them; for readers. May be empty."
    )
    training: dict[str, Any]
    parameters: int
    multiply_adds: int = Field(description="Multiply-adds of one picture at full depth, all heads included.")


class Status(Exact):
    """Status of the process or of its models."""

    status: Literal["alive", "ready"]


class ProblemDetails(BaseModel):
    """An error (RFC 9457), with further fields, such as the limit or the picture's index."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:offramp:problem:invalid-parameter"])
    title: str = Field(examples=["A parameter is wrong"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["threshold 'abc' is not allowed: give a number in [0, 1]"])
    instance: str = Field(examples=["/v1/predict"])
    request_id: str
