"""Contracts over HTTP: a certified contract is applied and shown, any other is refused with the certified ones."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, replace

import httpx
import pytest

from offramp.models.bundle import Bundle
from offramp.models.certificate import Certificate, CertifiedPoint, ThresholdBound
from offramp.models.cost import count_cost
from offramp.server.engine.errors import InferenceFailed
from offramp.server.engine.request import Contract, Promise
from offramp.server.http.schemas import ModelFacts, PredictionAnswer
from offramp.server.request.parameters import Parameters
from offramp.server.request.resolve import shared_fields
from offramp.server.settings import Settings

FAILURE = InferenceFailed("broken")

STRICT, MIDDLE, LOOSE = (0.9, 0.8, 1.0), (0.6, 0.5, 0.5), (0.2, 0.2, 0.2)
FULL_DEPTH = (1.0, 1.0, 1.0)


def point(max_disagreement: float, thresholds: tuple[float, ...]) -> CertifiedPoint:
    observed, bound = 0.5 * max_disagreement, 0.9 * max_disagreement
    return CertifiedPoint(max_disagreement, thresholds, observed, bound, 0.0, 0.01, 0.5, (0.7, 0.1, 0.1, 0.1))


CERTIFICATE = Certificate(
    delta=0.05,
    pictures=3000,
    data="three thousand pictures",
    fingerprint="ab" * 32,
    date="2026-11-26",
    points=(point(0.01, STRICT), point(0.05, MIDDLE), point(0.1, LOOSE)),
    any_threshold=(ThresholdBound(0.0, 0.4), ThresholdBound(0.5, 0.08), ThresholdBound(0.8, 0.03)),
)


@pytest.fixture
def certified(bundle: Bundle) -> Bundle:
    return replace(bundle, certificate=CERTIFICATE)


@pytest.fixture
async def site(serve, certified):
    async with serve(bundles=[certified]) as site:
        yield site


async def applied(site, encode, query: str) -> dict:
    response = await site.client.post(f"/v1/predict?{query}", content=encode())
    assert response.status_code == 200, response.text
    PredictionAnswer.model_validate(response.json())
    return response.json()["contract"]


async def refused(site, encode, query: str) -> dict:
    response = await site.client.post(f"/v1/predict?{query}", content=encode())
    assert response.status_code == 422, response.text
    return response.json()


async def test_a_certified_contract_is_applied_and_shown_in_every_form_of_body(site, encode):
    picture = encode()
    raw = await site.client.post("/v1/predict?max_disagreement=0.05", content=picture)
    form = await site.client.post("/v1/predict", files={"image": picture}, data={"max_disagreement": "0.05"})
    images = [base64.b64encode(picture).decode()]
    plain = await site.client.post("/v1/predict", json={"images": images, "max_disagreement": 0.05})
    for response in (raw, form, plain):
        PredictionAnswer.model_validate(response.json())
        assert response.json()["contract"] == {
            "max_disagreement": 0.05,
            "certified": {
                "max_disagreement": 0.05,
                "bound": 0.045,
                "delta": 0.05,
                "pictures": 3000,
                "calibration": CERTIFICATE.calibration_id,
            },
            "thresholds": list(MIDDLE),
        }
    for contract in site.engine.contracts:
        assert contract.asked.rule.thresholds == MIDDLE
        assert contract.asked.promise == Promise(0.05, certified=True)
        assert [plan.rule.thresholds for plan in contract.stricter] == [STRICT, FULL_DEPTH]
        assert contract.looser == ()


def test_a_contract_gets_each_parameter_that_it_has_a_field_for():
    @dataclass(frozen=True)
    class Longer(Contract):
        deadline_ms: float = 0.0

    assert shared_fields(Parameters(deadline_ms=20, top_k=3), Longer) == {"deadline_ms": 20}
    assert shared_fields(Parameters(), Longer) == {}
    assert shared_fields(Parameters(deadline_ms=20), Contract) == {}


async def test_thresholds_applied_are_shown_in_six_digits_rounded_up(serve, bundle, encode):
    long = replace(CERTIFICATE, points=(point(0.05, (0.9281904999999999, 0.65, 1.0)),))
    async with serve(bundles=[replace(bundle, certificate=long)]) as site:
        contract = await applied(site, encode, "max_disagreement=0.05")
    assert contract["thresholds"] == [0.928191, 0.65, 1.0]


async def test_what_lies_between_two_points_gets_the_stricter(site, encode):
    contract = await applied(site, encode, "max_disagreement=0.09")
    assert contract["certified"]["max_disagreement"] == 0.05
    assert site.engine.contracts[0].asked.rule.thresholds == MIDDLE


async def test_what_cannot_be_certified_is_refused_with_what_can(site, encode):
    problem = await refused(site, encode, "max_disagreement=0.005")
    assert problem["type"] == "urn:offramp:problem:not-certified"
    assert problem["certified"] == [0.01, 0.05, 0.1]
    assert "0.01, 0.05, 0.1" in problem["detail"]
    assert site.engine.contracts == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("max_disagreement=0.05&min_exit=2", ["max_disagreement", "min_exit"]),
        ("max_disagreement=0.05&max_exit=2", ["max_disagreement", "max_exit"]),
        ("degrade_to=0.05&max_exit=2", ["degrade_to", "max_exit"]),
        ("max_disagreement=0.05&degrade_to=0.01", ["max_disagreement", "degrade_to"]),
        ("thresholds=0.1,0.1,0.1&degrade_to=0.1", ["thresholds", "degrade_to"]),
        ("max_disagreement=0.05&threshold=0.5", ["threshold", "max_disagreement"]),
    ],
)
async def test_contracts_that_contradict_themselves_are_refused(site, encode, query, named):
    problem = await refused(site, encode, query)
    assert problem["type"] == "urn:offramp:problem:invalid-parameter"
    assert problem["parameters"] == named


async def test_a_threshold_is_answered_with_its_bound(site, encode):
    assert await applied(site, encode, "threshold=0.6") == {"threshold": 0.6, "disagreement_bound": 0.08}
    assert await applied(site, encode, "threshold=1") == {"threshold": 1.0, "disagreement_bound": 0.0}
    assert site.engine.contracts[0].asked.promise == Promise(0.08, certified=False)
    # Nothing is known where depth is bounded, or of several thresholds.
    assert await applied(site, encode, "threshold=0.6&max_exit=3") == {"threshold": 0.6, "max_exit": 3}
    assert await applied(site, encode, "thresholds=0.6,0.6,0.6") == {"thresholds": [0.6, 0.6, 0.6]}
    assert [contract.asked.promise for contract in site.engine.contracts[2:]] == [None, None]


async def test_degrade_to_allows_certified_points_beyond_what_is_promised(site, encode):
    contract = await applied(site, encode, "max_disagreement=0.01&degrade_to=0.07")
    assert contract["degrade_to"] == 0.07
    assert (await applied(site, encode, "threshold=0.6&degrade_to=1"))["degrade_to"] == 1.0
    by_certificate, by_threshold = site.engine.contracts
    assert [plan.rule.thresholds for plan in by_certificate.looser] == [MIDDLE]
    # The threshold's own bound is 0.08.
    assert [plan.rule.thresholds for plan in by_threshold.looser] == [LOOSE]
    problem = await refused(site, encode, "degrade_to=0.001")
    assert problem["certified"] == [0.01, 0.05, 0.1]


async def test_a_certificate_that_proved_nothing_is_none(serve, bundle, encode):
    empty = replace(bundle, certificate=replace(CERTIFICATE, points=()))
    async with serve(
        bundles=[empty], settings=Settings(decode_threads=1, brownout_wait_s=0.1, brownout_to=0.2)
    ) as site:
        assert await applied(site, encode, "top_k=1") == {"threshold": 0.5, "disagreement_bound": 0.08}
        assert (await refused(site, encode, "max_disagreement=0.5"))["certified"] == []


async def test_an_answer_tells_what_took_the_place_of_what_was_asked(serve, certified, encode):
    async with serve(bundles=[certified]) as site:
        for promise, replacement in (
            (None, None),
            (Promise(0.1, certified=True), {"max_disagreement": 0.1}),
            (Promise(0.0, certified=True), {"max_disagreement": 0.0}),
        ):
            site.engine.replacement = promise
            response = await site.client.post("/v1/predict?max_disagreement=0.05&degrade_to=0.1", content=encode())
            PredictionAnswer.model_validate(response.json())
            assert response.json()["predictions"][0].get("in_force") == replacement


async def test_only_a_request_without_a_contract_gets_the_operators(serve, certified, encode):
    settings = Settings(decode_threads=1, brownout_wait_s=0.1, brownout_to=0.2)
    async with serve(bundles=[certified], settings=settings) as site:
        assert "degrade_to" not in await applied(site, encode, "top_k=2")
        await applied(site, encode, "threshold=0.5")
        await applied(site, encode, "max_disagreement=0.01")
        assert [len(contract.looser) for contract in site.engine.contracts] == [1, 0, 0]


async def test_a_bundle_without_a_certificate_promises_nothing(serve, bundle, encode):
    async with serve(settings=Settings(decode_threads=1, brownout_wait_s=0.1, brownout_to=0.2)) as site:
        for name in ("max_disagreement", "degrade_to"):
            problem = await refused(site, encode, f"{name}=0.5")
            assert problem["type"] == "urn:offramp:problem:not-certified"
            assert problem["certified"] == []
            assert problem["parameters"] == [name]
        assert await applied(site, encode, "threshold=0.5") == {"threshold": 0.5}
        assert (await site.client.get("/v1/models/tiny")).json()["certificate"] is None


async def test_the_whole_front_is_shown(site):
    facts = (await site.client.get("/v1/models/tiny")).json()
    ModelFacts.model_validate(facts)
    certificate = facts["certificate"]
    assert certificate["version"] == CERTIFICATE.calibration_id
    assert certificate["version"].startswith("2026-11-26-")
    assert [each["max_disagreement"] for each in certificate["points"]] == [0.01, 0.05, 0.1]
    assert certificate["points"][1]["thresholds"] == list(MIDDLE)
    assert certificate["any_threshold"][1] == {"threshold": 0.5, "bound": 0.08}
    assert (certificate["delta"], certificate["pictures"]) == (0.05, 3000)


async def test_every_certified_promise_has_its_alarm_from_the_start(site):
    for promise in ("threshold", "0.01", "0.05", "0.1"):
        assert site.metric("offramp_audit_alarm", model="tiny", version="1", promise=promise) == 0


# ---- privacy ------------------------------------------------------------------------------------


async def test_in_private_mode_nothing_tells_how_deep_a_picture_went(serve, certified, encode):
    async with serve(bundles=[certified], settings=Settings(decode_threads=1, private=True)) as site:
        reds = (255, 15)
        responses = [await site.client.post("/v1/predict?max_disagreement=0.1", content=encode(red)) for red in reds]
        for exit in "14":
            reason = "confident" if exit == "1" else "final"
            labels = {"model": "tiny", "version": "1", "exit": exit, "reason": reason}
            assert site.metric("offramp_samples_total", **labels) == 1
        for response in responses:
            answer = response.json()
            PredictionAnswer.model_validate(answer)
            assert set(answer) == {"model", "version", "predictions", "contract"}
            assert set(answer["contract"]) == {"max_disagreement", "certified"}
            [prediction] = answer["predictions"]
            assert set(prediction) == {"label", "class_id", "confidence", "top_k"}
            assert prediction["confidence"] == round(prediction["confidence"], 2)
        first, second = ({name.lower() for name in response.headers} for response in responses)
        assert first == second
        assert not {"x-offramp-exit", "server-timing"} & first


@pytest.mark.parametrize(
    "query", ["detail=true", "threshold=0", "thresholds=0.1,0.1,0.1", "min_exit=2", "max_exit=1", "max_exit=4"]
)
async def test_in_private_mode_what_would_tell_is_refused(serve, encode, query):
    async with serve(settings=Settings(decode_threads=1, private=True)) as site:
        problem = await refused(site, encode, query)
        assert problem["parameters"] == [query.partition("=")[0]]
        assert (await site.client.post("/v1/predict", content=encode())).status_code == 200


async def test_every_answer_comes_at_a_step_of_time(serve, encode):
    async with serve(settings=Settings(decode_threads=1, answer_step_ms=40.0), failures={7: FAILURE}) as site:
        for red, status in ((255, 200), (7, 500)):
            started_s = asyncio.get_running_loop().time()
            response = await site.client.post("/v1/predict", content=encode(red))
            assert response.status_code == status
            assert asyncio.get_running_loop().time() - started_s >= 0.04


# ---- limits in compute --------------------------------------------------------------------------


def enough_for(pictures: float, bundle: Bundle, api_keys: str = "") -> Settings:
    """What so many pictures at full depth cost may be spent at once, and hardly anything after that."""
    full_depth = count_cost(bundle.config).sequential_multiply_adds[-1]
    burst_s = 3600.0
    gmacs_per_s = pictures * full_depth / burst_s / 1e9
    return Settings(decode_threads=1, client_gmacs_per_s=gmacs_per_s, client_burst_s=burst_s, api_keys=api_keys)


async def test_a_client_that_has_spent_its_compute_is_refused_and_shown_when_to_come_back(serve, bundle, encode):
    async with serve(settings=enough_for(2.5, bundle, api_keys="one,two")) as site:

        async def ask(key: str) -> httpx.Response:
            return await site.client.post("/v1/predict?threshold=1", content=encode(), headers={"X-API-Key": key})

        assert [(await ask("one")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await ask("one")
        assert refused.json()["limit"] == "compute_per_s"
        assert int(refused.headers["Retry-After"]) > 60
        assert (await ask("two")).status_code == 200
        assert site.metric("offramp_rejections_total", reason="client_limit") == 2


async def test_easy_pictures_cost_a_client_less(serve, bundle, encode):
    async with serve(settings=enough_for(2.5, bundle)) as site:
        # At most 0.29 of the full depth each: the next must still have room for its worst case.
        responses = [await site.client.post("/v1/predict?threshold=0", content=encode()) for _ in range(5)]
        assert [response.status_code for response in responses] == [200] * 5


async def test_a_bound_on_depth_is_a_bound_on_cost(serve, bundle, encode):
    async with serve(settings=enough_for(0.5, bundle)) as site:
        shallow = await site.client.post("/v1/predict?threshold=1&max_exit=1", content=encode())
        assert shallow.status_code == 200


async def test_a_client_with_most_of_the_deep_work_waits_while_others_do(serve, bundle, encode):
    settings = Settings(decode_threads=1, api_keys="deep,easy", client_deep_share=0.5, max_batch_size=1)
    async with serve(settings=settings) as site:

        async def ask(key: str, threshold: float) -> int:
            headers = {"X-API-Key": key}
            url = f"/v1/predict?threshold={threshold}"
            return (await site.client.post(url, content=encode(), headers=headers)).status_code

        assert [await ask("easy", 0.0) for _ in range(3)] == [200] * 3
        assert [await ask("deep", 1.0) for _ in range(3)] == [200] * 3
        site.engine.holds = True
        held = []
        for _ in range(2):
            site.engine.submitted.clear()
            held.append(asyncio.create_task(ask("easy", 0.0)))
            await site.engine.submitted.wait()
        assert await ask("deep", 1.0) == 429
        site.engine.release()
        await asyncio.gather(*held)
        site.engine.holds = False
        assert await ask("deep", 1.0) == 200


async def test_in_private_mode_a_clients_account_does_not_show_the_exit(serve, certified, encode):
    async def answered(red: int, private: bool) -> int:
        gmacs_per_s = 30 * full_depth_gmacs / 3600
        limits = {"client_gmacs_per_s": gmacs_per_s, "client_burst_s": 3600}
        settings = Settings(decode_threads=1, private=private, **limits)
        async with serve(bundles=[certified], settings=settings) as site:
            path, count = "/v1/predict?max_disagreement=0.1", 0
            while (await site.client.post(path, content=encode(red))).status_code == 200:
                count += 1
            return count

    full_depth_gmacs = certified.cost.sequential_multiply_adds[-1] / 1e9
    assert await answered(255, private=False) > await answered(15, private=False)
    assert await answered(255, private=True) == await answered(15, private=True)
