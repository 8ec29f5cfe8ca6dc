"""Offramp as an application of Ray Serve: replicas of the same web application, each with its own engine.

    serve run offramp.server.ray_app:app replicas=2 model=runs/photos/bundle

Ray starts, checks, scales and replaces the replicas. Its proxy replaces the HTTP server. Needs the `ray` extra.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import ray
from prometheus_client import Metric
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve import metrics as ray_metrics
from starlette.types import ASGIApp, Receive, Scope, Send

from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import EMBEDDED, load_bundle
from offramp.server.http.app import create_app
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.serve import configure_logging, log_config
from offramp.server.settings import Settings

logger = logging.getLogger(__name__)

# Options of the HTTP server and its processes, which Ray replaces.
NOT_WITH_RAY = frozenset(
    (
        *("host", "port", "frontends", "drain_delay_s", "drain_timeout_s", "trusted_proxies", "allowed_hosts"),
        *("max_connections", "client_max_connections", "max_header_kib", "max_headers", "max_url_kib"),
        *("header_timeout_s", "body_timeout_s", "keep_alive_s", "write_timeout_s"),
    )
)

# Arguments that are no options of `offramp serve`, and their largest value.
REPLICAS, CPUS, GPUS = "replicas", "cpus", "gpus"
MAX_NUMBER = 100_000

# Pause between two copies of the metrics to Ray's, which Ray exports every 10 s.
COPY_S = 5.0


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application for `serve run` and `serve deploy`.

    arguments: `replicas` (1), `cpus` (1) and `gpus` (0) of each replica, and options of `offramp serve` with _ for -.
    Raises ValueError that names a wrong argument.
    """
    given = {str(name): value for name, value in arguments.items()}
    actor = {"num_cpus": number_of(given, CPUS, 1, least=0.001), "num_gpus": number_of(given, GPUS, 0)}
    replicas = number_of(given, REPLICAS, 0)
    if replicas != int(replicas):
        raise ValueError(f"{REPLICAS} {replicas} is out of range: give a whole number")
    settings = settings_of(given)
    load_backbones(settings.backbones)
    for path in settings.model or [EMBEDDED]:
        # A wrong bundle fails here, while the old replicas still serve. BundleError is a ValueError.
        load_bundle(path)
    options: dict[str, Any] = {"ray_actor_options": actor, "max_ongoing_requests": settings.max_queue}
    if replicas:
        options["num_replicas"] = int(replicas)
    return Offramp.options(**options).bind(settings)  # type: ignore[attr-defined]


def number_of(arguments: dict[str, Any], name: str, default: float, least: float = 0) -> float:
    """Take a number out of the arguments. Raises ValueError that names it."""
    value = arguments.pop(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} {value!r} is not a number: give one such as 1") from None
    # NaN fails as well.
    if not least <= number <= MAX_NUMBER:
        raise ValueError(f"{name} {value!r} is out of range: give a number from {least} to {MAX_NUMBER}")
    # Ray counts in steps of 0.0001.
    return round(number, 4)


def settings_of(arguments: Mapping[str, Any]) -> Settings:
    """Options of `offramp serve` as texts or values. Raises ValueError that names a wrong one."""
    known = {option.name for option in fields(Settings)} - NOT_WITH_RAY
    if unknown := arguments.keys() - known:
        name = min(unknown)
        why = (
            "is an option that Ray replaces: leave it out" if name in NOT_WITH_RAY else "is no option of offramp serve"
        )
        raise ValueError(f"{name} {why}; the arguments are replicas, cpus, gpus, {', '.join(sorted(known))}")
    model = arguments.get("model")
    given = {**arguments, "model": model.split(",")} if isinstance(model, str) else arguments
    try:
        settings = TypeAdapter(Settings).validate_python(given)
    except ValidationError as error:
        # Without the values: the API keys may be among them.
        first = error.errors(include_input=False)[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {message}" if place else message) from None
    settings.read_api_keys()
    return settings


@serve.deployment(health_check_period_s=2.0, graceful_shutdown_timeout_s=40.0)
@serve.ingress()
class Offramp:
    """One replica. It is ready once its models are warm, and healthy while their engines run."""

    def __init__(self, settings: Settings) -> None:
        configure_logging(log_config(settings.log_level))
        cpus = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        settings = replace(settings, threads=settings.threads or cpus, decode_threads=settings.decode_threads or cpus)
        self._metrics = Metrics()
        self._registry = load_registry(settings, self._metrics)
        self._app = create_app(self._registry, settings, self._metrics, warm_first=True)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self._copying = asyncio.get_running_loop().create_task(copy_metrics(self._metrics))
        return WithoutPrefix(self._app)

    def check_health(self) -> None:
        """Raises RuntimeError with the reason if the replica cannot answer."""
        if (reason := self._registry.why_not_ready()) is not None:
            raise RuntimeError(reason)


class WithoutPrefix:
    """Removes Ray's route prefix from the paths that the application sees."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("root_path"):
            scope["path"] = scope["path"].removeprefix(scope["root_path"]) or "/"
        await self.app(scope, receive, send)


async def copy_metrics(metrics: Metrics) -> None:
    """Copy the metrics to Ray's again and again. Ray adds labels for application, deployment and replica."""
    gauges = Gauges()
    while True:
        for metric in metrics.collect():
            try:
                gauges.copy(metric)
            except ValueError as error:
                logger.warning("%s is not copied to Ray's metrics: %s", metric.name, error)
            # Other work runs between two metrics.
            await asyncio.sleep(0)
        await asyncio.sleep(COPY_S)


class Gauges:
    """Ray's gauges, one for each name of a sample. Buckets and counters are copied as plain numbers."""

    def __init__(self) -> None:
        self._gauges: dict[str, ray_metrics.Gauge] = {}

    def copy(self, metric: Metric) -> None:
        """Copy the samples of a metric. Ray has its own metrics of the process."""
        if metric.name.startswith(("process_", "python_")):
            return
        for sample in metric.samples:
            if sample.name not in self._gauges:
                keys = tuple(sample.labels)
                self._gauges[sample.name] = ray_metrics.Gauge(sample.name, metric.documentation, tag_keys=keys)
            self._gauges[sample.name].set(sample.value, dict(sample.labels))
