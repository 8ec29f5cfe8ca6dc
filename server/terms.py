"""Terms: what a request's parameters come to for one served model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from models.certificate import Certificate, CertifiedPoint
from models.exit_policy import ExitRule
from server.engine.request import Contract, Promise, Rung
from server.parameters import Parameters
from server.problems import INVALID_PARAMETER, NOT_CERTIFIED, Problem
from server.registry import ServedModel


@dataclass(frozen=True)
class Defaults:
    """What holds where a request names nothing else. deadline_ms: 0 for none. brownout_to: see `degrade_to`."""

    deadline_ms: float = 0.0
    brownout_to: float = 0.0


@dataclass(frozen=True)
class Terms:
    """Parameters made concrete for one served model: when its pictures leave, and how the answer says so.

    contract: for the engine, without its deadline. told: the same for the client.
    """

    contract: Contract
    deadline_ms: float | None
    top_k: int
    detail: bool
    told: dict[str, Any]


def make_terms(parameters: Parameters, served: ServedModel, defaults: Defaults) -> Terms:
    """The terms for a model of K exits. Raises Problem (422) where they ask for what the model does not have."""
    num_exits, bundle = served.num_exits, served.bundle
    for name in ("min_exit", "max_exit"):
        _within(name, getattr(parameters, name), num_exits, f"{bundle.name} has exits 1 to {num_exits}")
    _within("top_k", parameters.top_k, len(bundle.labels), f"{bundle.name} knows {len(bundle.labels)} classes")
    if parameters.max_disagreement is not None:
        contract, told = _certified(parameters.max_disagreement, served)
    else:
        contract, told = _by_thresholds(parameters, served)
    looser, told_looser = _looser(parameters, served, contract.promise, defaults)
    deadline_ms = parameters.deadline_ms or defaults.deadline_ms or None
    bounds = {"min_exit": parameters.min_exit, "max_exit": parameters.max_exit, "deadline_ms": deadline_ms}
    told |= {**told_looser, **{name: value for name, value in bounds.items() if value is not None}}
    return Terms(replace(contract, looser=looser), deadline_ms, parameters.top_k, parameters.detail, told)


# What shows where pictures leave: bounds that end at an exit, thresholds to compare confidences with, exits themselves.
TELLING = ("threshold", "thresholds", "min_exit", "max_exit", "detail")
CONFIDENCE_DIGITS = 2


def in_private(terms: Terms, parameters: Parameters) -> Terms:
    """The same terms where nobody is to know at which exit a picture left.

    Raises Problem (422) for parameters that would show it.
    """
    telling = [name for name in TELLING if (value := getattr(parameters, name)) is not None and value is not False]
    if telling:
        detail = (
            f"{telling[0]} would tell at which exit pictures leave, and this server keeps that to itself: leave it "
            "out, or ask with max_disagreement"
        )
        raise Problem(INVALID_PARAMETER, detail, parameters=telling)
    shown = {name: value for name, value in terms.told.items() if name not in ("threshold", "thresholds")}
    return replace(terms, told=shown)


def _certified(max_disagreement: float, served: ServedModel) -> tuple[Contract, dict[str, Any]]:
    certificate = _certificate(served, "max_disagreement")
    point = _point(certificate, max_disagreement, served, "max_disagreement")
    stricter = [_rung(one) for one in certificate.points if one.max_disagreement < point.max_disagreement]
    full_depth = Rung(ExitRule.uniform(1.0, served.num_exits))
    rule, promise = _rung(point)
    contract = Contract(rule, None, promise, (*reversed(stricter), full_depth))
    told = {
        "max_disagreement": max_disagreement,
        "certified": {
            "max_disagreement": point.max_disagreement,
            "bound": rounded_up(point.bound),
            "delta": certificate.delta,
            "pictures": certificate.pictures,
            "calibration": certificate.version,
        },
        "thresholds": [rounded_up(threshold) for threshold in point.thresholds],
    }
    return contract, told


def _by_thresholds(parameters: Parameters, served: ServedModel) -> tuple[Contract, dict[str, Any]]:
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
        return Contract(ExitRule(tuple(parameters.thresholds), low, high)), {"thresholds": parameters.thresholds}
    threshold = bundle.threshold if parameters.threshold is None else parameters.threshold
    rule, told = ExitRule.uniform(threshold, num_exits, low, high), {"threshold": threshold}
    # Bounds on depth leave at other exits than those that the bound was found for.
    if bundle.certificate is None or (low, high) != (1, num_exits):
        return Contract(rule), told
    bound = bundle.certificate.bound(threshold)
    return Contract(rule, None, Promise(bound, certified=False)), {**told, "disagreement_bound": rounded_up(bound)}


def rounded_up(bound: float) -> float:
    """To six digits, and never below."""
    return math.ceil(round(bound * 1e6, 3)) / 1e6


def _looser(
    parameters: Parameters, served: ServedModel, promise: Promise | None, defaults: Defaults
) -> tuple[tuple[Rung, ...], dict[str, Any]]:
    """What may take the contract's place under load: certified points beyond what is promised anyway."""
    asked = ("threshold", "thresholds", "max_disagreement", "min_exit", "max_exit")
    to, told = parameters.degrade_to, {"degrade_to": parameters.degrade_to}
    if to is None:
        named = any(getattr(parameters, name) is not None for name in asked)
        certificate = served.bundle.certificate
        if named or not defaults.brownout_to or certificate is None or not certificate.points:
            return (), {}
        to, told = defaults.brownout_to, {}
    else:
        _point(_certificate(served, "degrade_to"), to, served, "degrade_to")
    least = promise.max_disagreement if promise else 0.0
    points = [point for point in _certificate(served, "degrade_to").points if least < point.max_disagreement <= to]
    return tuple(map(_rung, points)), told


def _rung(point: CertifiedPoint) -> Rung:
    return Rung(ExitRule(point.thresholds), Promise(point.max_disagreement, certified=True))


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
    point = certificate.point(wanted)
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


def _within(name: str, value: int | None, limit: int, reason: str) -> None:
    if value is not None and value > limit:
        detail = f"{name} {value} is out of range: give a whole number from 1 to {limit}; {reason}"
        raise Problem(INVALID_PARAMETER, detail, parameters=[name])
