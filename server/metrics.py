"""Prometheus metrics. The engine and the routes report events as data; here they are counted.

METRICS declares every metric of an event; docs/metrics.md says what each is for. A series exists from the start, at
zero, if its labels are known then.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from offramp.models.bundle import Bundle
from offramp.models.cost import NetworkCost
from offramp.models.exit_policy import ExitReason
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.promises.audit import THRESHOLDS
from offramp.server.engine.stats import AuditReport, BrownoutLevel, CancelStats, Event, SampleStats, StepStats
from offramp.server.http.exposition import Exposition
from offramp.server.http.problems import CLIENT_GONE_STATUS, HTTP_REJECTIONS, KINDS, REJECTIONS
from offramp.server.http.request_log import RequestLog
from offramp.server.processes.process_metrics import ServerProcessCollector
from offramp.server.registry import EngineClient

# The `model` label of requests that name no served model; no model can have this name.
NO_MODEL = "(none)"

CODES = ("200", str(CLIENT_GONE_STATUS), *sorted({str(kind.status) for kind in KINDS}))
UPLOADING = "upload"
PHASES = (UPLOADING, "queued", "running")
# The `promise` label of the bounds of thresholds; the label of a certified promise is its disagreement.
THRESHOLDS_LABEL = "threshold"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FINE_SECONDS = (0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, *SECONDS[3:])
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def share_counters(folder: Path, process: str) -> None:
    """Count in files under `folder`, as the other processes of the server do. It holds for the whole process.

    process: a name without '_' that no other process has at the same time. The next process of this name goes on with
    its counts, so that no counter falls after a restart.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


class Declared(NamedTuple):
    """A metric. kind: counter, histogram, or a gauge's mode with several processes. labels: separated by spaces."""

    kind: Literal["counter", "histogram", "max", "mostrecent"]
    labels: str
    help: str
    buckets: Sequence[float] = ()


counter, histogram = partial(Declared, "counter"), partial(Declared, "histogram")
# Gauges: of the values of several processes, the largest or the latest counts.
gauge, latest = partial(Declared, "max"), partial(Declared, "mostrecent")
OF_EXIT, OF_PROMISE = "model version exit", "model version promise"

# By name, without the prefix.
METRICS = {
    "requests_total": counter("model code", "Prediction requests answered."),
    "request_duration_seconds": histogram(
        "model", "From the first byte of a prediction request to its answer.", SECONDS
    ),
    "samples_total": counter("model version exit reason", "Pictures answered, by exit and reason."),
    "sample_latency_seconds": histogram("model exit", "From entering the engine to leaving it.", FINE_SECONDS),
    "exit_confidence": histogram("model exit", "Calibrated confidence of answers.", SHARES),
    "decode_duration_seconds": histogram(
        "model", "Decoding all pictures of a request, waiting for a thread included.", SECONDS
    ),
    "queue_duration_seconds": histogram("model", "Wait of a picture in all stage queues.", FINE_SECONDS),
    "stage_duration_seconds": histogram("model stage", "One batch through one stage.", FINE_SECONDS),
    "stage_batch_size": histogram("model stage", "Pictures in a step.", BATCH_SIZES),
    "step_cost_seconds": gauge(
        "model version stage batch_size", "One batch through one stage, as measured at the start."
    ),
    "compute_multiply_adds_total": counter("model", "Multiply-adds spent on answered pictures."),
    "compute_saved_multiply_adds_total": counter(
        "model", "Multiply-adds that answering at the last exit would have added."
    ),
    "rejections_total": counter("reason", "Requests refused at once."),
    "http_rejections_total": counter("code", "Rejected connections, and invalid or incomplete requests."),
    "cancelled_total": counter(
        "phase", "Uploads cut off (upload), and pictures given up before their answer (queued, running)."
    ),
    "audited_samples_total": counter(OF_EXIT, "Pictures compared with full depth."),
    "audit_disagreements_total": counter(
        OF_EXIT, "Audited pictures whose answer differs from the answer at full depth."
    ),
    "audit_disagreement_lower_bound": latest(
        OF_EXIT, "Lower bound of the disagreement rate, valid at all times together."
    ),
    "audit_disagreement_upper_bound": latest(
        OF_EXIT, "Upper bound of the disagreement rate, valid at all times together."
    ),
    "audit_alarm": latest(OF_PROMISE, "1 once an audit has found a promise broken."),
    "audit_evidence": latest(OF_PROMISE, "Evidence against a promise; the alarm rings at --audit-false-alarm-every."),
    "brownout_level": latest("model version", "Level of the brownout; 0 is none."),
    "model_info": gauge(
        "model version architecture exits classes input_size device", "A served model version; always 1."
    ),
    "build_info": gauge("version python torch", "Versions of this server; always 1."),
}


class Metrics:
    """All metrics of one server, in a collector registry of its own.

    shared: the folder given to `share_counters`. Then every metric is the sum over all processes of the server.
    """

    def __init__(self, shared: Path | None = None) -> None:
        # prometheus_client would add a second series to each counter, with the time of its creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._collectors = CollectorRegistry()
        PlatformCollector(registry=self._collectors)
        if shared:
            # The files of all processes are exposed, not the metrics of this one.
            MultiProcessCollector(self._collectors, str(shared))  # type: ignore[no-untyped-call]
            self._collectors.register(ServerProcessCollector(os.getppid()))
        else:
            ProcessCollector(registry=self._collectors)
        self._metrics = {name: self._make(name, None if shared else self._collectors) for name in METRICS}
        # Cached: prometheus_client takes longer to find a series by its labels than to count in it.
        self.series = cache(self._find)
        self._engines = EngineGauges()
        self._collectors.register(self._engines)
        self._exposition = Exposition(self._collectors)
        self.series("build_info", version("offramp"), platform.python_version(), version("torch")).set(1)
        self._start(["rejections_total"], reason=REJECTIONS)
        self._start(["http_rejections_total"], code=[str(kind.status) for kind in HTTP_REJECTIONS])
        self._start(["cancelled_total"], phase=PHASES)
        self._start(["requests_total", "request_duration_seconds"], model=[NO_MODEL], code=CODES)

    def add_model(self, bundle: Bundle, cost: NetworkCost, device: str) -> ModelObserver:
        """Create the series of a model version; returns the observer for its engine."""
        config = bundle.config
        exits = [str(exit) for exit in range(1, len(cost.stage_multiply_adds) + 1)]
        about = (config.architecture, str(len(exits)), str(config.num_classes), str(config.input_size), device)
        self.series("model_info", bundle.name, bundle.version, *about).set(1)
        promises = (THRESHOLDS, *(bundle.certificate.promises if bundle.certificate else ()))
        self._start(
            [name for name, declared in METRICS.items() if "model" in declared.labels.split()],
            model=[bundle.name],
            version=[bundle.version],
            exit=exits,
            stage=exits,
            reason=[reason.value for reason in ExitReason],
            promise=[_promise_label(promise) for promise in promises],
            code=CODES,
        )
        return ModelObserver(self, bundle.name, bundle.version, cost.sequential_multiply_adds, promises)

    def watch(self, model: str, engine: EngineClient) -> None:
        """Read an engine's queues whenever metrics are collected. The versions of a model are summed."""
        self._engines.add(model, engine)

    def record(self, log: RequestLog, duration_s: float) -> None:
        """Count a request that is over. Only predictions are counted, no probes and other paths."""
        if log.model is None:
            return
        self.series("requests_total", log.model, str(log.status)).inc()
        self.series("request_duration_seconds", log.model).observe(duration_s)
        if log.rejection is not None:
            self.series("rejections_total", log.rejection).inc()

    def record_http_rejection(self, status: int) -> None:
        """Count a rejected connection, or an invalid or incomplete request."""
        self.series("http_rejections_total", str(status)).inc()

    def collect(self) -> Iterable[Metric]:
        """All metrics with their samples."""
        return self._collectors.collect()

    async def expose(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return await self._exposition.text()

    def _make(self, name: str, registry: CollectorRegistry | None) -> Any:
        kind, labels, help, buckets = METRICS[name]
        name, names = f"offramp_{name}", labels.split()
        if kind == "counter":
            return Counter(name, help, names, registry=registry)
        if kind == "histogram":
            return Histogram(name, help, names, registry=registry, buckets=buckets)
        return Gauge(name, help, names, registry=registry, multiprocess_mode=kind)

    def _find(self, name: str, *labels: str) -> Any:
        """The series of a metric with these values of its labels, in their order. A new series begins at zero."""
        return self._metrics[name].labels(*labels)

    def _start(self, names: Iterable[str], **values: Iterable[str]) -> None:
        """Create all series of these metrics whose labels have only known values."""
        for name in names:
            labels = METRICS[name].labels.split()
            if values.keys() >= set(labels):
                for series in itertools.product(*(values[label] for label in labels)):
                    self.series(name, *series)


class ModelObserver:
    """Counts the events of one engine.

    spent_multiply_adds: of a picture that leaves at exit 1..K. promises: keys of the alarms.
    """

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        model_version: str,
        spent_multiply_adds: tuple[int, ...],
        promises: Sequence[float],
    ) -> None:
        self._metrics, self._own = metrics, {"model": model, "version": model_version}
        self._spent, self._promises = spent_multiply_adds, promises
        self._series = cache(self._find)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case StepStats():
                self._series("stage_duration_seconds", event.stage).observe(event.duration_s)
                self._series("stage_batch_size", event.stage).observe(event.batch_size)
            case SampleStats():
                exit, spent = event.exit, self._spent[event.exit - 1]
                self._series("samples_total", exit, event.reason.value).inc()
                self._series("sample_latency_seconds", exit).observe(event.latency_s)
                self._series("exit_confidence", exit).observe(event.confidence)
                self._series("queue_duration_seconds").observe(event.queue_s)
                self._series("compute_multiply_adds_total").inc(spent)
                self._series("compute_saved_multiply_adds_total").inc(self._spent[-1] - spent)
            case CancelStats():
                self._series("cancelled_total", event.phase).inc()
            case AuditReport():
                self._series("audited_samples_total", event.exit).inc()
                self._series("audit_disagreements_total", event.exit).inc(event.disagreed)
                if event.exit < len(self._spent):
                    self._set_bounds(event.exit, event.low, event.high)
                if event.promise is not None:
                    self._set_alarm(event.promise, event.rings, event.evidence)
            case BrownoutLevel():
                self._series("brownout_level").set(event.level)
            case CostProfile():
                self._start_gauges()
                for stage, times_s in enumerate(event.measured_s, start=1):
                    for batch_size, time_s in zip(event.batch_sizes, times_s, strict=True):
                        self._series("step_cost_seconds", stage, batch_size).set(time_s)

    def _start_gauges(self) -> None:
        # Called in the process of the engine only: of the values of several processes, the latest counts.
        for exit in range(1, len(self._spent) + 1):
            self._set_bounds(exit, 0.0, 1.0 if exit < len(self._spent) else 0.0)
        for promise in self._promises:
            self._set_alarm(promise, False, 0.0)
        self._series("brownout_level").set(0.0)

    def _find(self, name: str, *values: object) -> Any:
        """A series of this model version. values: of the labels after model and version."""
        own = [self._own[label] for label in METRICS[name].labels.split() if label in self._own]
        return self._metrics.series(name, *own, *map(str, values))

    def _set_bounds(self, exit: int, low: float, high: float) -> None:
        self._series("audit_disagreement_lower_bound", exit).set(low)
        self._series("audit_disagreement_upper_bound", exit).set(high)

    def _set_alarm(self, promise: float, rings: bool, evidence: float) -> None:
        self._series("audit_alarm", _promise_label(promise)).set(rings)
        self._series("audit_evidence", _promise_label(promise)).set(evidence)


def _promise_label(promise: float) -> str:
    return THRESHOLDS_LABEL if promise == THRESHOLDS else f"{promise:g}"


class EngineGauges(Collector):
    """Gauges that ask the engines when metrics are collected."""

    def __init__(self) -> None:
        self._engines: dict[str, list[EngineClient]] = {}

    def add(self, model: str, engine: EngineClient) -> None:
        """Add a version of a model."""
        self._engines.setdefault(model, []).append(engine)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Pictures in flight, pictures waiting for each stage, and the predicted wait."""
        inflight, waiting, wait = (
            GaugeMetricFamily(f"offramp_{name}", help, labels=labels)
            for name, help, *labels in (
                ("inflight_samples", "Pictures in the engine, not yet answered.", "model"),
                ("stage_queue_depth", "Pictures waiting for a stage.", "model", "stage"),
                ("predicted_wait_seconds", "Seconds of work of the pictures in flight.", "model"),
            )
        )
        for model, engines in self._engines.items():
            wait.add_metric((model,), sum(engine.load.wait_s for engine in engines))
            inflight.add_metric((model,), float(sum(engine.inflight_samples for engine in engines)))
            # The versions of a model may have different depths.
            depths = itertools.zip_longest(*(engine.queue_depths for engine in engines), fillvalue=0)
            for stage, waiting_at in enumerate(depths, start=1):
                waiting.add_metric((model, str(stage)), float(sum(waiting_at)))
        return inflight, waiting, wait
