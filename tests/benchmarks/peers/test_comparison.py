"""The whole comparison, with small servers as the peers and load generators that need no time."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.closed_loop import LoopFigures
from benchmarks.harness.requests import Request, read_requests
from benchmarks.harness.server import Server
from benchmarks.options import PeersOptions
from benchmarks.peers.bench import part
from benchmarks.peers.catalogue import Launch, Peer, PeerAnswer, offramp
from benchmarks.peers.comparison import Candidate, Comparison, PairRound, quality, summarize
from benchmarks.peers.network import Exits, PeerSettings
from benchmarks.peers.report import peers_section, plot
from benchmarks.peers.workloads import ExitSetting, PictureSet, Workload

PICTURES = (b"cat", b"dog", b"owl")
LABELS = ("cat", "dog", "owl")
WAYS = (ExitSetting("exits off", Exits()), ExitSetting("threshold 0.5", Exits(0.5)))

# Answers with the body's own name; exit 1 below threshold 1 in the query, or when its environment says so. It takes
# seven for an owl where argv says "careless".
SERVER = """
import http.server, json, os, sys
exits = json.loads(os.environ["PEER_SETUP"])["exits"]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        label = self.rfile.read(int(self.headers["Content-Length"])).decode()
        label = "cat" if label == "owl" and "careless" in sys.argv else label
        early = exits["threshold"] < 1 or "0.5" in self.path
        answer = {"label": label, "class_id": ("cat", "dog", "owl").index(label), "confidence": 0.5}
        body = json.dumps({**answer, "exit": 1 if early else 4}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def small_peer(name: str, *arguments: str, variants: int = 1, has_exits: bool = False, code: str = SERVER) -> Peer:
    def command(launch: Launch) -> list[str]:
        return [sys.executable, "-c", code, str(launch.port), *arguments]

    settings = tuple(PeerSettings(max_batch_size=size) for size in range(1, variants + 1))
    return Peer(name, name.title(), name, command, variants=settings, has_exits=has_exits)


def small_offramp() -> Peer:
    def ask(picture: bytes, media_type: str, query: str) -> Request:
        return Request(f"/predict?{query}", media_type, picture)

    return replace(small_peer("offramp"), ask=ask)


@dataclass
class Generators:
    """Take no time: a closed loop is as fast as the next of `speeds`; an open one is done at once."""

    speeds: Iterator[float]
    rates: list[float] = field(default_factory=list)
    sent: list[list[bytes]] = field(default_factory=list)

    def closed(self, server: Server, folder: Path, connections: int, seconds: int, warmup_s: int) -> LoopFigures:
        self.sent.append([request.split(b" ")[1] for request in read_requests(folder)])
        return LoopFigures(10, 0, next(self.speeds), 1.0, 2.0, 3.0, 0.5, 0.01)

    def open(self, server: Server, folder: Path, rate: float, seconds: int, warmup_s: int, seed: int) -> LoopFigures:
        self.rates.append(rate)
        return LoopFigures(1, 1, 1.0, 4.0, 4.0, 4.0, 0.5, 0.1)


def comparison(tmp_path: Path, generators: Generators, rounds: int = 1, tune_seconds: int = 0) -> Comparison:
    options = PeersOptions(rounds=rounds, seconds=1, warmup_seconds=1, tune_seconds=tune_seconds)
    pictures = PictureSet("small PNG", "image/png", PICTURES, LABELS)
    workload = Workload(None, BUNDLE, pictures, WAYS)
    candidate = Candidate(small_offramp(), Path("x"), PeerSettings(), WAYS)
    made = Comparison(workload, candidate, options, tmp_path, tmp_path, generators.closed, generators.open)
    made.check(candidate)
    return made


@dataclass(frozen=True)
class Preprocessed:
    size: int


@dataclass(frozen=True)
class Named:
    name: str
    version: str
    preprocessing: Preprocessed


BUNDLE: Any = Named("small", "7", Preprocessed(32))


def test_pairs_alternate_and_ratios_are_of_one_round(tmp_path: Path) -> None:
    # Offramp in two ways, the peer; then the peer, Offramp in two ways in the other order.
    speeds = iter([300, 600, 100, 200, 900, 300])
    generators = Generators(speeds)
    made = comparison(tmp_path, generators, rounds=2)
    made.add(small_peer("rival", "careless"), Path("x"))
    made.measure()
    assert [(each.server, each.way) for each in made.rounds] == [
        ("offramp", "exits off"),
        ("offramp", "threshold 0.5"),
        ("rival", "exits off"),
        ("rival", "exits off"),
        ("offramp", "threshold 0.5"),
        ("offramp", "exits off"),
    ]
    assert made.rates() == {"rival": pytest.approx(0.7 * 150)}
    made.measure(made.rates())
    assert generators.rates == [pytest.approx(105)] * 6
    document = json.loads(json.dumps(part(made), allow_nan=False, default=asdict))
    (line,) = document["rows"]
    assert line["ours"]["exits off"]["throughput_ratio"] == {"median": 2.25, "min": 1.5, "max": 3.0}
    assert line["ours"]["threshold 0.5"]["throughput_ratio"] == {"median": 5.25, "min": 4.5, "max": 6.0}
    assert line["closed_loop"]["throughput"] == {"median": 150, "min": 100, "max": 200}
    assert line["open_loop"]["errors"] == 2
    assert line["open_loop"]["p99_ms"]["median"] == pytest.approx(4.0)
    answers = document["answers"]
    assert answers["rival"]["exits off"] == {
        "accuracy": pytest.approx(2 / 3),
        "agreement": pytest.approx(2 / 3),
        "exits": {"4": 3},
    }
    assert answers["offramp"]["threshold 0.5"] == {"accuracy": 1.0, "agreement": 1.0, "exits": {"1": 3}}


def test_offramp_is_asked_with_the_query_of_its_way(tmp_path: Path) -> None:
    generators = Generators(iter([1.0] * 3))
    made = comparison(tmp_path, generators)
    made.add(small_peer("rival"), Path("x"))
    made.measure()
    queries = [{path.decode() for path in sent} for sent in generators.sent]
    assert queries == [{"/predict?threshold=1"}, {"/predict?threshold=0.5"}, {"/predict"}]


def test_the_fastest_settings_of_a_peer_are_used_and_all_recorded(tmp_path: Path) -> None:
    made = comparison(tmp_path, Generators(iter([50, 70, 60])), tune_seconds=1)
    made.add(small_peer("rival", variants=3), Path("x"))
    assert made.peers["rival"].settings == PeerSettings(max_batch_size=2)
    assert [(each["settings"]["max_batch_size"], each["throughput"]) for each in made.tried["rival"]] == [
        (1, 50),
        (2, 70),
        (3, 60),
    ]


def test_a_peer_with_exits_is_set_up_with_them(tmp_path: Path) -> None:
    made = comparison(tmp_path, Generators(iter([])))
    made.add(small_peer("rival", has_exits=True), Path("x"))
    assert {answer.exit for answer in made.answers["rival"]["threshold 0.5"]} == {1}


def test_a_peer_that_fails_is_left_out_with_its_error_and_the_others_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = comparison(tmp_path, Generators(iter([1.0] * 3)))
    made.add(small_peer("broken", code="raise SystemExit('no CUDA here')"), Path("x"))
    made.add(small_peer("rival"), Path("x"))
    made.measure()
    made.measure(made.rates())
    document = part(made)
    assert "no CUDA here" in document["failed"]["broken"]
    assert [line["peer"] for line in document["rows"]] == ["rival"]
    assert "broken is left out" in capsys.readouterr().err


def test_a_server_that_ends_half_way_is_named_with_its_round(tmp_path: Path) -> None:
    once = tmp_path / "once"
    code = f"import pathlib; pathlib.Path({str(once)!r}).mkdir()\n{SERVER}"
    made = comparison(tmp_path, Generators(iter([1.0] * 3)))
    made.add(small_peer("rival", code=code), Path("x"))
    made.measure()
    assert made.peers == {}
    assert made.failed["rival"].startswith("Rival, in round 1: the server ended before it answered")
    assert "FileExistsError" in made.failed["rival"]


def one_round(server: str, number: int, throughput: float, rate: float | None = None) -> PairRound:
    latencies_ms = (1.0, 2.0, 3.0 * throughput)
    return PairRound(10, 1, throughput, *latencies_ms, 0.5, 0.1, number, "rival", server, "exits off", rate)


def test_the_document_renders_as_tables_and_a_plot(tmp_path: Path) -> None:
    loops = product(("offramp", "rival"), (0, 1), (None, 5.0))
    rounds = [one_round(server, n, 10.0 + n, rate) for server, n, rate in loops]
    full = tuple(PeerAnswer(n, label, 4, 0.5) for n, label in enumerate(LABELS))
    answers = quality(full, LABELS, full)
    answered = {"exits off": vars(answers)}
    document = {
        "date": "2026-01-02T00:00:00",
        "command": "offramp bench peers",
        "machine": {"cpu": "A CPU", "cores": 2, "gpus": []},
        "versions": {"python": "3.11"},
        "peer_versions": {"rival": "rival 1.0", "broken": "broken 2"},
        "connections": 8,
        "rounds": 2,
        "seconds": 5,
        "warmup_seconds": 1,
        "tune_seconds": 1,
        "load": 0.7,
        "workloads": [
            {
                "name": "small, photographs JPEG",
                "model": "small 7",
                "input_size": 32,
                "ways": [{"name": "exits off"}],
                "answers": {"offramp": answered, "rival": answered},
                "rows": [summarize("Rival", {}, rounds)],
                "failed": {"broken": "it ended (exit status 1): Traceback\n  line\nno CUDA here"},
            }
        ],
    }
    document = json.loads(json.dumps(document, default=asdict))
    text = peers_section(document)
    assert "| Rival (rival 1.0) | 100.00% | 100.00% | 10 (10–11) | 0.50 | 2 | 1.00× |" in text
    assert "| Rival | 5 | 1.0 | 2.0 | 31.5 (30.0–33.0) | 2 / 2 | 31.5 (30.0–33.0) | 1.00 × |" in text
    assert "- broken was left out: no CUDA here" in text
    assert "`offramp bench peers`" in text
    plot(document, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_without_labels_there_is_only_agreement() -> None:
    answers = (PeerAnswer(1, "a", 2, 0.5), PeerAnswer(2, "b", 2, 0.5))
    full = (PeerAnswer(1, "a", 4, 0.5), PeerAnswer(3, "c", 4, 0.5))
    assert vars(quality(answers, (), full)) == {"accuracy": None, "agreement": 0.5, "exits": {2: 2}}


def test_offramp_has_exits() -> None:
    assert offramp(None).has_exits
