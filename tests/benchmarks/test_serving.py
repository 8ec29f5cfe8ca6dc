"""The server under test: an own one, or one that runs already."""

import sys
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.options import BenchOptions
from benchmarks.processes import free_port, running
from benchmarks.serving import Server, is_ready, own_server, server_under_test
from models.bundle import save_bundle
from tests.bundles import tiny_bundle

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
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_ready_when_it_says_so_and_not_before() -> None:
    port = free_port()
    assert not is_ready(port)
    with running([sys.executable, "-c", READY_AT_THIRD_LOOK, str(port)], port, is_ready, {}):
        assert int(Server(f"http://127.0.0.1:{port}").get("/looks")) > 3


def test_an_own_server_serves_the_bundle_and_computes(tmp_path: Path) -> None:
    save_bundle(tiny_bundle(), tmp_path / "tiny", "A card.")
    with server_under_test(BenchOptions(model=tmp_path / "tiny", server_threads=1)) as server:
        assert '"tiny"' in server.get("/v1/models")
        cpu_s = server.cpu_s()
    assert cpu_s is not None
    assert cpu_s > 0.1


def test_an_own_server_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"exit status 1\): .*no such file"), own_server(tmp_path / "nowhere"):
        pass


def test_cpu_time_of_a_server_that_is_not_ours_is_unknown() -> None:
    assert Server("http://127.0.0.1:1").cpu_s() is None


def test_a_given_server_that_does_not_answer_is_named() -> None:
    with (
        pytest.raises(BenchmarkError, match=r"http://127.0.0.1:1/readyz: no answer"),
        server_under_test(BenchOptions(url="http://127.0.0.1:1/")),
    ):
        pass
