"""Attacks: how each delays the photographs of another client, and how much memory the server takes."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.hostile import bombs
from benchmarks.hostile.client import Load, run_load
from benchmarks.hostile.setting import HONEST_SOURCE, Setting, say
from benchmarks.options import chosen
from benchmarks.peers.requests import Ask
from benchmarks.stats import percentile, spread

PHOTOS_PER_S = 20.0
# From the attack's start to the first photograph beside it.
LEAD_S = 1.0
BODY = 16 * 2**20
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)
JUNK = random.Random(0).randbytes(2000)
TIMES = ("p50_ms", "p99_ms", "max_ms")


@dataclass(frozen=True)
class Attack:
    """A closed loop. connections: how many. requests: makes the bytes that are sent. way: see `Load`."""

    connections: int
    requests: Callable[[], tuple[bytes, ...]]
    way: str = "ask"


def post(body: bytes, media_type: str = "application/octet-stream") -> bytes:
    """A prediction request."""
    return Ask("/v1/predict", media_type, body, {"Connection": "close"}).encoded()


def form(part: bytes, count: int) -> bytes:
    """A form that has the same picture `count` times."""
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return post((head + part + b"\r\n") * count + b"--B--\r\n", "multipart/form-data; boundary=B")


def headers(size_bytes: int = BODY) -> tuple[bytes, ...]:
    """Requests with a huge header value, very many headers, a huge URL and a huge header name."""
    line = b"X-12345678: 12345678\r\n"
    return (
        HEAD + b"X: " + b"a" * size_bytes,
        HEAD + line * (size_bytes // len(line)),
        HEAD.replace(b"/livez", b"/livez?" + b"a" * size_bytes),
        HEAD + b"X" * size_bytes,
    )


ATTACKS = {
    "JPEG of many scans": Attack(8, lambda: (post(bombs.scans(1800)), post(bombs.scans(30)))),
    "form of 64 large PNGs": Attack(4, lambda: (form(bombs.picture(bombs.ALLOWED_SIDE, "png"), 64),)),
    "WebP of 34 bytes": Attack(16, lambda: (post(bombs.webp()),)),
    "large WebP": Attack(16, lambda: (post(bombs.picture(bombs.ALLOWED_SIDE, "webp", lossless=True, method=0)),)),
    "16-bit grey PNG": Attack(16, lambda: tuple(post(bombs.picture(n, "png", "I;16")) for n in (bombs.SIDE, 4900))),
    "truncated PNG": Attack(16, lambda: (post(bombs.picture(bombs.ALLOWED_SIDE, "png")[:-60]),)),
    "GIF of many frames": Attack(8, lambda: (post(bombs.gif()),)),
    "JSON of 5 million objects": Attack(
        4, lambda: (post(b'{"images": [' + b"{}," * 5_500_000 + b"{}]}", "application/json"),)
    ),
    "JSON of 16 MiB": Attack(8, lambda: (post(b'{"images": ["' + b"A" * (BODY - 20) + b'"]}', "application/json"),)),
    "uploads without their last byte": Attack(100, lambda: (post(b"\xff\xd8\xff" + bytes(BODY - 100))[:-1],)),
    "headers of 16 MiB": Attack(8, headers),
    "slow writers": Attack(200, lambda: (post(bytes(4000)), HEAD + b"X: " + b"a" * 2000), "drip"),
    "never-readers": Attack(100, lambda: (GET * 1000,), "mute"),
    "pipelining": Attack(64, lambda: (GET * 100,), "close"),
    "TLS and junk": Attack(32, lambda: (TLS_HELLO, JUNK)),
}


def attacks(setting: Setting) -> dict[str, Any]:
    """In each round, for each attack: photographs on a quiet server, then beside the attack."""
    options = setting.options
    names = chosen("attacks", options.attacks, ATTACKS) if options.attacks else tuple(ATTACKS)
    cells = []
    for frontends in options.frontends_of("attacks"):
        with setting.serve(frontends) as server:
            photographs(setting, server.port)
            for _ in range(options.rounds):
                for name in names:
                    cells.append({"frontends": frontends, "attack": name, **beside(setting, server, name)})
                    say(f"{cells[-1]}")
    rows = [
        row([one for one in cells if (one["attack"], one["frontends"]) == (name, frontends)])
        for frontends in options.frontends_of("attacks")
        for name in names
    ]
    return {"photos_per_s": PHOTOS_PER_S, "seconds": options.seconds, "rounds_each": options.rounds, "rows": rows}


def beside(setting: Setting, server: Any, name: str) -> dict[str, Any]:
    """One attack: photographs before it and during it."""
    attack = ATTACKS[name]
    folder = setting.requests(name, *(() if (setting.folder / name).exists() else attack.requests()))
    quiet = photographs(setting, server.port)
    server.forget_peak()
    # Requests that get no answer are held as long as the attack lasts.
    length_s = setting.options.seconds + 2 * LEAD_S
    load = Load(server.port, attack.connections, length_s, way=attack.way, timeout_s=length_s)
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(run_load, load, folder)
        time.sleep(LEAD_S)
        during = photographs(setting, server.port)
        answers = seen.result().statuses()
    return {"quiet": quiet, "during": during, "answers": answers, "peak_mib": server.peak_rss_bytes() / 2**20}


def photographs(setting: Setting, port: int) -> dict[str, Any]:
    """Times of the honest client's photographs, from when they were due, and how many got no prediction."""
    load = Load(port, 100, setting.options.seconds, PHOTOS_PER_S, evenly=True, source=HONEST_SOURCE, timeout_s=30.0)
    seen = run_load(load, setting.photo_requests())
    late_ms = [1e3 * (one.done_s - one.due_s) for one in seen.sent if one.status == 200]
    lost = {status: count for status, count in seen.statuses().items() if status != "200"}
    figures = (percentile(late_ms, 50), percentile(late_ms, 99), max(late_ms, default=float("nan")))
    return {**dict(zip(TIMES, figures, strict=True)), "sent": len(seen.sent), "lost": lost}


def row(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Summary of one attack over all rounds."""
    lost, answers = Counter[str](), Counter[str]()
    for cell in cells:
        lost.update(cell["during"]["lost"])
        answers.update(cell["answers"])
    ratios = [cell["during"]["p99_ms"] / cell["quiet"]["p99_ms"] for cell in cells]
    return {
        "attack": cells[0]["attack"],
        "frontends": cells[0]["frontends"],
        **{when: {n: asdict(spread([c[when][n] for c in cells])) for n in TIMES} for when in ("quiet", "during")},
        "ratio": asdict(spread(ratios)),
        "sent": sum(cell["during"]["sent"] for cell in cells),
        "lost": dict(lost),
        "answers": dict(answers),
        "peak_mib": max(cell["peak_mib"] for cell in cells),
    }
