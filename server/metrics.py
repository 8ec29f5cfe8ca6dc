"""Prometheus metrics. The engine and the routes report what happened as data; here it becomes counters.

docs/metrics.md tells what each is for. Every series is there from the start, at zero.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

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
# The `promise` label of what is known of thresholds; what is certified is labelled with the disagreement promised.
THRESHOLDS_LABEL = "threshold"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FINE_SECONDS = (0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, *SECONDS[3:])
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def share_counters(folder: Path, process: str) -> None:
    """From now on, and for good, this process counts in files under `folder`, where its siblings count too.

    process: a name that no other process has at the same time; whoever has it next goes on where this one ends, so
    that no counter falls when a process is started anew. It must be without '_'.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of one server, in a collector registry of its own.

    shared: the folder given to `share_counters`, so that what is exposed is the sum over all processes of the server.
    """

    def __init__(self, shared: Path | None = None) -> None:
        # A second series for each counter that says when it was made: of no use here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._collectors = CollectorRegistry()
        PlatformCollector(registry=self._collectors)
        # What is shared is read from the files of all processes, not from the objects of this one.
        registry = None if shared else self._collectors
        if shared:
            MultiProcessCollector(self._collectors, str(shared))  # type: ignore[no-untyped-call]
            self._collectors.register(ServerProcessCollector(os.getppid()))
        else:
            ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"offramp_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"offramp_{name}", text, labels, registry=registry, multiprocess_mode="max")

        def latest(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"offramp_{name}", text, labels, registry=registry, multiprocess_mode="mostrecent")

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"offramp_{name}", text, labels, registry=registry, buckets=tuple(buckets))

        self.requests = counter("requests_total", "Prediction requests answered.", "model", "code")
        self.request_duration = histogram(
            "request_duration_seconds", "From the first byte of a prediction request to its answer.", SECONDS, "model"
        )
        self.samples = counter(
            "samples_total", "Pictures answered, by exit and reason.", "model", "version", "exit", "reason"
        )
        self.sample_latency = histogram(
            "sample_latency_seconds", "From entering the engine to leaving it.", FINE_SECONDS, "model", "exit"
        )
        self.confidence = histogram("exit_confidence", "Calibrated confidence of answers.", SHARES, "model", "exit")
        self.decode_duration = histogram(
            "decode_duration_seconds",
            "Decoding all pictures of a request, waiting for a thread included.",
            SECONDS,
            "model",
        )
        self.queue_duration = histogram(
            "queue_duration_seconds", "Waiting of a picture in all stage queues.", FINE_SECONDS, "model"
        )
        self.stage_duration = histogram(
            "stage_duration_seconds", "One batch through one stage.", FINE_SECONDS, "model", "stage"
        )
        self.stage_batch_size = histogram("stage_batch_size", "Pictures in a step.", BATCH_SIZES, "model", "stage")
        self.step_cost = gauge(
            "step_cost_seconds",
            "One batch through one stage, as measured at the start.",
            *("model", "version", "stage", "batch_size"),
        )
        self.compute = counter("compute_multiply_adds_total", "Multiply-adds spent on answered pictures.", "model")
        self.compute_saved = counter(
            "compute_saved_multiply_adds_total",
            "Multiply-adds that answering at the last exit would have added.",
            "model",
        )
        self.rejections = counter("rejections_total", "Requests refused at once.", "reason")
        self.http_rejections = counter(
            "http_rejections_total", "Rejected connections, and invalid or incomplete requests.", "code"
        )
        self.cancelled = counter(
            "cancelled_total",
            "Uploads cut off (upload), and pictures given up because nobody waited any more (queued, running).",
            "phase",
        )
        of_exit, of_promise = ("model", "version", "exit"), ("model", "version", "promise")
        self.audited = counter("audited_samples_total", "Pictures compared with full depth.", *of_exit)
        self.audit_disagreements = counter(
            "audit_disagreements_total", "Of these, answered otherwise than at full depth.", *of_exit
        )
        self.audit_low = latest(
            "audit_disagreement_lower_bound", "Of the rate of disagreement, valid at all times together.", *of_exit
        )
        self.audit_high = latest(
            "audit_disagreement_upper_bound", "Of the rate of disagreement, valid at all times together.", *of_exit
        )
        self.audit_alarm = latest("audit_alarm", "1 once a promise was found broken.", *of_promise)
        self.audit_evidence = latest(
            "audit_evidence", "Against a promise; the alarm rings at --audit-false-alarm-every.", *of_promise
        )
        self.brownout_level = latest("brownout_level", "Steps given way under load.", "model", "version")
        self.model_info = gauge(
            "model_info",
            "A served model version; always 1.",
            *("model", "version", "architecture", "exits", "classes", "input_size", "device"),
        )
        self.build_info = gauge("build_info", "What runs here; always 1.", "version", "python", "torch")
        # Looked up once: finding a series by its labels takes longer than to count in it.
        self._of_request = cache(self._find_of_request)
        self.decode_duration_of = cache(self.decode_duration.labels)
        self._engines = EngineGauges()
        self._collectors.register(self._engines)
        self._exposition = Exposition(self._collectors)
        self._start_at_zero()

    def add_model(self, bundle: Bundle, cost: NetworkCost, device: str) -> ModelObserver:
        """Begin the series of a model version; the observer is for its engine."""
        config = bundle.config
        sizes = (str(len(cost.stage_multiply_adds)), str(config.num_classes), str(config.input_size))
        self.model_info.labels(bundle.name, bundle.version, config.architecture, *sizes, device).set(1)
        self._start_requests(bundle.name)
        self.decode_duration.labels(bundle.name)
        promises = bundle.certificate.promises if bundle.certificate else ()
        return ModelObserver(self, bundle.name, bundle.version, cost.sequential_multiply_adds, promises)

    def watch(self, model: str, engine: EngineClient) -> None:
        """Have the gauges ask the engine when they are read; the versions of a model are summed."""
        self._engines.add(model, engine)

    def record(self, log: RequestLog, duration_s: float) -> None:
        """A request is over; only predictions are counted, not probes and other paths."""
        if log.model is None:
            return
        requests, request_duration = self._of_request(log.model, log.status)
        requests.inc()
        request_duration.observe(duration_s)
        if log.rejection is not None:
            self.rejections.labels(log.rejection).inc()

    def record_http_rejection(self, status: int) -> None:
        """The HTTP server has rejected a connection, or an invalid or incomplete request."""
        self.http_rejections.labels(str(status)).inc()

    def _find_of_request(self, model: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(model, str(status)), self.request_duration.labels(model)

    def collect(self) -> Iterable[Metric]:
        """Every family with its samples."""
        return self._collectors.collect()

    async def expose(self) -> bytes:
        """The text format."""
        return await self._exposition.text()

    def _start_at_zero(self) -> None:
        self.build_info.labels(version("offramp"), platform.python_version(), version("torch")).set(1)
        for reason in REJECTIONS:
            self.rejections.labels(reason)
        for kind in HTTP_REJECTIONS:
            self.http_rejections.labels(str(kind.status))
        for phase in PHASES:
            self.cancelled.labels(phase)
        self._start_requests(NO_MODEL)

    def _start_requests(self, model: str) -> None:
        self.request_duration.labels(model)
        for code in CODES:
            self.requests.labels(model, code)


class ModelObserver:
    """Counts what one engine reports; looks its series up once, not for each picture.

    promises: certified ones, by the disagreement they allow.
    """

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        model_version: str,
        spent_multiply_adds: tuple[int, ...],
        promises: Sequence[float] = (),
    ) -> None:
        exits = range(1, len(spent_multiply_adds) + 1)
        self._spent = spent_multiply_adds
        self._samples = {
            (exit, reason): metrics.samples.labels(model, model_version, str(exit), reason.value)
            for exit in exits
            for reason in ExitReason
        }
        self._latency = [metrics.sample_latency.labels(model, str(exit)) for exit in exits]
        self._confidence = [metrics.confidence.labels(model, str(exit)) for exit in exits]
        self._queue_duration = metrics.queue_duration.labels(model)
        self._stage_duration = [metrics.stage_duration.labels(model, str(stage)) for stage in exits]
        self._batch_size = [metrics.stage_batch_size.labels(model, str(stage)) for stage in exits]
        self._compute = metrics.compute.labels(model)
        self._compute_saved = metrics.compute_saved.labels(model)
        self._cancelled = {phase: metrics.cancelled.labels(phase) for phase in PHASES}
        self._step_cost = partial(metrics.step_cost.labels, model, model_version)
        self._audited = [
            tuple(one.labels(model, model_version, str(exit)) for one in (metrics.audited, metrics.audit_disagreements))
            for exit in exits
        ]
        self._audit_bounds = [
            tuple(one.labels(model, model_version, str(exit)) for one in (metrics.audit_low, metrics.audit_high))
            for exit in exits
        ]
        self._alarms = {
            promise: (metrics.audit_alarm.labels(*labels), metrics.audit_evidence.labels(*labels))
            for promise in (THRESHOLDS, *promises)
            for labels in [(model, model_version, f"{promise:g}" if promise else THRESHOLDS_LABEL)]
        }
        self._brownout_level = metrics.brownout_level.labels(model, model_version)
        self._counters: dict[type, Callable[[Any], None]] = {
            CostProfile: self._profile,
            StepStats: self._step,
            SampleStats: self._sample,
            CancelStats: self._cancel,
            AuditReport: self._audit,
            BrownoutLevel: self._brownout,
        }

    def __call__(self, event: Event) -> None:
        """Count an event."""
        self._counters[type(event)](event)

    def _profile(self, profile: CostProfile) -> None:
        # Here, in the process of the engine alone: of the values of several processes, the latest counts.
        for exit, (low, high) in enumerate(self._audit_bounds, start=1):
            low.set(0.0)
            high.set(1.0 if exit < len(self._audit_bounds) else 0.0)
        for gauge in itertools.chain(*self._alarms.values(), [self._brownout_level]):
            gauge.set(0.0)
        for stage, times_s in enumerate(profile.measured_s, start=1):
            for batch_size, time_s in zip(profile.batch_sizes, times_s, strict=True):
                self._step_cost(str(stage), str(batch_size)).set(time_s)

    def _step(self, stats: StepStats) -> None:
        self._stage_duration[stats.stage - 1].observe(stats.duration_s)
        self._batch_size[stats.stage - 1].observe(stats.batch_size)

    def _sample(self, stats: SampleStats) -> None:
        index = stats.exit - 1
        self._samples[stats.exit, stats.reason].inc()
        self._latency[index].observe(stats.latency_s)
        self._confidence[index].observe(stats.confidence)
        self._queue_duration.observe(stats.queue_s)
        self._compute.inc(self._spent[index])
        self._compute_saved.inc(self._spent[-1] - self._spent[index])

    def _cancel(self, stats: CancelStats) -> None:
        self._cancelled[stats.phase].inc()

    def _audit(self, report: AuditReport) -> None:
        audited, disagreements = self._audited[report.exit - 1]
        audited.inc()
        disagreements.inc(report.disagreed)
        if report.exit < len(self._audited):
            low, high = self._audit_bounds[report.exit - 1]
            low.set(report.low)
            high.set(report.high)
        if report.promise is not None:
            alarm, evidence = self._alarms[report.promise]
            alarm.set(report.rings)
            evidence.set(report.evidence)

    def _brownout(self, brownout: BrownoutLevel) -> None:
        self._brownout_level.set(brownout.level)


class EngineGauges(Collector):
    """What the engines have in hand, asked when somebody wants to know it."""

    def __init__(self) -> None:
        self._engines: dict[str, list[EngineClient]] = {}

    def add(self, model: str, engine: EngineClient) -> None:
        """One more version of a model."""
        self._engines.setdefault(model, []).append(engine)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Pictures in flight, pictures waiting for each stage, and the predicted wait."""
        inflight = GaugeMetricFamily(
            "offramp_inflight_samples", "Pictures in the engine, not yet answered.", labels=("model",)
        )
        waiting = GaugeMetricFamily(
            "offramp_stage_queue_depth", "Pictures waiting for a stage.", labels=("model", "stage")
        )
        wait = GaugeMetricFamily(
            "offramp_predicted_wait_seconds", "What the pictures in flight still take.", labels=("model",)
        )
        for model, engines in self._engines.items():
            wait.add_metric((model,), sum(engine.load.wait_s for engine in engines))
            inflight.add_metric((model,), float(sum(engine.inflight_samples for engine in engines)))
            for stage, depth in enumerate(_waiting([engine.queue_depths for engine in engines]), start=1):
                waiting.add_metric((model, str(stage)), float(depth))
        return inflight, waiting, wait


def _waiting(depths: Sequence[tuple[int, ...]]) -> list[int]:
    """Pictures that wait for each stage; the versions of a model need not be of one depth."""
    return [sum(stage) for stage in zip_longest(*depths, fillvalue=0)]
