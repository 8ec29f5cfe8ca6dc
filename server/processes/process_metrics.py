"""The `process_*` metrics of a server that is several processes: of the supervisor and all its children together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CPU = "process_cpu_seconds"
SUMMED = ("process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds")

# Fields of /proc/<pid>/stat behind the command's name: user and system time of children that have ended, in ticks.
ENDED_USER, ENDED_SYSTEM = 13, 14


class ServerProcessCollector(Collector):
    """Processor time, memory and open files summed over the family; start and limits are the supervisor's.

    Processor time of children that have ended counts on, so that it never falls. Memory that processes share is
    counted once for each of them. supervisor: its process id.
    """

    def __init__(self, supervisor: int) -> None:
        self._proc = Path("/proc") / str(supervisor)
        self._supervisor = supervisor

    def collect(self) -> Iterable[Metric]:
        """Nothing where the supervisor is gone, or there is no /proc."""
        try:
            children = self._children()
            while True:
                ended_s, families = self._ended_s(), [_of_process(pid) for pid in (self._supervisor, *children)]
                before, children = children, self._children()
                # Else a child has ended in between, and its time might be counted twice or not at all.
                if before == children:
                    break
        except OSError:
            return
        for name, own in families[0].items():
            total = sum(family[name].samples[0].value for family in families if name in family)
            if name == CPU:
                yield CounterMetricFamily(name, own.documentation, value=total + ended_s)
            elif name in SUMMED:
                yield GaugeMetricFamily(name, own.documentation, value=total)
            else:
                yield own

    def _children(self) -> set[int]:
        return {int(pid) for file in self._proc.glob("task/*/children") for pid in file.read_text().split()}

    def _ended_s(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[ENDED_USER]) + int(fields[ENDED_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def _of_process(pid: int) -> dict[str, Metric]:
    return {metric.name: metric for metric in ProcessCollector(pid=lambda: pid, registry=None).collect()}
