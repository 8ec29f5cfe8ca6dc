"""The `process_*` metrics of a server that is several processes: the supervisor and all its children together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CPU = "process_cpu_seconds"
SUMMED = ("process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds")

# Fields of /proc/<pid>/stat after the command's name: user and system time of children that have ended, in ticks.
ENDED_USER, ENDED_SYSTEM = 13, 14


class ServerProcessCollector(Collector):
    """Processor time, memory and open files are sums over all processes; start and limits are the supervisor's.

    Processor time includes children that have ended, so that it never falls. Memory that processes share counts in
    each of them. supervisor: its process id.
    """

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._proc = Path("/proc") / str(supervisor)

    def collect(self) -> Iterable[Metric]:
        """Yield nothing if the supervisor is gone, or there is no /proc."""
        before: set[int] | None = None
        try:
            # Again if a child has ended in between: its time might count twice, or not at all.
            while before != (children := self._children()):
                ended_s, by_process = self._ended_s(), [_metrics(pid) for pid in (self._supervisor, *children)]
                before = children
        except OSError:
            return
        for name, metric in by_process[0].items():
            total = sum(metrics[name].samples[0].value for metrics in by_process if name in metrics)
            if name == CPU:
                yield CounterMetricFamily(name, metric.documentation, value=total + ended_s)
            elif name in SUMMED:
                yield GaugeMetricFamily(name, metric.documentation, value=total)
            else:
                yield metric

    def _children(self) -> set[int]:
        return {int(pid) for file in self._proc.glob("task/*/children") for pid in file.read_text().split()}

    def _ended_s(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[ENDED_USER]) + int(fields[ENDED_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def _metrics(pid: int) -> dict[str, Metric]:
    return {metric.name: metric for metric in ProcessCollector(pid=lambda: pid, registry=None).collect()}
