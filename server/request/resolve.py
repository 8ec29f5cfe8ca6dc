"""The parameters of a request become a contract for one served model, with its echo in the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from offramp.models.certificate import Certificate, CertifiedPoint
from offramp.models.exit_policy import ExitRule
from offramp.server.engine.request import Contract, ExitPlan, Promise
from offramp.server.http.problems import INVALID_PARAMETER, NOT_CERTIFIED, Problem
from offramp.server.registry import ServedModel
from offramp.server.request.client_limits import Cost
from offramp.server.request.parameters import ContractParameters, Parameters, quoted
from offramp.server.settings import Settings

CONTRACT = set(ContractParameters.model_fields)


@dataclass(frozen=True)
class ResolvedRequest:
    """A request for one served model. parameters: as given. echo: for the answer, what was asked, with defaults."""

    served: ServedModel
    contract: Contract
    deadline_ms: float | None
    parameters: Parameters
    echo: dict[str, Any]

    @property
    def worst_cost(self) -> Cost:
        """Cost of a picture that leaves at the deepest exit of the contract."""
        return self.served.cost_at(self.contract.asked.rule.max_exit)

    def deadline_s(self, started_s: float) -> float | None:
        """The deadline of a request that started at that time; None for none."""
        return None if self.deadline_ms is None else started_s + self.deadline_ms / 1000


def resolve(parameters: Parameters, served: ServedModel, settings: Settings) -> ResolvedRequest:
    """Resolve parameters for a model; settings has the default deadline and brownout. Raises Problem (422)."""
    num_exits, bundle = served.num_exits, served.bundle
    for name in ("min_exit", "max_exit"):
        _check_at_most(name, getattr(parameters, name), num_exits, f"{bundle.name} has exits 1 to {num_exits}")
    _check_at_most("top_k", parameters.top_k, len(bundle.labels), f"{bundle.name} has {len(bundle.labels)} classes")
    if parameters.max_disagreement is not None:
        asked, stricter, echo = _certified(parameters.max_disagreement, served)
    else:
        asked, echo = _by_thresholds(parameters, served)
        stricter = ()
    looser = _looser(parameters, served, asked.promise, settings)
    deadline_ms = parameters.deadline_ms or settings.deadline_ms or None
    echo |= parameters.model_dump(include=CONTRACT, exclude_none=True)
    if deadline_ms is not None:
        echo["deadline_ms"] = deadline_ms
    contract = Contract(asked, stricter, looser, **shared_fields(parameters, Contract))
    return ResolvedRequest(served, contract, deadline_ms, parameters, echo)


def shared_fields(parameters: Parameters, contract: type) -> dict[str, Any]:
    """The given parameters that a contract class has under the same name: the engine gets them unchanged."""
    names = {field.name for field in fields(contract)}
    return {name: value for name, value in parameters if name in names and value is not None}


def _certified(max_disagreement: float, served: ServedModel) -> tuple[ExitPlan, tuple[ExitPlan, ...], dict[str, Any]]:
    certificate = _certificate(served, "max_disagreement")
    point = _point(certificate, max_disagreement, served, "max_disagreement")
    stricter = [_plan(other) for other in certificate.points if other.max_disagreement < point.max_disagreement]
    full_depth = ExitPlan(ExitRule.uniform(1.0, served.num_exits), Promise(0.0, certified=True))
    echo = {
        "max_disagreement": max_disagreement,
        "certified": {
            "max_disagreement": point.max_disagreement,
            "bound": rounded_up(point.bound),
            "delta": certificate.delta,
            "pictures": certificate.pictures,
            "calibration": certificate.calibration_id,
        },
        "thresholds": [rounded_up(threshold) for threshold in point.thresholds],
    }
    return _plan(point), (*reversed(stricter), full_depth), echo


def _by_thresholds(parameters: Parameters, served: ServedModel) -> tuple[ExitPlan, dict[str, Any]]:
    num_exits, bundle = served.num_exits, served.bundle
    low, high = parameters.min_exit or 1, parameters.max_exit or num_exits
    if parameters.thresholds is not None:
        if len(parameters.thresholds) != num_exits - 1:
            raise Problem(
                INVALID_PARAMETER,
                f"thresholds has {len(parameters.thresholds)} numbers: give {num_exits - 1}, one per early exit "
                f"of {bundle.name}",
                parameters=["thresholds"],
            )
        return ExitPlan(ExitRule(tuple(parameters.thresholds), low, high)), {"thresholds": parameters.thresholds}
    threshold = bundle.threshold if parameters.threshold is None else parameters.threshold
    rule, echo = ExitRule.uniform(threshold, num_exits, low, high), {"threshold": threshold}
    # The bound holds without bounds on depth.
    if bundle.certificate is None or (low, high) != (1, num_exits):
        return ExitPlan(rule), echo
    bound = bundle.certificate.bound_at(threshold)
    return ExitPlan(rule, Promise(bound, certified=False)), {**echo, "disagreement_bound": rounded_up(bound)}


def rounded_up(bound: float) -> float:
    """The next number of six digits at or above it."""
    return math.ceil(round(bound * 1e6, 3)) / 1e6


def _looser(
    parameters: Parameters, served: ServedModel, promise: Promise | None, settings: Settings
) -> tuple[ExitPlan, ...]:
    """The certified plans beyond the promise, up to `degrade_to` or the server's default."""
    limit = parameters.degrade_to
    if limit is None:
        names = ("threshold", "thresholds", "max_disagreement", "min_exit", "max_exit")
        asked = any(getattr(parameters, name) is not None for name in names)
        certificate = served.bundle.certificate
        if asked or not settings.brownout_to or certificate is None or not certificate.points:
            return ()
        limit = settings.brownout_to
    else:
        _point(_certificate(served, "degrade_to"), limit, served, "degrade_to")
    promised = promise.max_disagreement if promise else 0.0
    points = _certificate(served, "degrade_to").points
    return tuple(_plan(point) for point in points if promised < point.max_disagreement <= limit)


def _plan(point: CertifiedPoint) -> ExitPlan:
    return ExitPlan(ExitRule(point.thresholds), Promise(point.max_disagreement, certified=True))


def _certificate(served: ServedModel, name: str) -> Certificate:
    bundle = served.bundle
    if bundle.certificate is None or not bundle.certificate.points:
        raise Problem(
            NOT_CERTIFIED,
            f"{bundle.name}, version {bundle.version}, certifies nothing, so that {name} cannot be kept: ask with "
            "threshold or thresholds, or have the operator run `offramp calibrate`",
            parameters=[name],
            certified=[],
        )
    return bundle.certificate


def _point(certificate: Certificate, wanted: float, served: ServedModel, name: str) -> CertifiedPoint:
    point = certificate.point_for(wanted)
    if point is None:
        certified = list(certificate.promises)
        raise Problem(
            NOT_CERTIFIED,
            f"{name} {wanted} cannot be certified: {served.bundle.name} certifies {', '.join(map(str, certified))}; "
            "threshold=1 always answers at full depth",
            parameters=[name],
            certified=certified,
        )
    return point


def _check_at_most(name: str, value: int | None, limit: int, reason: str) -> None:
    if value is not None and value > limit:
        detail = f"{name} {quoted(value)} is out of range: give a whole number from 1 to {limit}; {reason}"
        raise Problem(INVALID_PARAMETER, detail, parameters=[name])
