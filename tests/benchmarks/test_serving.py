"""An own server process: started, awaited, measured, stopped."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.options import BenchOptions
from benchmarks.serving import Server, cpu_s_from_stat, own_server, server_under_test

READY_AT_THIRD_LOOK = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    looks = 0
    def do_GET(self):
        Handler.looks += 1
        ready = Handler.looks > 2 and self.path == "/readyz"
        self.send_response(200 if ready or self.path == "/looks" else 503)
        self.end_headers()
        self.wfile.write(str(Handler.looks).encode())
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_cpu_time_is_read_past_a_name_with_blanks_and_brackets() -> None:
    stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 999 999 20 0 1 0"
    assert cpu_s_from_stat(stat, ticks_per_s=100) == 2.0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_cpu_time_of_a_process_is_what_it_says_itself() -> None:
    sum(range(3_000_000))
    before_s = time.process_time()
    measured_s = Server("", os.getpid()).cpu_s()
    assert measured_s is not None
    assert measured_s == pytest.approx(before_s, abs=0.1)


def test_cpu_time_of_a_server_that_is_not_ours_is_unknown() -> None:
    assert Server("http://127.0.0.1:1", None).cpu_s() is None


def test_an_own_server_is_ready_inside_and_gone_after() -> None:
    port = free_port()
    code = READY_AT_THIRD_LOOK.replace(", 0), H", f", {port}), H") + "server.serve_forever()"
    with own_server([sys.executable, "-c", code], port) as server:
        assert int(server.get("/looks")) > 3
        pid = server.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_ends_before_it_is_ready_is_quoted() -> None:
    with (
        pytest.raises(BenchmarkError, match=r"exit status 3\): no such bundle"),
        own_server([sys.executable, "-c", "import sys; print('no such bundle'); sys.exit(3)"], free_port()),
    ):
        pass


def test_a_given_server_that_does_not_answer_is_named() -> None:
    with (
        pytest.raises(BenchmarkError, match=r"http://127.0.0.1:1/readyz: no answer"),
        server_under_test(BenchOptions(url="http://127.0.0.1:1/")),
    ):
        pass
