"""The server under test: started, awaited, measured, and stopped with all its processes."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.server import Server, free_port, offramp_server, request, server_under_test, start_server
from offramp.models.bundle import save_bundle
from tests.bundles import tiny_bundle

# A server whose child gets another parent at once, and only then it answers.
SERVER = """
import http.server, os, subprocess, sys, time
nested = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
subprocess.run([sys.executable, "-c", nested])
class Handler(http.server.BaseHTTPRequestHandler):
    looks = 0
    def do_GET(self):
        Handler.looks += 1
        while time.process_time() < 0.3: pass
        ready = Handler.looks > 2 and self.path == "/readyz"
        self.send_response(200 if ready or self.path == "/word" else 503)
        self.end_headers()
        self.wfile.write(f"{os.environ['WORD']} {Handler.looks}".encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_server_is_ready_when_it_says_so_and_all_its_processes_end_with_it() -> None:
    port = free_port()
    assert not Server(port).is_ready()
    with start_server([sys.executable, "-c", SERVER, str(port)], port, {"WORD": "hello"}) as server:
        assert server.get("/word") == "hello 4"
        processes = server.processes()
        assert len(processes) == 2
        assert not {process.ppid() for process in processes} <= {os.getpid()}
        assert server.cpu_s() >= 0.3
        # Two interpreters.
        assert server.rss_bytes() > 2 * 4_000_000
        server.reset_peak()
        assert server.peak_rss_bytes() >= server.rss_bytes()
        assert server.process is not None
        assert server.named("HTTPServer") == [server.process.pid]
        with pytest.raises(BenchmarkError, match="status 503 hello"):
            server.get("/other")
    assert server.processes() == []
    assert (server.cpu_s(), server.rss_bytes()) == (0.0, 0)


def test_a_server_that_ends_before_it_answers_is_an_error_with_its_last_output() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(BenchmarkError, match=r"exit status 1.*no such model"), start_server(command, free_port()):
        pass


def test_a_server_that_never_answers_is_given_up() -> None:
    command = [sys.executable, "-c", "print('loading', flush=True); import time; time.sleep(600)"]
    with (
        pytest.raises(BenchmarkError, match=r"did not answer within 0\.5 s; its last words: loading"),
        start_server(command, free_port(), ready_timeout_s=0.5),
    ):
        pass


def test_an_own_server_serves_the_bundle_and_computes(tmp_path: Path) -> None:
    save_bundle(tiny_bundle(), tmp_path / "tiny", "A card.")
    with server_under_test(None, tmp_path / "tiny", threads=1) as server:
        assert '"tiny"' in server.get("/v1/models")
        assert server.cpu_s() > 0.1
        assert request(server, "POST", "/v1/predict", b"no picture")[0] == 415
        with server_under_test(f"http://127.0.0.1:{server.port}", None, 0) as same:
            assert same.port == server.port
            assert same.cpu_s() != same.cpu_s()


def test_an_own_server_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"exit status 1\): .*no such file"), offramp_server(tmp_path / "nowhere"):
        pass


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://127.0.0.1:1/", r"http://127.0.0.1:1/readyz: no answer"), ("127.0.0.1:8000", "give http://HOST:PORT")],
)
def test_a_given_server_that_does_not_answer_is_named(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), server_under_test(url, None, 0):
        pass
