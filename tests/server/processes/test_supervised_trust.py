"""Audits and brownout with the engine in a process of its own: answers and metrics of the frontends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from offramp.models.bundle import Bundle, save_bundle
from tests.bundles import certificate_of_nothing
from tests.server.processes.supervised import Server, encoded_pictures, serving, total, until

# Every early answer is compared. A wait too short for any load but none.
TRUST: dict[str, Any] = {"audit_share": 1.0, "audit_false_alarm_every": 100.0, "brownout_wait_s": 0.001}
PICTURES = encoded_pictures()


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory) -> Iterator[Server]:
    """Serves random weights with a certificate that is true for 1 % (nobody leaves early) and false for 5 %."""
    certificate = certificate_of_nothing({0.01: 1.0, 0.05: 0.0})
    path = tmp_path_factory.mktemp("certified") / "tiny"
    save_bundle(replace(bundle, certificate=certificate), path, "card")
    with serving(path, tmp_path_factory.mktemp("run"), TRUST) as running:
        yield running


async def ask(server: Server, number: int, asked: dict[str, str]) -> list[dict[str, Any]]:
    """The predictions for so many pictures sent at once."""
    async with httpx.AsyncClient(base_url=server.address, timeout=None) as client:
        sent = [client.post("/v1/predict", content=PICTURES[at % len(PICTURES)], params=asked) for at in range(number)]
        return [response.json()["predictions"][0] for response in await asyncio.gather(*sent)]


async def ready(server: Server) -> bool:
    return (await server.get("/readyz")).status_code == 200


async def test_every_early_answer_is_compared_and_a_false_promise_rings(server: Server) -> None:
    await until(lambda: ready(server))
    await ask(server, 30, {"max_disagreement": "0.05"})

    async def all_compared() -> bool:
        samples = await server.samples()
        return total(samples, "offramp_audited_samples_total") == total(samples, "offramp_samples_total")

    await until(all_compared)
    samples = await server.samples()
    assert total(samples, "offramp_samples_total") == 30
    # Each ran stage 1 for its answer, and all four stages for its audit.
    assert total(samples, "offramp_stage_batch_size_sum") == (1 + 4) * 30
    assert total(samples, "offramp_audit_disagreements_total") > 0
    assert total(samples, "offramp_audit_alarm", "'0.05'") == 1
    assert total(samples, "offramp_audit_alarm", "'0.01'") == 0


async def test_load_lowers_thresholds_as_far_as_requests_allow(server: Server) -> None:
    await until(lambda: ready(server))
    loosened: list[dict[str, Any]] = []
    level = 0.0
    # In a slow burst the level may have fallen again before it is read.
    while not loosened or not level:
        answers = await ask(server, 40, {"max_disagreement": "0.01", "degrade_to": "0.05"})
        level = total(await server.samples(), "offramp_brownout_level")
        loosened += [answer for answer in answers if answer["exit_reason"] == "brownout"]
    assert all(answer["in_force"] == {"max_disagreement": 0.05} and answer["exit"] == 1 for answer in loosened)
    assert not any("in_force" in answer for answer in await ask(server, 40, {"max_disagreement": "0.01"}))
