"""Attacks: how each delays the photographs of an honest client, and how much memory the server takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.harness.figures import (
    Columns,
    Document,
    add_counts,
    field_ratios,
    interleave,
    percentile,
    spreads,
    table,
)
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.open_loop import Load, latencies_ms, run_load, start_load
from benchmarks.harness.requests import Request, form
from benchmarks.harness.server import Server
from benchmarks.options import parse_names
from benchmarks.serving.hostile import bombs
from benchmarks.serving.hostile.setup import HONEST_SOURCE, HostileSetup

PHOTOS_PER_S = 20.0
# From the attack's start to the first photograph beside it.
LEAD_S = 1.0
# Niceness of the attacker's process: on another machine it would take nothing from the cores of the server.
NICENESS = 10
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


def measure(setup: HostileSetup) -> dict[str, Any]:
    """In each round, for each attack: photographs on a quiet server, then beside the attack."""
    options, rows = setup.options, []
    names = parse_names("attacks", options.attacks, ATTACKS)
    for frontends in options.frontend_counts("attacks"):
        with setup.frontends(frontends) as server:
            send_photos(setup, server)
            rounds = interleave({name: partial(measure_attack, setup, server, name) for name in names}, options.rounds)
        rows += [{"attack": name, "frontends": frontends, **summarize(some)} for name, some in rounds.items()]
    head = {
        "photos_per_s": PHOTOS_PER_S,
        "seconds": options.seconds,
        "rounds_each": options.rounds,
        "niceness": NICENESS,
    }
    return {**head, "rows": rows}


def measure_attack(setup: HostileSetup, server: Server, name: str, number: int) -> AttackRound:
    """Photographs before the attack and during it."""
    attack = ATTACKS[name]
    folder = setup.write(name, () if (setup.folder / name).exists() else attack.requests())
    quiet = send_photos(setup, server)
    server.reset_peak()
    # Requests that get no answer are held as long as the attack lasts.
    length_s = setup.options.seconds + 2 * LEAD_S
    load = Load(server.port, attack.connections, length_s, way=attack.way, timeout_s=length_s, niceness=NICENESS)
    finish_attack = start_load(load, folder)
    time.sleep(LEAD_S)
    during = send_photos(setup, server)
    return AttackRound(quiet, during, finish_attack().statuses(), server.peak_rss_bytes() / 2**20)


def send_photos(setup: HostileSetup, server: Server) -> PhotoFigures:
    """Send the honest client's photographs."""
    timing = (setup.options.seconds, PHOTOS_PER_S)
    load = Load(server.port, 100, *timing, evenly=True, source=HONEST_SOURCE, timeout_s=30.0)
    result = run_load(load, setup.photo_requests())
    late_ms = latencies_ms(result.sent)
    lost = {status: count for status, count in result.statuses().items() if status != "200"}
    p50_ms, p99_ms, max_ms = (percentile(late_ms, percent) for percent in (50, 99, 100))
    return PhotoFigures(p50_ms, p99_ms, max_ms, len(result.sent), lost)


def summarize(rounds: Sequence[AttackRound]) -> dict[str, Any]:
    """One attack over all rounds. ratio: p99 during the attack over p99 before it, of the same round."""
    quiet, during = [each.quiet for each in rounds], [each.during for each in rounds]
    return {
        "quiet": spreads(quiet, "p50_ms", "p99_ms", "max_ms"),
        "during": spreads(during, "p50_ms", "p99_ms", "max_ms"),
        "ratio": field_ratios("p99_ms", during, quiet),
        "sent": sum(each.sent for each in during),
        "lost": add_counts(each.lost for each in during),
        "answers": add_counts(each.answers for each in rounds),
        "peak_mib": max(each.peak_mib for each in rounds),
    }


def section(document: Document) -> str:
    """The table."""
    columns: Columns = {
        "attack": "{attack}",
        "frontends": "{frontends}",
        "quiet p99, ms": "{quiet[p99_ms]:.0f}",
        "p50 beside": "{during[p50_ms]:.0f}",
        "p99": "{during[p99_ms]:.0f}",
        "max": "{during[max_ms]:.0f}",
        "p99 against quiet": "{ratio:.1f×}",
        "not answered": lambda row: f"{sum(row['lost'].values())} of {row['sent']:,}",
        "MiB": "{peak_mib:,.0f}",
        "what the attacker got": "{answers}",
    }
    how = (
        "A photograph of 320 × 240 pixels {photos_per_s:g} times a second from another address, timed from when it was "
        "due; {seconds:g} s quiet, then as long beside the attack. p99 against quiet: in the same round. Median "
        "(least–most) of {rounds_each} rounds. The attacker's process has niceness {niceness}. MiB: the most resident "
        "memory that the server's processes held."
    )
    return section_of(document, table(columns, document["rows"]), how)
