"""A server's processes: awaited, measured, and ended to the last."""

import http.client
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.processes import cpu_s_from_stat, cpu_s_of, free_port, members, running

# A server whose child is adopted by somebody else at once, and only then it answers.
SERVER = """
import http.server, os, subprocess, sys, time
nested = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
subprocess.run([sys.executable, "-c", nested])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        while time.process_time() < 0.3: pass
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["WORD"].encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def answers(port: int) -> bool:
    try:
        return bool(get(port))
    except OSError:
        return False


def test_cpu_time_is_read_past_a_name_with_blanks_and_brackets() -> None:
    stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 300 100 20 0 1 0"
    assert cpu_s_from_stat(stat, ticks_per_s=100) == 2.0
    assert cpu_s_from_stat(stat, ticks_per_s=100, waited_for=True) == 6.0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_cpu_time_of_a_process_is_what_it_says_itself() -> None:
    sum(range(3_000_000))
    assert cpu_s_of(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_adopted_children_belong_to_the_server_and_end_with_it() -> None:
    port = free_port()
    with running([sys.executable, "-c", SERVER, str(port)], port, answers, {"WORD": "hello"}) as server:
        assert get(port) == "hello"
        found = members(server.mark)
        parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in found}
        assert len(found) == 2
        assert not parents <= {os.getpid()}
        assert server.cpu_s() >= 0.3
        # Of an interpreter each.
        assert server.rss_bytes() > 2 * 4_000_000
        server.forget_peak()
        assert server.peak_rss_bytes() >= server.rss_bytes()
        assert server.named("HTTPServer") == [server.process.pid]
    assert members(server.mark) == []
    assert server.cpu_s() == 0.0
    assert server.rss_bytes() == 0


def test_a_server_that_ends_before_it_answers_is_an_error_with_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(BenchmarkError, match=r"exit status 1.*no such model"), running(command, 1, lambda _: False, {}):
        pass


def test_a_server_that_never_answers_is_given_up() -> None:
    command = [sys.executable, "-c", "print('loading', flush=True); import time; time.sleep(600)"]
    with (
        pytest.raises(BenchmarkError, match=r"did not answer within 0\.5 s"),
        running(command, 1, lambda _: False, {}, ready_timeout_s=0.5),
    ):
        pass
