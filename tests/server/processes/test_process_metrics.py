"""What several processes use together, including those that have ended."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from prometheus_client import ProcessCollector

from offramp.server.processes.process_metrics import ServerProcessCollector


def whole_server() -> dict[str, float]:
    return {metric.name: metric.samples[0].value for metric in ServerProcessCollector(os.getpid()).collect()}


@pytest.fixture
def child():
    command = [sys.executable, "-c", "import sys; sum(range(10**7)); print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_a_child_counts_while_it_lives_and_its_time_when_it_is_dead(child):
    alone = {metric.name: metric.samples[0].value for metric in ProcessCollector(registry=None).collect()}
    together = whole_server()
    assert together.keys() == alone.keys()
    for name in ("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"):
        assert together[name] > alone[name]
    for name in ("process_start_time_seconds", "process_max_fds"):
        assert together[name] == alone[name]
    child.communicate()
    afterwards = whole_server()
    assert afterwards["process_cpu_seconds"] >= together["process_cpu_seconds"]
    assert afterwards["process_open_fds"] < together["process_open_fds"]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = {metric.name: metric.samples[0].value for metric in ProcessCollector(registry=None).collect()}
    with_ended_s = own["process_cpu_seconds"] + ended.ru_utime + ended.ru_stime
    # The kernel rounds one of the two to ticks of 10 ms.
    assert afterwards["process_cpu_seconds"] == pytest.approx(with_ended_s, abs=0.1)


def test_a_server_that_is_gone_uses_nothing(child):
    child.communicate()
    assert list(ServerProcessCollector(child.pid).collect()) == []
