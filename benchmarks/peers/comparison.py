"""Offramp and the peers on one workload: tuned, checked, and measured in alternation."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.client import send_each
from benchmarks.harness.closed_loop import LoopFigures, closed_loop
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Spread, field_ratios, spread, spreads
from benchmarks.harness.open_loop import Load, open_loop
from benchmarks.harness.requests import Request, write_requests
from benchmarks.harness.results import say
from benchmarks.harness.server import Server, free_port, request, start_server
from benchmarks.options import PeersOptions
from benchmarks.peers.catalogue import Launch, Peer, PeerAnswer
from benchmarks.peers.network import PeerSettings, Setup
from benchmarks.peers.workloads import ExitSetting, Workload

CHECK_CONNECTIONS = 16
READY_TIMEOUT_S = 180.0
FIGURES = ("throughput", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "load_cpu_ms")

ClosedLoop = Callable[[Server, Path, int, int, int], LoopFigures]
OpenLoop = Callable[[Server, Path, float, int, int, int], LoopFigures]


@dataclass(frozen=True)
class Candidate:
    """A server with its settings. bin: folder of its environment's commands. ways: in which it is asked."""

    peer: Peer
    bin: Path
    settings: PeerSettings
    ways: tuple[ExitSetting, ...]


@dataclass(frozen=True)
class PairRound(LoopFigures):
    """One server, asked in one way, in one round of a pair. against: the peer. rate: of an open loop, else None."""

    round: int
    against: str
    server: str
    way: str
    rate: float | None


@dataclass
class Comparison:
    """All measurements of one workload. network: folder of the exported one. work: a folder for requests.

    peers: those that have not failed. closed, open: the load generators; tests give fast ones.
    """

    workload: Workload
    offramp: Candidate
    options: PeersOptions
    network: Path
    work: Path
    closed: ClosedLoop = closed_loop
    open: OpenLoop = open_loop
    peers: dict[str, Candidate] = field(default_factory=dict)
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, Mapping[str, tuple[PeerAnswer, ...]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rounds: list[PairRound] = field(default_factory=list)

    def add(self, peer: Peer, bin: Path) -> None:
        """Find the peer's fastest settings and record its answers. A peer that fails is left out, with its error."""
        first_with_exits = next((way for way in self.offramp.ways if not way.exits_off), self.offramp.ways[0])
        ways = (first_with_exits if peer.has_exits else self.offramp.ways[0],)
        try:
            fastest = self._tune([Candidate(peer, bin, settings, ways) for settings in peer.variants])
            self.check(fastest)
            self.peers[peer.name] = fastest
        except BenchmarkError as error:
            self._leave_out(peer.name, str(error))

    def check(self, candidate: Candidate) -> None:
        """Record the answer to every picture in each way. Raises BenchmarkError where one is missing."""
        with self.start(candidate) as server:
            load = Load(server.port, CHECK_CONNECTIONS, bodies=True)
            answers = {}
            for way in candidate.ways:
                requests = (each.encoded() for each in self._requests(candidate, way))
                bodies = [sent.body.encode("latin-1") for sent in send_each(load, enumerate(requests)).answers()]
                answers[way.name] = tuple(map(candidate.peer.read, bodies))
        self.answers[candidate.peer.name] = answers

    def measure(self, rates: Mapping[str, float] | None = None) -> None:
        """All rounds of all pairs: closed loops, or open ones at each peer's rate."""
        for number in range(self.options.rounds):
            for name, peer in list(self.peers.items()):
                pair = (self.offramp, peer) if number % 2 == 0 else (peer, self.offramp)
                for candidate in pair:
                    try:
                        self._measure(candidate, number, name, rates[name] if rates else None)
                    except BenchmarkError as error:
                        self._leave_out(name, f"{candidate.peer.title}, in round {number + 1}: {error}")
                        break

    def rates(self) -> dict[str, float]:
        """Requests a second of each pair's open loop."""
        capacity: dict[str, list[float]] = {}
        for each in self.rounds:
            if each.server == each.against and each.rate is None:
                capacity.setdefault(each.server, []).append(each.throughput)
        return {name: self.options.load * spread(values).median for name, values in capacity.items()}

    @contextmanager
    def start(self, candidate: Candidate) -> Iterator[Server]:
        """The server, from its first answer until the end of the block. Raises BenchmarkError if none comes."""
        peer, port, way = candidate.peer, free_port(), candidate.ways[0]
        variables = {**Setup(self.network, candidate.settings, way.exits).variables(), **peer.variables}
        is_up = partial(_is_up, next(self._requests(candidate, way)))
        with TemporaryDirectory(dir=self.work) as work:
            command = peer.command(Launch(candidate.bin, port, Path(work), candidate.settings))
            with start_server(command, port, variables, is_up, READY_TIMEOUT_S) as server:
                yield server

    def _tune(self, variants: Sequence[Candidate]) -> Candidate:
        """The variant with the highest capacity."""
        name, seconds = variants[0].peer.name, self.options.tune_seconds
        if not seconds or len(variants) == 1:
            return variants[0]
        capacities: list[tuple[float, Candidate]] = []
        errors: list[BenchmarkError] = []
        for variant in variants:
            try:
                with self.start(variant) as server:
                    folder = self._requests_folder(variant, variant.ways[0])
                    throughput = self.closed(server, folder, self.options.connections, seconds, 1).throughput
            except BenchmarkError as error:
                errors.append(error)
                continue
            capacities.append((throughput, variant))
            self.tried.setdefault(name, []).append({"settings": asdict(variant.settings), "throughput": throughput})
            say(f"{name}: {throughput:.0f} pictures/s with {variant.settings}")
        if not capacities:
            raise errors[0]
        return max(capacities, key=lambda pair: pair[0])[1]

    def _measure(self, candidate: Candidate, number: int, against: str, rate: float | None) -> None:
        """Start the server and measure it in all its ways."""
        timing = (self.options.seconds, self.options.warmup_seconds)
        rounds = []
        with self.start(candidate) as server:
            for way in candidate.ways if number % 2 == 0 else candidate.ways[::-1]:
                folder = self._requests_folder(candidate, way)
                if rate is None:
                    loop = self.closed(server, folder, self.options.connections, *timing)
                else:
                    loop = self.open(server, folder, rate, *timing, number)
                rounds.append(PairRound(**vars(loop), round=number, against=against, server=candidate.peer.name,
                                        way=way.name, rate=rate))  # fmt: skip
                say(rounds[-1])
        self.rounds += rounds

    def _requests(self, candidate: Candidate, way: ExitSetting) -> Iterator[Request]:
        pictures = self.workload.pictures
        for number, picture in enumerate(pictures.pictures):
            yield candidate.peer.ask(picture, pictures.media_type, way.query(number))

    def _requests_folder(self, candidate: Candidate, way: ExitSetting) -> Path:
        name = f"{candidate.peer.name}-{self.offramp.ways.index(way)}"
        return write_requests(self._requests(candidate, way), self.work / name)

    def _leave_out(self, name: str, error: str) -> None:
        self.peers.pop(name, None)
        self.failed[name] = error
        say(f"{name} is left out: {error}")


def _is_up(first: Request, server: Server) -> bool:
    """Whether the server answers the request with 200."""
    try:
        headers = {"Content-Type": first.content_type, **first.headers}
        return request(server, "POST", first.path, first.body, headers)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


@dataclass(frozen=True)
class Quality:
    """accuracy: None without labels. agreement: share of the classes of Offramp at full depth. exits: counts."""

    accuracy: float | None
    agreement: float
    exits: dict[int, int]


def quality(answers: Sequence[PeerAnswer], labels: Sequence[str], full_depth: Sequence[PeerAnswer]) -> Quality:
    """Compare answers with the true labels, if any, and with those at full depth."""
    count = len(answers)
    right = sum(answer.label == label for answer, label in zip(answers, labels, strict=bool(labels)))
    same = sum(answer.class_id == full.class_id for answer, full in zip(answers, full_depth, strict=True))
    exits = Counter(answer.exit for answer in answers)
    return Quality(right / count if labels else None, same / count, dict(sorted(exits.items())))


def summarize(title: str, settings: Mapping[str, Any], rounds: Sequence[PairRound]) -> dict[str, Any]:
    """One peer, and Offramp beside it in each way. rounds: of this pair."""
    name = rounds[0].against
    peer = [each for each in rounds if each.server == name]
    offramp = [each for each in rounds if each.server != name]
    closed, opened = _by_loop(peer)
    beside = {}
    for way in dict.fromkeys(each.way for each in offramp if each.round == 0):
        offramp_closed, offramp_opened = _by_loop([each for each in offramp if each.way == way])
        beside[way] = {
            "closed_loop": _figures(offramp_closed),
            "open_loop": _figures(offramp_opened),
            "throughput_ratio": _ratio(offramp_closed, closed, "throughput"),
            "p99_ratio": _ratio(offramp_opened, opened, "p99_ms"),
        }
    return {
        "peer": name,
        "title": title,
        "settings": settings,
        "way": peer[0].way,
        "closed_loop": _figures(closed),
        "open_loop": {"rate": opened[-1].rate, **_figures(opened)},
        "ours": beside,
    }


def _by_loop(rounds: Sequence[PairRound]) -> tuple[list[PairRound], list[PairRound]]:
    """The closed loops and the open ones."""
    return [each for each in rounds if each.rate is None], [each for each in rounds if each.rate is not None]


def _figures(rounds: Sequence[PairRound]) -> dict[str, Any]:
    counts = {name: sum(getattr(each, name) for each in rounds) for name in ("requests", "errors")}
    return {**spreads(rounds, *FIGURES), **counts}


def _ratio(offramp: Sequence[PairRound], peer: Sequence[PairRound], name: str) -> Spread:
    by_round = {each.round: each for each in peer}
    return field_ratios(name, offramp, [by_round[each.round] for each in offramp])
