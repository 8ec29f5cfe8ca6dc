"""Attacks: how each delays the photographs of another client, and how much memory the server takes."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.harness.figures import Spread, percentile, ratios, spread
from benchmarks.harness.open_loop import Load, run_load
from benchmarks.harness.requests import Request, form
from benchmarks.harness.results import say
from benchmarks.harness.server import Server
from benchmarks.options import parse_names
from benchmarks.serving.hostile import bombs
from benchmarks.serving.hostile.setup import HONEST_SOURCE, Setup

PHOTOS_PER_S = 20.0
# From the attack's start to the first photograph beside it.
LEAD_S = 1.0
BODY_BYTES = 16 * 2**20
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)
JUNK = random.Random(0).randbytes(2000)


@dataclass(frozen=True)
class Attack:
    """A closed loop. requests: makes the bytes that are sent. way: see `Load`."""

    connections: int
    requests: Callable[[], tuple[bytes, ...]]
    way: str = "ask"


def post(body: bytes, media_type: str = "application/octet-stream") -> bytes:
    """A prediction request on a connection that closes after it."""
    return Request("/v1/predict", media_type, body, {"Connection": "close"}).encoded()


def headers(size_bytes: int = BODY_BYTES) -> tuple[bytes, ...]:
    """Requests with a huge header value, very many headers, a huge URL and a huge header name."""
    line = b"X-12345678: 12345678\r\n"
    return (
        HEAD + b"X: " + b"a" * size_bytes,
        HEAD + line * (size_bytes // len(line)),
        HEAD.replace(b"/livez", b"/livez?" + b"a" * size_bytes),
        HEAD + b"X" * size_bytes,
    )


def large_png_form() -> tuple[bytes, ...]:
    """A form that has the same large picture 64 times."""
    large = bombs.picture(bombs.ALLOWED_SIDE, "png")
    return (form("/v1/predict", [("image", large)] * 64, "image/png", Connection="close").encoded(),)


ATTACKS = {
    "JPEG of many scans": Attack(8, lambda: (post(bombs.scans(1800)), post(bombs.scans(30)))),
    "form of 64 large PNGs": Attack(4, large_png_form),
    "WebP of 34 bytes": Attack(16, lambda: (post(bombs.webp()),)),
    "large WebP": Attack(16, lambda: (post(bombs.picture(bombs.ALLOWED_SIDE, "webp", lossless=True, method=0)),)),
    "16-bit grey PNG": Attack(16, lambda: tuple(post(bombs.picture(n, "png", "I;16")) for n in (bombs.SIDE, 4900))),
    "truncated PNG": Attack(16, lambda: (post(bombs.picture(bombs.ALLOWED_SIDE, "png")[:-60]),)),
    "GIF of many frames": Attack(8, lambda: (post(bombs.gif()),)),
    "JSON of 5 million objects": Attack(
        4, lambda: (post(b'{"images": [' + b"{}," * 5_500_000 + b"{}]}", "application/json"),)
    ),
    "JSON of 16 MiB": Attack(
        8, lambda: (post(b'{"images": ["' + b"A" * (BODY_BYTES - 20) + b'"]}', "application/json"),)
    ),
    "uploads without their last byte": Attack(100, lambda: (post(b"\xff\xd8\xff" + bytes(BODY_BYTES - 100))[:-1],)),
    "headers of 16 MiB": Attack(8, headers),
    "slow writers": Attack(200, lambda: (post(bytes(4000)), HEAD + b"X: " + b"a" * 2000), "drip"),
    "never-readers": Attack(100, lambda: (GET * 1000,), "mute"),
    "pipelining": Attack(64, lambda: (GET * 100,), "close"),
    "pipelining on 2000 connections": Attack(2000, lambda: (GET * 100,), "close"),
    "TLS and junk": Attack(32, lambda: (TLS_HELLO, JUNK)),
}


@dataclass(frozen=True)
class PhotoFigures:
    """Latency of the honest client's photographs, from their due time. lost: statuses of unanswered photographs."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    sent: int
    lost: dict[str, int]


@dataclass(frozen=True)
class AttackRound:
    """One attack in one round: photographs before and during it. answers: to the attacker. peak_mib: the server's."""

    quiet: PhotoFigures
    during: PhotoFigures
    answers: dict[str, int]
    peak_mib: float


@dataclass(frozen=True)
class AttackRow:
    """One attack over all rounds. ratio: p99 during the attack over p99 before it, of the same round."""

    attack: str
    frontends: int
    quiet: dict[str, Spread]
    during: dict[str, Spread]
    ratio: Spread
    sent: int
    lost: dict[str, int]
    answers: dict[str, int]
    peak_mib: float


def measure_attacks(setup: Setup) -> dict[str, Any]:
    """In each round, for each attack: photographs on a quiet server, then beside the attack."""
    options, rows = setup.options, []
    names = parse_names("attacks", options.attacks, ATTACKS)
    for frontends in options.frontend_counts("attacks"):
        rounds: dict[str, list[AttackRound]] = {name: [] for name in names}
        with setup.serve(frontends) as server:
            send_photos(setup, server)
            for _, name in product(range(options.rounds), names):
                rounds[name].append(measure_attack(setup, server, name))
                say(f"{name}: {rounds[name][-1]}")
        rows += [summarize(name, frontends, some) for name, some in rounds.items()]
    return {"photos_per_s": PHOTOS_PER_S, "seconds": options.seconds, "rounds_each": options.rounds, "rows": rows}


def measure_attack(setup: Setup, server: Server, name: str) -> AttackRound:
    """Photographs before the attack and during it."""
    attack = ATTACKS[name]
    folder = setup.requests(name, *(() if (setup.folder / name).exists() else attack.requests()))
    quiet = send_photos(setup, server)
    server.reset_peak()
    # Requests that get no answer are held as long as the attack lasts.
    length_s = setup.options.seconds + 2 * LEAD_S
    load = Load(server.port, attack.connections, length_s, way=attack.way, timeout_s=length_s)
    with ThreadPoolExecutor(1) as pool:
        attacking = pool.submit(run_load, load, folder)
        time.sleep(LEAD_S)
        during = send_photos(setup, server)
        answers = attacking.result().statuses()
    return AttackRound(quiet, during, answers, server.peak_rss_bytes() / 2**20)


def send_photos(setup: Setup, server: Server) -> PhotoFigures:
    """Send the honest client's photographs."""
    timing = (setup.options.seconds, PHOTOS_PER_S)
    load = Load(server.port, 100, *timing, evenly=True, source=HONEST_SOURCE, timeout_s=30.0)
    result = run_load(load, setup.photo_requests())
    late_ms = [1e3 * sent.latency_s for sent in result.sent if sent.status == 200]
    lost = {status: count for status, count in result.statuses().items() if status != "200"}
    p50_ms, p99_ms, max_ms = (percentile(late_ms, percent) for percent in (50, 99, 100))
    return PhotoFigures(p50_ms, p99_ms, max_ms, len(result.sent), lost)


def summarize(name: str, frontends: int, rounds: Sequence[AttackRound]) -> AttackRow:
    """One attack over all rounds."""
    figures = ("p50_ms", "p99_ms", "max_ms")
    return AttackRow(
        attack=name,
        frontends=frontends,
        quiet={figure: spread(getattr(each.quiet, figure) for each in rounds) for figure in figures},
        during={figure: spread(getattr(each.during, figure) for each in rounds) for figure in figures},
        ratio=ratios([each.during.p99_ms for each in rounds], [each.quiet.p99_ms for each in rounds]),
        sent=sum(each.during.sent for each in rounds),
        lost=add_counts(each.during.lost for each in rounds),
        answers=add_counts(each.answers for each in rounds),
        peak_mib=max(each.peak_mib for each in rounds),
    )


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums by name."""
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return dict(total)
