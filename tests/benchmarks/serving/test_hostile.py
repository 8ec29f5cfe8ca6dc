"""Parts of `offramp bench hostile`: small measurements of real servers, and of bad ones."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.open_loop import BROKEN, REFUSED, SILENT, Load, LoadResult, Sent
from benchmarks.harness.pictures import as_png
from benchmarks.harness.server import Server, offramp_server
from benchmarks.options import HOSTILE_PARTS, HostileOptions, parse_names
from benchmarks.serving.hostile import bombs, faults
from benchmarks.serving.hostile.mutants import KINDS, Seeds, is_bad, with_check_sums
from benchmarks.serving.hostile.setup import HostileSetup
from benchmarks.tables import fill_document
from offramp.models.bundle import save_bundle
from tests.benchmarks.raw_server import ERROR, OK, RawServer
from tests.benchmarks.served_here import served_here
from tests.bundles import tiny_bundle


class ServedHere(Server):
    """A server in this process, whose memory is not measured."""

    def reset_peak(self) -> None:
        """Nothing to reset."""

    def peak_rss_bytes(self) -> int:
        """A mebibyte."""
        return 2**20


@contextmanager
def here(model: Path | None, *options: str) -> Iterator[Server]:
    with served_here(model, *options) as server:
        yield ServedHere(server.port)


def measure(setup: HostileSetup, name: str) -> dict[str, Any]:
    """Measure one part and read it from its file."""
    options = replace(setup.options, only=name)
    replace(setup, options=options).publish("hostile", HOSTILE_PARTS)
    part: dict[str, Any] = json.loads(options.output.read_text())["parts"][name]
    return part


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "tiny"
    save_bundle(tiny_bundle(), folder, "A card.")
    return folder


@pytest.fixture
def setup(tiny: Path, tmp_path: Path) -> HostileSetup:
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
    png = as_png(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    return HostileSetup(options=options, png=png, folder=tmp_path / "requests", start=here)


def facing(setup: HostileSetup, answer: Callable[[bytes], bytes | None]) -> HostileSetup:
    start: Any = lambda *_: RawServer(answer)  # noqa: E731
    return replace(setup, start=start)


@pytest.mark.parametrize("name", HOSTILE_PARTS)
def test_a_small_measurement_of_each_part_is_written_as_json_and_renders(setup: HostileSetup, name: str) -> None:
    if name == "faults":
        setup = replace(setup, start=offramp_server)
    if name == "fairness":
        # On a busy machine a greedy client may get no answer in half a second.
        setup = replace(setup, options=replace(setup.options, seconds=2.0))
    part, output = measure(setup, name), setup.options.output
    text = fill_document(f"<!-- results: {output.name}#{name} -->\n<!-- end of results -->", output.parent)
    lines = [line for line in text.splitlines() if line.startswith("|")]
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


def test_photographs_that_are_not_answered_beside_an_attack_are_lost(setup: HostileSetup) -> None:
    attacked = threading.Event()

    def answer(request: bytes) -> bytes:
        if b"image/jpeg" not in request:
            attacked.set()
            return OK
        return ERROR if attacked.is_set() else OK

    setup = replace(setup, options=replace(setup.options, attacks="WebP of 34 bytes"))
    (row,) = measure(facing(setup, answer), "attacks")["rows"]
    assert row["lost"] == {"500": 10}


def test_errors_of_a_server_and_lost_probes_are_no_goodput(setup: HostileSetup) -> None:
    turns, one_by_one = iter(range(10**9)), threading.Lock()

    def answer(request: bytes) -> bytes | None:
        if b"livez" in request:
            return b""
        with one_by_one:
            time.sleep(0.005)
            return (OK, ERROR)[next(turns) % 2]

    rows = measure(facing(setup, answer), "overload")["rows"]
    assert all(row["broken"]["min"] > 0 and row["livez_lost"]["min"] > 0 for row in rows)
    assert rows[0]["answered"]["median"] == pytest.approx(0.5, abs=0.2)


def test_a_server_that_answers_nothing_has_no_capacity(setup: HostileSetup) -> None:
    for part in ("overload", "fairness"):
        with pytest.raises(BenchmarkError, match="answered none"):
            measure(facing(setup, lambda _: ERROR), part)


def answer_to(number: int, class_id: int, probability: float, waited_s: float = 0.0, exit: int = 4) -> Sent:
    prediction: dict[str, Any] = {"class_id": class_id, "exit": exit}
    prediction["top_k"] = [{"class_id": class_id, "probability": probability}]
    return Sent(number, 0.0, 1.0, 1.0 + waited_s, 200, json.dumps({"predictions": [prediction]}))


def test_swapped_wrong_and_late_answers_are_counted() -> None:
    known = {(0, 4): {7: 0.9, 8: 0.1}, (1, 4): {7: 0.4, 8: 0.39}, (1, 2): {9: 0.8}}
    right = (answer_to(0, 7, 0.9), answer_to(2, 8, 0.39), answer_to(3, 9, 0.8, exit=2))
    assert faults.count_answers(right, known)["wrong"] == 0
    wrong = (answer_to(0, 8, 0.1), answer_to(0, 9, 0.9), answer_to(2, 7, 0.9), answer_to(3, 7, 0.4, exit=2))
    assert faults.count_answers(wrong, known)["wrong"] == len(wrong)
    late = (answer_to(0, 7, 0.9, 9.9), answer_to(1, 7, 0.9, 0.4), answer_to(0, 7, 0.9, 10.1), answer_to(1, 7, 0.9, 0.6))
    counts = faults.count_answers(
        (*late, Sent(1, 0.0, 0.0, 60.0, 0, SILENT), Sent(0, 0.0, 0.0, 9.0, 0, REFUSED)), known
    )
    assert (counts["hung"], counts["longest_s"], counts["requests"]) == (3, 60.0, 5)


def test_readiness_counts_from_the_first_and_the_last_signal() -> None:
    looks = [(1, 200), (2, 503), (3, 200), (4, 0), (5, 200), (6, 200)]
    seen = LoadResult(Load(1, 1), tuple(Sent(0, s - 1, s - 1, s - 1, status) for s, status in looks), 1.0, 0.0)
    assert faults.readiness(seen, (1.5, 2.5)) == {"red_s": 0.5, "green_s": 2.5}
    assert faults.readiness(replace(seen, sent=seen.sent[:4]), (1.5,)) == {"red_s": 0.5, "green_s": None}
    assert faults.readiness(replace(seen, sent=seen.sent[4:]), (1.5,)) == {"red_s": None, "green_s": None}


def test_mutants_that_fail_are_listed_and_kept_and_dead_servers_counted(setup: HostileSetup) -> None:
    seen = iter(range(10**9))
    servers: list[RawServer] = []

    def answer(request: bytes) -> bytes | None:
        number = next(seen)
        if number == 40:
            servers[-1].close()
        return {10: ERROR, 30: b"", 40: b""}.get(number, OK)

    def start(*_: object) -> Any:
        servers.append(RawServer(answer))
        return servers[-1]

    setup = replace(setup, options=replace(setup.options, mutants=64, first=1000), start=start)
    part = measure(setup, "mutants")
    assert part["dead"] == 1
    assert {each["answer"] for each in part["bad"]} >= {500, BROKEN}
    (failed,) = (each["number"] for each in part["bad"] if each["answer"] == 500)
    saved = setup.options.output.parent / "hostile-mutants" / f"{failed}.http"
    assert saved.read_bytes() == Seeds(setup.png).mutant(failed)


def test_silence_is_a_failure_and_so_is_an_end_of_the_connection_where_the_head_was_whole(setup: HostileSetup) -> None:
    seeds, head = Seeds(setup.png), KINDS.index("head")
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


def test_a_mutant_is_a_function_of_its_number(setup: HostileSetup) -> None:
    first, second = Seeds(setup.png), Seeds(setup.png)
    assert [first.mutant(n) for n in range(400)] == [second.mutant(n) for n in reversed(range(400))][::-1]
    assert len({first.mutant(n) for n in range(400)}) > 390
    whole = [first.mutant(n) for n in range(400) if KINDS[n % len(KINDS)] != "head"]
    assert all(b"\r\n\r\n" in mutant for mutant in whole)


def test_check_sums_are_made_right(setup: HostileSetup) -> None:
    png = setup.png[0]
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


def test_every_fault_can_be_chosen_by_its_name() -> None:
    for name in faults.FAULTS:
        assert parse_names("faults", name, faults.FAULTS) == (name,)
