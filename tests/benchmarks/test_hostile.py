"""Parts of `benchmarks.hostile`: small measurements of real servers, and what they say of bad ones."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.errors import BenchmarkError
from benchmarks.hostile import bombs, faults
from benchmarks.hostile.client import BROKEN, REFUSED, SILENT, Load, Seen, Sent, run_load, send, send_each
from benchmarks.hostile.mutants import KINDS, Seeds, is_bad, with_check_sums
from benchmarks.hostile.options import PARTS, HostileOptions
from benchmarks.hostile.overload import overload
from benchmarks.hostile.parts import MEASURE, measured
from benchmarks.hostile.report import HOSTILE_SECTIONS
from benchmarks.hostile.setting import Setting
from benchmarks.processes import free_port
from models.bundle import save_bundle
from tests.benchmarks.served_here import served_here
from tests.bundles import tiny_bundle

OK, ERROR = (b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % status for status in (b"200 OK", b"500 Oh"))
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class Fake:
    """A server. answer: of a whole request; None: never; b"": the connection ends."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.port = self._listener.getsockname()[1]
        self.sources: list[str] = []

    def __enter__(self) -> Fake:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no further connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, (source, _) = self._listener.accept()
            except OSError:
                return
            self.sources.append(source)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            try:
                while line := file.readline():
                    head = line
                    while not head.endswith(b"\r\n\r\n") and (line := file.readline()):
                        head += line
                    size = [int(one[15:]) for one in head.split(b"\r\n") if one.lower().startswith(b"content-length:")]
                    answer = self._answer(head + file.read(size[0] if size else 0))
                    if answer is None:
                        file.read()
                    if not answer:
                        return
                    connection.sendall(answer)
            except (OSError, ValueError):
                return

    # As much of a process as the parts ask for.

    def forget_peak(self) -> None:
        """Nothing."""

    def peak_rss_bytes(self) -> int:
        """None."""
        return 0


def load(port: int, **changes: Any) -> Load:
    return replace(Load(port, 4, 0.3, timeout_s=0.2), **changes)


@contextmanager
def here(model: Path | None, *options: str) -> Iterator[Any]:
    with served_here(model, *options) as server:
        yield SimpleNamespace(port=server.port, forget_peak=lambda: None, peak_rss_bytes=lambda: 2**20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "tiny"
    save_bundle(tiny_bundle(), folder, "A card.")
    return folder


@pytest.fixture
def setting(tiny: Path, tmp_path: Path) -> Setting:
    options = HostileOptions(
        model=tiny,
        frontends="0",
        rounds=1,
        seconds=0.5,
        attacks="WebP of 34 bytes,TLS and junk",
        faults="SIGTERM",
        repeats=1,
        mutants=256,
        output=tmp_path / "results" / "hostile.json",
    )
    png = []
    for pixels_HWC in np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels_HWC).save(file, "png")
        png.append(file.getvalue())
    return Setting(options, png, tmp_path / "requests", here)


def facing(setting: Setting, answer: Callable[[bytes], bytes | None]) -> Setting:
    return replace(setting, start=lambda *_: Fake(answer))


@pytest.mark.parametrize("name", PARTS)
def test_a_small_measurement_of_each_part_is_written_as_json_and_renders(setting: Setting, name: str) -> None:
    if name == "faults":
        setting = Setting(setting.options, setting.png, setting.folder)
    part = json.loads(json.dumps(measured(setting, name)))
    assert set(MEASURE) == set(PARTS)
    lines = [line for line in HOSTILE_SECTIONS[part["benchmark"]](part).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    CHECKS[name](part)


def check_attacks(part: dict[str, Any]) -> None:
    webp, junk = part["rows"]
    assert (webp["sent"], webp["lost"]) == (10, {})
    assert set(webp["answers"]) == {"413"}
    assert "400" in junk["answers"]


def check_overload(part: dict[str, Any]) -> None:
    assert [row["load"] for row in part["rows"]] == ["closed", "2 c", "5 c"]
    # On a busy machine the open loops may be refused whole.
    assert part["rows"][0]["goodput_per_s"]["median"] > 0
    assert all(row["livez_max_ms"]["max"] > 0 for row in part["rows"])


def check_fairness(part: dict[str, Any]) -> None:
    alone, beside = part["rows"]
    assert alone["greedy_per_s"]["median"] == 0.0 < beside["greedy_per_s"]["median"]
    assert alone["answered"]["median"] > 0.0


def check_faults(part: dict[str, Any]) -> None:
    (row,) = part["rows"]
    assert row["statuses"]["200"] > 0 == row["wrong"]
    assert (row["exit_statuses"], row["left"]) == ({"0": 1}, 0)
    assert row["red_s"] is not None
    assert row["green_s"] is None


def check_mutants(part: dict[str, Any]) -> None:
    assert part["bad"] == []
    assert part["dead"] == 0
    assert sum(part["statuses"].values()) == 256
    assert {"200", "400", "422"} <= set(part["statuses"])


CHECKS = {
    "attacks": check_attacks,
    "overload": check_overload,
    "fairness": check_fairness,
    "faults": check_faults,
    "mutants": check_mutants,
}


def test_photographs_that_are_not_answered_beside_an_attack_are_lost(setting: Setting) -> None:
    attacked = threading.Event()

    def answer(request: bytes) -> bytes:
        if b"image/jpeg" not in request:
            attacked.set()
            return OK
        return ERROR if attacked.is_set() else OK

    setting = replace(setting, options=replace(setting.options, attacks="WebP of 34 bytes"))
    (row,) = measured(facing(setting, answer), "attacks")["rows"]
    assert row["lost"] == {"500": 10}


def test_errors_of_a_server_and_lost_probes_are_told_apart_from_goodput(setting: Setting) -> None:
    turns, one_by_one = iter(range(10**9)), threading.Lock()

    def answer(request: bytes) -> bytes | None:
        if b"livez" in request:
            return b""
        with one_by_one:
            time.sleep(0.005)
            return (OK, ERROR)[next(turns) % 2]

    rows = overload(facing(setting, answer))["rows"]
    assert all(row["broken"]["min"] > 0 and row["livez_lost"]["min"] > 0 for row in rows)
    assert rows[0]["answered"]["median"] == pytest.approx(0.5, abs=0.2)


def test_a_server_that_answers_nothing_has_no_capacity(setting: Setting) -> None:
    for part in ("overload", "fairness"):
        with pytest.raises(BenchmarkError, match="answered none"):
            measured(facing(setting, lambda _: ERROR), part)


def told(number: int, class_id: int, probability: float, waited_s: float = 0.0, exit: int = 4) -> Sent:
    prediction: dict[str, Any] = {"class_id": class_id, "exit": exit}
    prediction["top_k"] = [{"class_id": class_id, "probability": probability}]
    return Sent(number, 0.0, 1.0, 1.0 + waited_s, 200, json.dumps({"predictions": [prediction]}))


def test_swapped_wrong_and_late_answers_are_counted() -> None:
    known = {(0, 4): {7: 0.9, 8: 0.1}, (1, 4): {7: 0.4, 8: 0.39}, (1, 2): {9: 0.8}}
    right = (told(0, 7, 0.9), told(2, 8, 0.39), told(3, 9, 0.8, exit=2))
    assert faults.fate(right, known)["wrong"] == 0
    wrong = (told(0, 8, 0.1), told(0, 9, 0.9), told(2, 7, 0.9), told(3, 7, 0.4, exit=2))
    assert faults.fate(wrong, known)["wrong"] == len(wrong)
    late = (told(0, 7, 0.9, 9.9), told(1, 7, 0.9, 0.4), told(0, 7, 0.9, 10.1), told(1, 7, 0.9, 0.6))
    found = faults.fate((*late, Sent(1, 0.0, 0.0, 60.0, 0, SILENT), Sent(0, 0.0, 0.0, 9.0, 0, REFUSED)), known)
    assert (found["hung"], found["longest_s"], found["requests"]) == (3, 60.0, 5)


def test_readiness_counts_from_the_first_and_the_last_signal() -> None:
    looks = [(1, 200), (2, 503), (3, 200), (4, 0), (5, 200), (6, 200)]
    seen = Seen(Load(1, 1, 1.0), tuple(Sent(0, at_s, at_s, at_s, status) for at_s, status in looks), 0.0, 0.0)
    assert faults.readiness(seen, (1.5, 2.5)) == {"red_s": 0.5, "green_s": 2.5}
    assert faults.readiness(replace(seen, sent=seen.sent[:4]), (1.5,)) == {"red_s": 0.5, "green_s": None}
    assert faults.readiness(replace(seen, sent=seen.sent[4:]), (1.5,)) == {"red_s": None, "green_s": None}


def test_mutants_that_fail_are_listed_and_kept_and_dead_servers_counted(setting: Setting) -> None:
    seen = iter(range(10**9))
    servers: list[Fake] = []

    def answer(request: bytes) -> bytes | None:
        number = next(seen)
        if number == 40:
            servers[-1].close()
        return {10: ERROR, 30: b"", 40: b""}.get(number, OK)

    def start(*_: object) -> Fake:
        servers.append(Fake(answer))
        return servers[-1]

    setting = replace(setting, options=replace(setting.options, mutants=64, first=1000), start=start)
    part = measured(setting, "mutants")
    assert part["dead"] == 1
    assert {one["answer"] for one in part["bad"]} >= {500, BROKEN}
    (failed,) = (one["number"] for one in part["bad"] if one["answer"] == 500)
    kept = setting.options.output.parent / "hostile-mutants" / f"{failed}.http"
    assert kept.read_bytes() == Seeds(setting.png).mutant(failed)


def test_silence_is_a_failure_and_so_is_an_end_of_the_connection_where_the_head_was_whole(setting: Setting) -> None:
    seeds, head = Seeds(setting.png), KINDS.index("head")
    bad = [
        (body, status, kind)
        for body, status in ((SILENT, 0), (BROKEN, 0), (REFUSED, 0), ("", 500), ("", 503), ("", 504), ("", 422))
        for kind, number in (("picture", 0), ("head", head))
        if is_bad(Sent(number, 0.0, 0.0, 0.0, status, body), seeds)
    ]
    assert bad == [
        *((SILENT, 0, "picture"), (SILENT, 0, "head"), (BROKEN, 0, "picture")),
        *(("", status, kind) for status in (500, 504) for kind in ("picture", "head")),
    ]


def test_a_mutant_follows_from_its_number(setting: Setting) -> None:
    one, other = Seeds(setting.png), Seeds(setting.png)
    assert [one.mutant(n) for n in range(400)] == [other.mutant(n) for n in reversed(range(400))][::-1]
    assert len({one.mutant(n) for n in range(400)}) > 390
    whole = [one.mutant(n) for n in range(400) if KINDS[n % len(KINDS)] != "head"]
    assert all(b"\r\n\r\n" in mutant for mutant in whole)


def test_check_sums_are_made_right(setting: Setting) -> None:
    png = setting.png[0]
    assert with_check_sums(png) == png
    broken = png[:60] + bytes((png[60] ^ 1,)) + png[61:]
    assert with_check_sums(broken) != broken


def test_bombs_are_what_they_say() -> None:
    assert len(bombs.webp()) == 34
    with Image.open(io.BytesIO(bombs.scans(3, side=64))) as image:
        assert image.info["progressive"]
        image.load()
    with Image.open(io.BytesIO(bombs.gif())) as image:
        assert getattr(image, "n_frames", 1) > 10


def test_the_client_tells_what_became_of_each_request() -> None:
    answers = {b"a": OK, b"b": ERROR, b"c": None, b"d": b"", b"e": b"HTTP/1.1 100 Continue\r\n\r\n" + OK}
    with Fake(lambda request: answers[request[4:5]]) as server:
        requests = [(number, LIVE.replace(b" /livez", b" " + name)) for number, name in enumerate(answers)]
        seen = send_each(load(server.port), requests)
    found = {one.number: (one.status, one.body) for one in seen.sent}
    assert found == {0: (200, ""), 1: (500, ""), 2: (0, SILENT), 3: (0, BROKEN), 4: (200, "")}
    assert send(load(free_port()), [LIVE]).statuses().keys() == {REFUSED}


def test_an_open_loop_keeps_its_schedule_and_its_address(tmp_path: Path, setting: Setting) -> None:
    with Fake(lambda _: OK) as server:
        job = load(server.port, rate=20.0, evenly=True, source="127.0.0.2", bodies=True)
        seen = run_load(job, setting.requests("live", LIVE, LIVE))
    assert [one.due_s - seen.start_s for one in seen.sent] == pytest.approx([n / 20 for n in range(6)])
    assert [(one.number, one.status, one.body) for one in seen.sent] == [(n % 2, 200, "{}") for n in range(6)]
    assert set(server.sources) == {"127.0.0.2"}
    with pytest.raises(BenchmarkError, match="no requests"):
        run_load(job, setting.requests("none"))


def test_a_closed_loop_keeps_its_connections_and_those_told_to_end_are_replaced() -> None:
    with Fake(lambda _: OK) as server:
        assert len(send(load(server.port), [LIVE]).sent) > 8
        assert len(server.sources) <= 4
    with Fake(lambda _: OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as server:
        seen = send(load(server.port), [LIVE])
        assert len(server.sources) == len(seen.sent) > 8
        assert seen.statuses().keys() == {"200"}


def test_a_server_that_resets_idle_connections_is_met_on_new_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.recv(1000)
                connection.sendall(OK)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        job = load(listener.getsockname()[1], rate=5.0, evenly=True, duration_s=0.6)
        assert send(job, [LIVE]).statuses() == {"200": 3}


@pytest.mark.parametrize(("way", "became"), [("close", "200"), ("mute", SILENT), ("drip", SILENT)])
def test_ways_of_being_a_bad_client(way: str, became: str) -> None:
    body = b"x" * 10**4
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with Fake(lambda _: OK) as server:
        seen = send(load(server.port, way=way), [request])
    assert seen.statuses().keys() == {became}


def test_options_name_what_there_is() -> None:
    with pytest.raises(ValueError, match="only nothing"):
        HostileOptions(only="nothing")
    assert HostileOptions().frontends_of("faults") == (0, 2)
    assert HostileOptions(frontends="1").frontends_of("faults") == (1,)
